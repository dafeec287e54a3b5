"""Features: which rows of a matrix are shipped, in which precision, and what the probe takes of a model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.journal_reader import read_records
from support.watched import batch, offline, small_net, take_step
from torch import Tensor, nn

import sidestep
from sidestep import features
from sidestep.errors import SidestepWarning, UsageError

__all__ = ["offline"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shipped(folder: Any) -> dict[tuple[str, int], np.ndarray]:
    """Tensors of a run, by name and step."""
    found = {}
    for record in read_records(folder):
        if record.kind == "tensor":
            name, dtype, shape, data = record.fields
            found[name, record.step] = np.frombuffer(data, dtype).reshape(shape)
    return found


def test_a_small_matrix_is_taken_whole() -> None:
    rows = normal(256, 3)
    assert torch.equal(features.sampled(rows), rows)


@pytest.mark.parametrize("count", [257, 512, 5000, 16384, 100_003])
def test_of_many_rows_at_most_256_are_taken_from_first_to_last(count: int) -> None:
    numbers = features.sampled(torch.arange(count).reshape(-1, 1))[:, 0]
    assert 100 < len(numbers) <= 256
    assert numbers[0] == 0
    assert numbers[-1] >= count - count // 100 - 3
    assert len(set(numbers.diff().tolist())) == 1


def test_no_position_of_a_sequence_is_preferred() -> None:
    positions = torch.arange(64).repeat(128).reshape(128, 64, 1)
    assert len(features.sampled(positions).unique()) == 64


def test_rows_stay_as_they_were_when_the_matrix_changes() -> None:
    rows = normal(4, 3).requires_grad_()
    taken = features.sampled(rows)
    before = rows.detach().clone()
    with torch.no_grad():
        rows.zero_()
    assert torch.equal(taken, before)
    assert not taken.requires_grad


@pytest.mark.parametrize("given", [torch.ones(3), torch.ones(0, 3), 1.0])
def test_what_is_no_matrix_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="shape"):
        features.sampled(given)


@pytest.mark.parametrize("kind", [torch.as_tensor, lambda rows: rows.numpy()])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (normal(64, 8), "float16"),
        (normal(64, 8) * 1e-3, "float16"),
        (torch.ones(64, 8), "float16"),  # collapsed for good
        (normal(64, 8) * 1e5, "float32"),  # beyond the range
        (normal(64, 8) * 1e-7, "float32"),  # and below it
        (100 + normal(64, 8) * 0.01, "float32"),  # a spread that rounding would drown
        (torch.full((64, 8), math.nan), "float32"),
        (torch.full((64, 8), math.inf), "float32"),
    ],
)
def test_precision_is_halved_where_nothing_is_lost_by_it(rows: Tensor, expected: str, kind: Any) -> None:
    compact = features.compact(kind(rows))
    assert str(compact.dtype).removeprefix("torch.") == expected
    if math.isfinite(float(rows.sum())):
        spread, exact = np.asarray(compact).astype(np.float64).std(0), rows.double().numpy().std(0)
        assert spread == pytest.approx(exact, rel=1e-3, abs=1e-12)


def test_features_are_shipped_under_their_name(offline: dict[str, Any]) -> None:
    run = sidestep.init(**offline)
    rows = normal(8, 50, 4).to(torch.bfloat16)
    run.features("train/collapse/level0", rows, step=7)
    run.features("wide", normal(3, 2).numpy() * 1e6, split="val", step=8)
    run.finish(timeout=0)
    found = shipped(offline["dir"])
    level = found["train/collapse/level0_features", 7]
    assert level.dtype == np.float16
    assert level.tolist() == rows.reshape(-1, 4)[::3].half().tolist()
    assert found["val/wide_features", 8].dtype == np.float32


# --- the probe ---------------------------------------------------------------------------------------------------


def test_outputs_of_modules_are_shipped_at_sampled_steps(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {"modules": ["blocks.0", "head"], "every": 2}
    run = sidestep.watch(model, optimizer, probes={"features": settings}, **offline)
    expected: dict[tuple[str, int], Tensor] = {}
    for step in range(5):
        with torch.no_grad():
            first = model.blocks[0](batch(step))
            middle = torch.tanh(model.blocks[1](torch.tanh(first)))
            if step in (1, 2, 4):  # the first waits for a model that compiles itself
                expected["train/features/blocks.0_features", step] = first
                expected["train/features/head_features", step] = model.head(middle)
        take_step(model, optimizer, step)
        assert not model.head._forward_hooks
    run.finish(timeout=0)
    found = shipped(offline["dir"])
    assert set(found) == set(expected)
    for key, rows in expected.items():
        assert found[key] == pytest.approx(rows.numpy(), abs=2e-3)


def test_channels_of_images_are_the_features(offline: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Flatten(), nn.Linear(80, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"features": {"modules": ["0"], "every": 1}}, **offline)
    for step in range(2):
        images = normal(2, 1, 6, 6, seed=step)
        with torch.no_grad():
            expected = model[0](images).permute(0, 2, 3, 1).reshape(-1, 5)
        model(images).sum().backward()
        optimizer.step()
    run.finish(timeout=0)
    assert shipped(offline["dir"])["train/features/0_features", 1] == pytest.approx(expected.numpy(), abs=2e-3)


def test_modules_that_are_not_there_are_said(offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.warns(SidestepWarning, match="has no module 'encoder'; it has: blocks"):
        sidestep.watch(model, optimizer, probes={"features": {"modules": ["encoder"]}}, **offline)
    with pytest.raises(UsageError, match="modules="):
        sidestep.watch(model, optimizer, probes={"features": True}, **offline)
