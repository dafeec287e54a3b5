"""A real training with Accelerate: what `accelerator.log` is given arrives."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.journal_reader import read_records, read_scalars
from support.watched import offline, small_net

import sidestep
from sidestep.errors import SidestepWarning, UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    accelerate = pytest.importorskip("accelerate")
    from sidestep.accelerate import SidestepTracker

__all__ = ["offline"]
pytestmark = pytest.mark.filterwarnings("ignore", "error::sidestep.errors.SidestepWarning")


@pytest.fixture(autouse=True)
def _forget_state() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def begun(offline: dict[str, Any], **config: Any) -> Any:
    accelerator = accelerate.Accelerator(cpu=True, log_with=SidestepTracker(**offline))
    accelerator.init_trackers("not told to a tracker of one's own", config=config)
    return accelerator


def test_a_watched_training_records_into_one_run(offline: dict[str, Any]) -> None:
    accelerator = begun(offline, lr=0.1)
    model = small_net()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    run = sidestep.watch(model, optimizer, every=1)
    assert accelerator.get_tracker("sidestep", unwrap=True) is run
    losses = []
    for step in range(4):
        loss = model(torch.randn(8, 6)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        accelerator.log({"loss": loss, "val_loss": 2 * losses[-1], "mine/kept": 1.0}, step=step)
    accelerator.end_training()
    assert not run.is_live
    assert read_scalars(offline["dir"], "train/loss") == {step: pytest.approx(loss) for step, loss in enumerate(losses)}
    assert read_scalars(offline["dir"], "val/loss")[3] == pytest.approx(2 * losses[-1])
    assert read_scalars(offline["dir"], "mine/kept") == dict.fromkeys(range(4), 1.0)
    assert list(read_scalars(offline["dir"], "train/gradients/global_norm")) == [0, 1, 2, 3]


def test_settings_texts_nested_numbers_and_images_arrive(offline: dict[str, Any]) -> None:
    accelerator = begun(offline, lr=0.1)
    accelerator.log({"said": "hello", "both": {"a": 1.0, "b": 2.0}}, step=5)
    accelerator.trackers[0].log_images({"seen": [np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2))]}, step=6)
    accelerator.end_training()
    records = read_records(offline["dir"])
    texts = [(record.step, *record.fields) for record in records if record.kind == "text"]
    assert (5, "text", "said", "hello") in texts
    assert {"lr": 0.1} in [json.loads(text) for _, kind, _, text in texts if kind == "config"]
    assert read_scalars(offline["dir"], "both/b") == {5: 2.0}
    images = [(record.step, record.fields[1]) for record in records if record.kind == "figure"]
    assert images == [(6, "seen/0"), (6, "seen/1")]


def test_what_cannot_be_recorded_is_said_and_never_raised(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDESTEP_STRICT", "0")
    accelerator = begun(offline)
    with pytest.warns(SidestepWarning, match="3 is no name"):
        accelerator.log({3: 1.0, "loss": 2.0}, step=0)
    with pytest.warns(SidestepWarning):
        accelerator.log("loss", step=0)
    with pytest.warns(SidestepWarning):
        accelerator.trackers[0].log_images({"seen": 1.0})
    accelerator.end_training()
    assert read_scalars(offline["dir"], "train/loss") == {0: 2.0}


def test_calls_before_init_trackers_do_nothing() -> None:
    before = sidestep.active_run()
    tracker = SidestepTracker()
    assert tracker.tracker is None
    accelerate.PartialState(cpu=True)
    tracker.log({"loss": 1.0})
    tracker.log_images({})
    tracker.store_init_configuration({})
    tracker.finish()
    assert tracker.tracker is None
    assert sidestep.active_run() is before


def test_an_unknown_keyword_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"SidestepTracker\(\) takes no 'projct'"):
        SidestepTracker(projct="x")
