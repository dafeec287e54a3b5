"""Labels of batches: where they are found, and how logits go with them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.journal_reader import read_records, read_scalars, read_tags
from support.watched import batch, offline
from torch import Tensor, nn

import sidestep
from sidestep.probes import logits

__all__ = ["offline"]

CROSS_ENTROPY, NLL_LOSS = F.cross_entropy, F.nll_loss


def classifier(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, classes))


def labels_of(step: int, classes: int = 3) -> Tensor:
    return torch.randint(0, classes, (8,), generator=torch.Generator().manual_seed(step))


def test_agreement_confidence_and_gradient_are_those_of_a_plain_computation(offline: dict[str, Any]) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run = sidestep.watch(model, optimizer, every=2, probes={"logits": True}, **offline)
    expected: dict[str, dict[int, float]] = {tag: {} for tag in (*logits.TARGET_TAGS, logits.GRADIENT_TAG)}
    for step in range(5):
        x, y = batch(step), labels_of(step)
        with torch.no_grad():
            share = model(x).double().softmax(1)
        numbers = (
            (share.argmax(1) == y).double().mean(),
            share[torch.arange(8), y].mean(),
            ((share - F.one_hot(y, 3)) / 8).norm(),  # what a mean of cross entropies sends back
        )
        if step in (1, 2, 4):
            for tag, number in zip(expected, numbers, strict=True):
                expected[tag][step] = float(number)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    run.finish(timeout=0)
    for tag, values in expected.items():
        assert read_scalars(offline["dir"], tag) == pytest.approx(values, rel=1e-5), tag


@pytest.mark.parametrize("form", ["module", "nll", "positions", "ignored"])
def test_labels_are_seen_in_every_form_of_the_loss(offline: dict[str, Any], form: str) -> None:
    model = classifier(12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, every=1, probes={"logits": True}, **offline)
    right = 0.0
    for step in range(2):
        out, y = model(batch(step)), labels_of(step, 4 if form == "positions" else 12)
        if form == "module":
            loss = nn.CrossEntropyLoss(reduction="sum")(out, y)
        elif form == "nll":
            loss = F.nll_loss(out.log_softmax(1), y)
        elif form == "positions":  # (rows, classes, positions): 4 classes at 3 positions
            out, y = out.view(8, 4, 3), torch.stack((y, (y + 1) % 4, y), 1)
            loss = F.cross_entropy(out, y)
        else:
            y[::2] = 7
            loss = F.cross_entropy(out, y, ignore_index=7)
        meant = y != 7 if form == "ignored" else torch.ones_like(y, dtype=torch.bool)
        right = float((out.argmax(1) == y)[meant].double().mean())
        loss.backward()
        optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/logits/agreement") == pytest.approx({1: right})


@pytest.mark.parametrize("is_early", [True, False])
def test_labels_of_a_loss_of_ones_own_are_told_of(offline: dict[str, Any], is_early: bool) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, every=1, probes={"logits": True, "data": True}, **offline)
    expected: dict[int, float] = {}
    for step in range(4):
        x, y = batch(step), labels_of(step)
        if is_early:
            run.batch(x, y)
        out = model(x)
        if not is_early:
            run.batch(labels=y)
        expected[step] = float((out.argmax(1) == y).double().mean())
        (out.exp().sum(1).log() - out[torch.arange(8), y]).mean().backward()
        optimizer.step()
    run.finish(timeout=0)
    del expected[0]
    assert read_scalars(offline["dir"], "train/logits/agreement") == pytest.approx(expected)
    assert list(read_scalars(offline["dir"], "train/data/label_classes")) == [1, 2, 3]


def test_accuracy_of_each_class_is_shipped_with_its_epoch(offline: dict[str, Any]) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    run = sidestep.watch(model, optimizer, every=1, probes={"logits": True}, **offline)
    expected: dict[tuple[str, float], list[float]] = {}
    for epoch in run.epoch((1, 2)):
        for split in ("train", "val"):
            model.train(split == "train")
            right, count = torch.zeros(3), torch.zeros(3)
            for step in range(10):
                x, y = batch(step), labels_of(step)
                with torch.set_grad_enabled(split == "train"):
                    out = model(x)
                    loss = F.cross_entropy(out, y)
                if split == "train":
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                if split == "val" or (epoch, step) != (1, 0):  # the run's first step is not sampled
                    right += torch.bincount(y[out.argmax(1) == y], minlength=3)
                    count += torch.bincount(y, minlength=3)
            expected[f"{split}/logits/class_accuracy", epoch] = (right / count).tolist()
    run.finish(timeout=0)
    tensors = [record for record in read_records(offline["dir"]) if record.kind == "tensor"]
    shipped = {(record.fields[0], record.epoch): list(struct.unpack("<3f", record.fields[3])) for record in tensors}
    assert {key: pytest.approx(values) for key, values in expected.items()} == shipped
    worst = [min(expected["val/logits/class_accuracy", epoch]) for epoch in (1, 2)]
    assert list(read_scalars(offline["dir"], "val/logits/worst_class_accuracy").values()) == pytest.approx(worst)


def test_a_class_of_few_predictions_is_not_the_worst() -> None:
    assert logits.worst([9, 0, 100, 9]) == (0.09, 0)
    assert logits.worst([0, 0, 9, 9]) is None


def test_of_logits_that_are_not_labels_nothing_is_said(offline: dict[str, Any]) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, every=1, probes={"logits": True, "data": True}, **offline)
    for step in range(3):
        F.cross_entropy(model(batch(step)), torch.rand(8, 3)).backward()  # probabilities of classes
        optimizer.step()
    run.finish(timeout=0)
    tags = read_tags(offline["dir"])
    assert not tags & {"train/logits/agreement", "train/data/label_entropy"}
    assert "train/logits/gradient_norm" in tags


def test_under_mixed_precision_the_gradient_is_that_of_the_loss(offline: dict[str, Any]) -> None:
    norms: list[float] = []
    for scale in (1.0, 1024.0):
        model = classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        folder = {**offline, "dir": offline["dir"] / str(scale)}
        run = sidestep.watch(model, optimizer, every=1, scaler=scaler, probes={"logits": True}, **folder)
        for step in range(2):
            scaler.scale(F.cross_entropy(model(batch(step)), labels_of(step))).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        run.finish(timeout=0)
        norms.append(read_scalars(folder["dir"], "train/logits/gradient_norm")[1])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_loss_functions_are_as_they_were_when_the_run_has_ended(offline: dict[str, Any]) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sidestep.watch(model, optimizer, probes={"logits": True, "data": True}, **offline)
    assert F.cross_entropy is not CROSS_ENTROPY
    torch.jit.script(nn.CrossEntropyLoss())(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    run.finish(timeout=0)
    assert (F.cross_entropy, F.nll_loss) == (CROSS_ENTROPY, NLL_LOSS)
