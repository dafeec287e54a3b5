"""Networks of more tensors than are gathered at once: every one of them counts, and in its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars
from support.watched import flat, offline
from torch import nn

import sidestep
from sidestep.probes import Placed, by_kind, sample
from sidestep.probes.norms import AT_ONCE

__all__ = ["offline"]

SHAPES = ((7,), (4, 5), (), (3, 2, 2))


def many(count: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(SHAPES[number % 4], generator=generator)) for number in range(count)]


def test_norms_and_updates_of_very_many_tensors_are_those_of_all(offline: dict[str, Any]) -> None:
    model = nn.ParameterDict({"stem": nn.ParameterList(many(AT_ONCE + 5)), "rest": nn.ParameterList(many(2 * AT_ONCE))})
    parts = {name: list(model[name].parameters()) for name in ("stem", "rest")}
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = None if number % 50 == 3 else torch.full_like(parameter, 0.01 * number)
    gradients = {name: [one.grad for one in part if one.grad is not None] for name, part in parts.items()}
    before = {name: flat(part) for name, part in parts.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    optimizer.step()
    run.finish(timeout=0)
    for name, part in parts.items():
        (norm,) = read_scalars(offline["dir"], f"train/gradients/{name}").values()
        assert norm == pytest.approx(float(flat(gradients[name]).norm()), rel=1e-5)
        (update,) = read_scalars(offline["dir"], f"train/updates/{name}").values()
        assert update == pytest.approx(float((flat(part) - before[name]).norm() / before[name].norm()), rel=1e-4)


def test_a_sample_of_very_many_tensors_has_each_in_its_place() -> None:
    parameters = many(AT_ONCE * 2 + 1)
    (taken,) = sample.coordinates([Placed(parameter, 0) for parameter in parameters])
    rows = taken.rows()
    taken.read(rows)
    assert torch.equal(rows.whole, torch.cat([parameter.detach().flatten() for parameter in parameters]))


def test_samples_of_several_types_and_layouts_are_read_together() -> None:
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    gaps = torch.randn(6, 8)[:, ::2]
    entries = [nn.Parameter(image), nn.Parameter(torch.randn(5).bfloat16()), nn.Parameter(gaps)]
    (taken,) = sample.coordinates([Placed(entry, 0) for entry in entries])
    rows = taken.rows()
    taken.read(rows)
    expected = [image.permute(0, 2, 3, 1).flatten(), entries[1].detach().float(), gaps.flatten()]
    assert torch.equal(rows.whole, torch.cat(expected))


def test_groups_of_a_kind_are_no_larger_than_what_is_gathered_at_once() -> None:
    entries = [(torch.zeros(1, dtype=(torch.float32, torch.float64)[number % 2]), number) for number in range(1000)]
    groups = list(by_kind(entries))
    assert max(map(len, groups)) == AT_ONCE
    assert all(len({tensor.dtype for tensor, _ in group}) == 1 for group in groups)
    assert sorted(number for group in groups for _, number in group) == list(range(1000))
