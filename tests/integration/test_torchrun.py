"""A job of two ranks under torchrun: one run, two streams, one epoch document."""

import sys

import pytest
from support.place import tensorboard_points

RANKS = """
import os
import torch.distributed as dist
import sidestep

dist.init_process_group("gloo")
rank = dist.get_rank()
run = sidestep.init("ranks", config={"lr": 1.0})
for epoch in run.epoch(range(1, 3)):
    for _ in range(10):
        run.log({"loss": 10.0 * rank + run.step + 1})
dist.barrier()
report = run.finish(timeout=30)
assert report.complete, report
dist.destroy_process_group()
"""


def test_two_ranks_are_one_run_whose_epochs_put_both_together(place):
    pytest.importorskip("torch")
    script = place.written(RANKS)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = place.sidestep("run", "--", *launcher, str(script), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert place.rows("select run, rank, first_seq, records, reason from gaps") == []
    [(run, state, world)] = place.rows("select run, state, world_size from runs")
    assert run.startswith("torchrun-")
    assert (state, world) == ("finished", 2)
    assert place.rows("select rank, attempt, cause from attempts order by rank") == [
        (0, 0, "finished"),
        (1, 0, "finished"),
    ]
    place.check_whole(run, key_sets=1)
    losses = {rank: [10.0 * rank + step for step in range(20)] for rank in (0, 1)}
    for rank in (0, 1):
        assert place.values(run, "train/loss", rank=rank) == list(enumerate(losses[rank]))
        shown = tensorboard_points(place.tensorboard(run, project="ranks", rank=rank))
        assert [value for tag, _, value in shown if tag == "train/loss"] == losses[rank]
    for epoch, steps in ((1, slice(0, 10)), (2, slice(10, 20))):
        document = place.document(run, epoch, project="ranks")
        both = losses[0][steps] + losses[1][steps]
        statistics = document["metrics"]["train/loss"]
        assert statistics["n"] == 20
        assert statistics["mean"] == pytest.approx(sum(both) / 20)
        assert (statistics["min"], statistics["max"]) == (min(both), max(both))
