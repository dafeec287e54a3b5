"""Captured scripts of several ranks are one run."""

from __future__ import annotations

import sys

import pytest
from support.captured import CLOSE, captured, written
from support.place import Place


def test_two_ranks_of_torchrun_are_one_run(place: Place) -> None:
    text = """
    import os
    import torch
    from torch import nn
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if __name__ == "__main__":
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        torch.manual_seed(rank)
        model = DistributedDataParallel(nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(6):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            optimizer.step()
            os.write(1, f"loss{rank} {loss.item()}\\n".encode())  # in one piece: both ranks write into one pipe
        dist.destroy_process_group()
    """
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone")
    ran = captured(place, *torchrun, str(place.written(text)), OMP_NUM_THREADS="1")
    assert ran.code == 0, ran.errors
    for rank in (0, 1):
        stored = [value for _, value in ran.points("train/loss_total", rank=rank)]
        assert stored == pytest.approx(ran.said[f"loss{rank}"], **CLOSE)
    assert ran.errors.count("this script is captured") == 1


def test_ranks_that_a_script_spawns_are_one_run(place: Place) -> None:
    text = """
    import os
    import torch
    from torch import distributed as dist, multiprocessing, nn

    def work(rank):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        dist.init_process_group("gloo", init_method="file://" + __file__ + ".meet", rank=rank, world_size=2)
        model = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        dist.destroy_process_group()

    if __name__ == "__main__":
        multiprocessing.spawn(work, nprocs=2)
    """
    ran = captured(place, *written(place, text), OMP_NUM_THREADS="1")
    assert ran.code == 0, ran.errors
    assert [len(ran.points("train/loss_total", rank=rank)) for rank in (0, 1)] == [3, 3]
