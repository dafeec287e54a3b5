"""Accuracy, confidence and losses that pass by torch's loss functions, against a plain recomputation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.auto.predictions import Call, _added, _call, _measured, _named_split

LARGE = 2**30


def measured(name: str, *args: Any, limit: int = LARGE, **kwargs: Any) -> tuple[float, ...]:
    result = getattr(F, name)(*args, **kwargs)
    call = _call(name, args, kwargs, result)
    assert isinstance(call, Call)
    sums = _measured(call, limit)
    assert isinstance(sums, tuple)
    return sums


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(20, 5), (4, 5, 7), (2, 5, 3, 4)], ids=["rows", "positions", "pixels"])
def test_accuracy_and_confidence_are_those_of_the_predictions(shape: tuple[int, ...]) -> None:
    scores = logits(*shape)
    target = torch.arange(scores.numel() // 5).reshape(shape[0], *shape[2:]) % 5
    right, rows, confidence, asked, loss, weight = measured("cross_entropy", scores, target)
    assert (rows, asked, weight) == (target.numel(),) * 3
    assert right == (scores.argmax(1) == target).sum().item()
    assert confidence == pytest.approx(scores.softmax(1).amax(1).sum().item(), rel=1e-5)
    assert loss / weight == pytest.approx(F.cross_entropy(scores, target).item(), rel=1e-5)


def test_a_single_row_without_a_batch_is_a_row() -> None:
    right, rows, *_ = measured("cross_entropy", torch.tensor([0.0, 3.0]), torch.tensor(1))
    assert (right, rows) == (1, 1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [-100, 2])
def test_ignored_targets_count_nowhere(reduction: str, ignored: int) -> None:
    scores, target = logits(30, 5).log_softmax(1), torch.arange(30) % 5
    target[::4] = ignored
    right, rows, confidence, _, loss, weight = measured(
        "nll_loss", scores, target, ignore_index=ignored, reduction=reduction
    )
    kept = target != ignored
    assert (rows, weight) == (kept.sum().item(),) * 2
    assert right == (scores.argmax(1) == target)[kept].sum().item()
    assert confidence == pytest.approx(scores[kept].amax(1).exp().sum().item(), rel=1e-5)
    assert loss / weight == pytest.approx(F.nll_loss(scores, target, ignore_index=ignored).item(), rel=1e-5)


def test_a_batch_of_ignored_targets_alone_adds_nothing() -> None:
    sums = measured("cross_entropy", logits(4, 3), torch.full((4,), -100))
    assert sums == (0, 0, 0, 0, 0, 0)


def test_targets_that_are_probabilities_have_a_loss_alone() -> None:
    scores, target = logits(6, 3), logits(6, 3, seed=1).softmax(1)
    sums = measured("cross_entropy", scores, target)
    assert sums[:4] == (0, 0, 0, 0)
    assert sums[4] / sums[5] == pytest.approx(F.cross_entropy(scores, target).item())


def test_a_large_batch_is_looked_at_in_part() -> None:
    scores, target = logits(1000, 10), torch.arange(1000) % 10
    right, rows, _, _, loss, weight = measured("cross_entropy", scores, target, limit=1000)
    assert rows == 100
    assert right == (scores[::10].argmax(1) == target[::10]).sum().item()
    assert (weight, loss / weight) == (1000, pytest.approx(F.cross_entropy(scores, target).item(), rel=1e-5))


def test_binary_predictions_are_right_on_their_side_of_one_half() -> None:
    scores, target = logits(50), (logits(50, seed=1) > 0).float()
    right, rows, confidence, *_ = measured("binary_cross_entropy_with_logits", scores, target)
    assert (right, rows) == (((scores > 0) == (target > 0.5)).sum().item(), 50)
    probability = scores.sigmoid()
    assert confidence == pytest.approx(torch.maximum(probability, 1 - probability).sum().item(), rel=1e-5)
    assert measured("binary_cross_entropy", probability, target)[:2] == (right, rows)


def test_targets_between_zero_and_one_have_no_right_or_wrong() -> None:
    assert measured("binary_cross_entropy", torch.rand(8), torch.rand(8))[:4] == (0, 0, 0, 0)


def test_a_regression_has_a_loss_alone() -> None:
    sums = measured("mse_loss", logits(6, 2), logits(6, 2, seed=1))
    assert sums[:4] == (0, 0, 0, 0)
    assert sums[4] / sums[5] == pytest.approx(F.mse_loss(logits(6, 2), logits(6, 2, seed=1)).item())


def test_batches_add_up() -> None:
    first, second = (measured("cross_entropy", logits(8, 3, seed=seed), torch.arange(8) % 3) for seed in (0, 1))
    assert _added(first, second) == tuple(a + b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("where", ["meta", "fake"])
def test_tensors_without_numbers_are_left_alone(where: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    scores = torch.empty(4, 3, device="meta") if where == "meta" else FakeTensorMode().from_tensor(torch.zeros(4, 3))
    target = torch.zeros(4, dtype=torch.long, device=scores.device)
    assert _call("cross_entropy", (scores, target), {}, torch.zeros(())) is None


def test_a_variable_that_goes_through_splits_names_the_validation() -> None:
    def evaluate(split: str) -> str | None:
        assert split
        return _named_split()

    def evaluate_what_has_no_name() -> str | None:
        return _named_split()

    def go_on() -> str | None:
        split = "val"
        found = evaluate_what_has_no_name()
        assert split
        return found

    assert [evaluate(word) for word in ("train", "test", "other")] == ["train_eval", "test", None]
    assert go_on() == "val"
    assert evaluate_what_has_no_name() is None
