"""Noise over ranks: a job of two under torchrun, and the query of docs/probes.md on what it stored."""

import json
import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "probes.md"
RANKS = """
import json
import sys
import torch
import torch.distributed as dist
from torch import nn
import sidestep

dist.init_process_group("gloo")
rank = dist.get_rank()

def train(watched):
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if watched:
        sidestep.watch(model, optimizer, project="noise", probes={"noise": 2})
    for step in range(5):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(2 * step + rank))
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        if watched:
            local = torch.cat([each.flatten() for each in torch.autograd.grad(
                model.module(inputs).square().mean(), list(model.parameters()))])
            both = [torch.empty_like(local) for _ in range(2)]
            dist.all_gather(both, local)
            rows = torch.stack(both).double()
            variance, whole = rows.var(0).sum() / 2, rows.mean(0).square().sum()
            told[step] = [float(whole), float(variance), float(16 * variance / (whole - variance))]
        loss.backward()
        sidestep.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return list(model.parameters())

told = {}
plain, watched = train(False), train(True)
assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
report = sidestep.active_run().finish(timeout=30)
assert report.complete, report
if rank == 0:
    with open(sys.argv[1], "w") as file:
        json.dump(told, file)
dist.destroy_process_group()
"""


def test_ranks_tell_the_noise_of_the_gradient_they_reduce(place, tmp_path):
    pytest.importorskip("torch")
    script = place.written(RANKS)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = place.sidestep(
        "run", "--no-auto", "--", *launcher, str(script), str(tmp_path / "told.json"), OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    query = re.search(r"```sql\n(select step, global.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert query is not None
    rows = place.rows(query[1])
    assert [row[0] for row in rows] == [1, 2, 4]
    for step, *numbers in rows:
        assert numbers == pytest.approx(told[str(step)], rel=1e-3)
