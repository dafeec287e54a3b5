"""What parts of a sharded model count for: squares of shares add up to one over the ranks, whatever the placement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.journal_reader import read_records, read_scalars, read_tags
from support.watched import offline, small_net, take_step
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import sidestep
from sidestep.probes import Placed, sample
from sidestep.probes.effectiveness import TAGS as EFFECTIVENESS
from sidestep.probes.gradients import measure
from sidestep.probes.sharding import Sharding, is_partial, replicated
from sidestep_schemas import catalog

__all__ = ["offline"]


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Two times two ranks, of which this process is the first, and the others are nobody."""
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
    dist.destroy_process_group()


def placed(mesh: DeviceMesh, *placements: Placement, local: Tensor | None = None) -> nn.Parameter:
    return nn.Parameter(DTensor.from_local(torch.ones(4) if local is None else local, mesh, placements))


def test_a_model_of_plain_tensors_is_whole_on_each_rank() -> None:
    parameter = nn.Parameter(torch.ones(3))
    sharding = Sharding(None, [parameter])
    assert not sharding.is_sharded
    assert sharding.shares([parameter]) == {}
    assert sharding.of_whole == 1.0
    assert sharding.reductions(("weight_norm",)) == ()


def test_a_model_that_is_replicated_everywhere_is_whole_on_each_rank(mesh: DeviceMesh) -> None:
    parameter = placed(mesh, Replicate(), Replicate())
    sharding = Sharding(None, [parameter, nn.Parameter(torch.ones(2))])
    assert not sharding.is_sharded
    assert sharding.shares([parameter]) == {}
    assert sharding.reductions(("weight_norm",)) == ()


def test_squares_of_shares_add_up_to_one_copy(mesh: DeviceMesh) -> None:
    both, copied = placed(mesh, Shard(0), Shard(0)), placed(mesh, Replicate(), Shard(0))
    everywhere, plain = placed(mesh, Replicate(), Replicate()), nn.Parameter(torch.ones(4))
    narrow = placed(mesh["parts"], Shard(0))
    sharding = Sharding(None, [both, copied, everywhere, plain, narrow])
    assert sharding.is_sharded
    copies = {both: 1, copied: 2, everywhere: 4, plain: 4, narrow: 2}
    for parameter, count in copies.items():
        assert sharding.share(parameter) == pytest.approx(1 / math.sqrt(count))
    assert sharding.of_whole == 0.5
    assert both not in sharding.shares(copies)


def test_shares_of_ranks_that_are_trained_together_are_divided_among_them(mesh: DeviceMesh) -> None:
    model = nn.Module()
    model.weight = placed(mesh["parts"], Shard(0))
    wrapped = nn.Module()
    wrapped.__class__ = nn.parallel.DistributedDataParallel  # as one around tensor parallelism; fakes cannot broadcast
    object.__setattr__(wrapped, "process_group", mesh["copies"].get_group())
    sharding = Sharding(wrapped, [model.weight])
    assert sharding.share(model.weight) == pytest.approx(1 / math.sqrt(2))


def test_norms_and_samples_count_by_their_shares(mesh: DeviceMesh) -> None:
    rows = torch.arange(1.0, 5.0)
    parameter = placed(mesh, Replicate(), Shard(0), local=rows)
    parameter.grad = DTensor.from_local(2 * rows, mesh, (Replicate(), Shard(0)))
    shares = Sharding(None, [parameter]).shares([parameter])
    (norms,) = measure([Placed(parameter, 0)], None, shares)
    assert norms.values.item() == pytest.approx(2 * float(rows.norm()) / math.sqrt(2))
    (taken,) = sample.coordinates([Placed(parameter, 0)], shares=shares)
    sampled = taken.rows()
    taken.read(sampled)
    assert taken.norms(sampled).values.item() == pytest.approx(float(rows.norm()) / math.sqrt(2))


def test_a_gradient_that_is_still_to_be_added_up_has_no_norm(mesh: DeviceMesh) -> None:
    parameter = placed(mesh, Replicate(), Replicate())
    parameter.grad = DTensor.from_local(torch.ones(4), mesh, (Replicate(), Partial()))
    assert is_partial(parameter.grad)
    assert measure([Placed(parameter, 0)]) == []


def test_only_what_every_rank_has_is_told_of_clipping(mesh: DeviceMesh) -> None:
    norm = torch.tensor(3.0)
    assert replicated(norm) is norm
    told = replicated(DTensor.from_local(norm, mesh, (Replicate(), Replicate())))
    assert told is not None
    assert told.item() == 3.0
    assert replicated(DTensor.from_local(norm, mesh, (Replicate(), Partial()))) is None


def test_reductions_of_a_sharded_model_are_those_of_the_catalogue(mesh: DeviceMesh) -> None:
    sharding = Sharding(None, [placed(mesh, Replicate(), Shard(0))])
    tags = ("train/gradients/head", "train/updates/layer_1", "train/gradients/zero_share", "train/lr", "mine")
    weights = ("l2", "rms:train/update_weights/layer_1", "mean:train/gradient/elements", "", "")
    assert sharding.reductions(tags) == weights


class Sharded(nn.Module):
    """A matrix of which this rank has half, and one that every rank has whole."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.part = placed(mesh, Replicate(), Shard(0), local=torch.eye(3))
        self.whole = placed(mesh, Replicate(), Replicate(), local=torch.eye(4))


@pytest.mark.filterwarnings("ignore::sidestep.errors.SidestepWarning")
def test_what_a_part_cannot_tell_of_the_whole_is_said_once_and_left_out(
    mesh: DeviceMesh, offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDESTEP_STRICT", "0")
    model = Sharded(mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, foreach=False)
    probes = {"effectiveness": 1, "weights": {"every": 1, "stable_rank": True}}
    blocks = {"part": "part", "whole": "whole"}
    run = sidestep.watch(model, optimizer, every=1, probes=probes, blocks=blocks, rank=0, world_size=4, **offline)
    for _ in range(2):
        for entry in model.parameters():
            entry.grad = torch.ones_like(entry)
        optimizer.step()
    assert run.stats["refused"] == {"effectiveness": 1, "weights": 1}
    run.finish(timeout=0)
    tags = read_tags(offline["dir"])
    assert "weight_norm" in tags
    assert {tag for tag in tags if "stable_rank" in tag} == {
        "train/weights/stable_rank/whole",
        "train/weights/stable_rank_min/whole",
    }
    assert not {tag for tag in tags if tag in EFFECTIVENESS}


def test_what_weighs_is_itself_in_the_catalogue() -> None:
    weights = [metric.sharded.partition(":")[2] for metric in catalog.METRICS]
    declared = {metric.tag for metric in catalog.METRICS}
    assert {weight for weight in weights if weight} <= declared


def test_a_model_that_is_not_sharded_declares_no_reductions(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer)
    run.finish(timeout=0)
    assert all(record.fields[4] == [] for record in read_records(offline["dir"]) if record.kind == "schema")
    assert read_scalars(offline["dir"], "train/update_weights/global_norm") == {}
