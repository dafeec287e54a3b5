"""A model sharded over two processes (FSDP2) and one that is replicated (DDP): all ranks together say what one says."""

import sys

import pytest

TRAINING = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
import sidestep

HOW, LIMIT = os.environ["HOW"], float(os.environ["LIMIT"])
WORLD, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
if WORLD > 1:
    dist.init_process_group("gloo")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 5)])
        self.head = nn.Linear(5, 1)  # one row: rank 1 has nothing of it
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x):
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(x) * self.temperature


def collectives():
    # How many this process has joined so far.
    groups = dist.distributed_c10d._world.pg_map if WORLD > 1 else ()
    return sum(group._get_sequence_number_for_group() for group in groups)


def train(is_watched):
    torch.manual_seed(3)
    net = model = Net()
    if HOW == "fsdp":
        mesh = init_device_mesh("cpu", (WORLD,))
        for block in net.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh, ignored_params={net.temperature})  # it stays a plain tensor on every rank
    if HOW == "ddp":
        model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
    if is_watched:
        probes = {"weights": 1, "moments": 1, "gradients": {"every": 1, "parameters": True}}
        run = sidestep.watch(model, optimizer, every=1, probes=probes, id=os.environ["ID"], project="ranks")
        epochs = run.epoch(range(1, 3))
    else:
        epochs = range(1, 3)
    before = collectives()
    for epoch in epochs:
        for step in range(3):
            optimizer.zero_grad()
            rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * epoch + step))
            rows = rows.chunk(WORLD)[RANK]
            model(rows).square().mean().backward()
            if HOW == "fsdp":
                dist.all_reduce(net.temperature.grad, op=dist.ReduceOp.AVG)
            if LIMIT:
                clip = sidestep.clip_grad_norm_ if is_watched else nn.utils.clip_grad_norm_
                clip([entry for entry in net.parameters() if entry is not net.temperature], LIMIT)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            model(rows)
        model.train()
    if is_watched:
        report = run.finish(timeout=30)
        assert report.complete, report
    ends = [entry.to_local() if isinstance(entry, DTensor) else entry.detach() for entry in net.parameters()]
    return [end.clone() for end in ends], collectives() - before


plain, watched = train(False), train(True)
assert all(torch.equal(*pair) for pair in zip(plain[0], watched[0])), "training is not the same bit for bit"
assert plain[1] == watched[1], f"{watched[1]} collectives instead of {plain[1]}"
assert plain[1] > 0 or WORLD == 1
if WORLD > 1:
    dist.destroy_process_group()
"""

#: Of a cosine the ranks give a weighted mean, of what the collector derives each rank has its own; times and throughput
#: are the machine's.
NOT_THE_SAME = (
    *("perf/", "train/performance/", "train/activations/", "system/"),
    *("train/gradients/cosine_previous", "train/flow/"),
)


@pytest.fixture
def trained(place):
    """Trains under a name, in so many processes; the place where it is stored."""
    pytest.importorskip("torch")
    script = str(place.written(TRAINING))

    def trained(run: str, how: str, processes: int, limit: float = 0.0):
        command = (sys.executable, script)
        if processes > 1:
            launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
            command = (sys.executable, *launcher, script)
        done = place.start(*command, HOW=how, ID=run, LIMIT=str(limit), OMP_NUM_THREADS="1")
        _, errors = done.communicate(timeout=120)
        assert done.returncode == 0, errors
        return place

    place.up()
    return trained


def over_ranks(place, run: str) -> dict[tuple[str, int], float]:
    rows = place.rows("select metric, step, value from points_over_ranks where run = ?", run)
    return {(metric, step): value for metric, step, value in rows if not metric.startswith(NOT_THE_SAME)}


def reductions(place, run: str) -> dict[str, str]:
    return dict(place.rows("select distinct metric, reduction from points_over_ranks where run = ?", run))


@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_a_sharded_model_has_the_norms_of_the_whole(trained, limit):
    trained("alone", "alone", 1, limit)
    place = trained("sharded", "fsdp", 2, limit)
    alone, sharded = over_ranks(place, "alone"), over_ranks(place, "sharded")
    assert {metric for metric, _ in alone} >= {
        *("train/gradients/global_norm", "train/gradients/root", "train/gradients_of/head.weight", "weight_norm"),
        *("grad_norm", "train/gradients/zero_share", "train/updates/relative_update_norm", "train/updates/block_1"),
        *("train/weights/distance_from_start", "train/optimizer/first_moment_norm", "train/weights/head"),
    }
    assert {key: sharded[key] for key in alone} == pytest.approx(alone, rel=2e-4, abs=1e-6)
    how = reductions(place, "sharded")
    assert how["train/gradients/block_0"] == how["weight_norm"] == "l2"
    assert how["train/updates/block_0"] == "rms"
    assert how["train/lr"] == "mean"
    parts = [place.values("sharded", "train/gradients/block_0", rank=rank)[0][1] for rank in (0, 1)]
    assert parts[0] != parts[1]
    assert max(parts) < sharded["train/gradients/block_0", 0]

    if limit:
        before, clipped = "train/gradient/global_norm_before_clip", "train/gradient/clipped"
        assert place.values("sharded", before, rank=0) == place.values("sharded", before, rank=1)
        assert all(value == 1.0 for _, value in place.values("sharded", clipped, rank=1))

    steps = range(3, 6)
    for tag in ("train/gradients/global_norm", "train/updates/block_1", "weight_norm"):
        statistics = place.document("sharded", 2, project="ranks")["metrics"][tag]
        assert statistics["n"] == 3
        assert statistics["mean"] == pytest.approx(sum(sharded[tag, step] for step in steps) / 3)
        assert statistics["last"] == pytest.approx(sharded[tag, 5])
        assert statistics == pytest.approx(place.document("alone", 2, project="ranks")["metrics"][tag], rel=2e-3)


def test_a_replicated_model_says_on_each_rank_what_one_alone_says(trained):
    trained("alone", "alone", 1)
    place = trained("replicated", "ddp", 2)
    alone, replicated = over_ranks(place, "alone"), over_ranks(place, "replicated")
    assert {key: replicated[key] for key in alone} == pytest.approx(alone, rel=2e-4, abs=1e-6)
    assert place.rows("select * from reductions") == []
    assert set(reductions(place, "replicated").values()) == {"mean", "max", "sum"}
    tag = "train/gradients/global_norm"
    assert place.values("replicated", tag, rank=0) == place.values("replicated", tag, rank=1)
