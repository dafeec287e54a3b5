"""Real fits of Keras on torch: what `fit` computes arrives."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import numpy as np
import pytest
from support.journal_reader import read_records, read_scalars
from support.watched import offline

import sidestep
from sidestep.errors import UsageError

os.environ.setdefault("KERAS_BACKEND", "torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras")
    from sidestep.keras import SidestepCallback

__all__ = ["offline"]
pytestmark = [
    pytest.mark.filterwarnings("ignore", "error::sidestep.errors.SidestepWarning"),
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="KERAS_BACKEND is another one"),
]


class Keep(keras.callbacks.Callback):
    """What Keras tells any callback."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[float] = []
        self.epochs: list[dict[str, float]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append(float(logs["loss"]))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append({name: float(value) for name, value in logs.items()})


def fit(offline: dict[str, Any], *more: Any) -> Keep:
    kept = Keep()
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse", metrics=["mae"])
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    data = {"validation_data": (rows[:4], rows[:4, :1]), "batch_size": 4, "epochs": 2, "verbose": 0}
    model.fit(rows[4:], rows[4:, :1], callbacks=[kept, SidestepCallback(**offline), *more], **data)
    return kept


def test_batches_epochs_and_validations_arrive_as_keras_has_them(offline: dict[str, Any]) -> None:
    kept = fit(offline)
    folder = offline["dir"]
    assert read_scalars(folder, "train/loss") == {step: pytest.approx(loss) for step, loss in enumerate(kept.batches)}
    ends = {3: kept.epochs[0], 7: kept.epochs[1]}
    for tag, name in (
        ("train/loss_epoch", "loss"),
        ("train/mae_epoch", "mae"),
        ("val/loss", "val_loss"),
        ("val/mae", "val_mae"),
    ):
        assert read_scalars(folder, tag) == {step: pytest.approx(logs[name]) for step, logs in ends.items()}
    assert read_scalars(folder, "train/lr") == dict.fromkeys(ends, pytest.approx(0.05))
    epochs = [record.epoch for record in read_records(folder) if "val/loss" in (record.values or {})]
    assert epochs == [1.0, 2.0]


def test_epochs_settings_and_the_end_are_recorded(offline: dict[str, Any]) -> None:
    fit(offline)
    records = read_records(offline["dir"])
    told = [(record.fields[0], json.loads(record.fields[1])) for record in records if record.kind == "lifecycle"]
    assert [name for name, _ in told] == ["start", "epoch_begin", "epoch_end", "epoch_begin", "epoch_end", "end"]
    assert told[-1][1]["status"] == "finished"
    configs = [
        json.loads(record.fields[2]) for record in records if record.kind == "text" and record.fields[0] == "config"
    ]
    assert configs[-1]["optimizer"]["learning_rate"] == pytest.approx(0.05)


def test_a_run_of_the_script_s_stays_open(offline: dict[str, Any]) -> None:
    with sidestep.init(**offline) as run:
        fit({})
        assert run.is_live


def test_an_unknown_keyword_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"SidestepCallback\(\) takes no 'every'"):
        SidestepCallback(every=3)
