"""Real trainings of transformers' Trainer: what it logs arrives, at its step and epoch, with the value it has."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from support.journal_reader import read_events, read_records, read_scalars, read_tags
from support.watched import offline

import sidestep
from sidestep.errors import UsageError

pytest.importorskip("accelerate")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    from sidestep.huggingface import SidestepCallback

__all__ = ["offline"]
pytestmark = pytest.mark.filterwarnings("ignore", "error::sidestep.errors.SidestepWarning")

STEPS = 8  # of an epoch


class Model(torch.nn.Module):
    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
        self.head = torch.nn.Linear(4, 1)
        self.fail_at, self.calls = fail_at, 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("out of luck")
        out = self.head(torch.tanh(self.layer(x)))[:, 0]
        return {"loss": (out - labels).square().mean(), "logits": out}


def rows(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"x": torch.randn(3, generator=generator), "labels": torch.zeros(())} for _ in range(count)]


def train(
    offline: dict[str, Any], *callbacks: Any, model: Model | None = None, resume: bool = False, **given: Any
) -> Any:
    defaults = {
        "output_dir": str(offline["dir"] / "out"),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        "dataloader_pin_memory": False,
    }
    args = transformers.TrainingArguments(**{**defaults, **given})
    trainer = transformers.Trainer(
        model or Model(), args, train_dataset=rows(4 * STEPS, 0), eval_dataset=rows(8, 1), callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def history(trainer: Any, name: str) -> dict[int, Any]:
    return {entry["step"] - 1: pytest.approx(entry[name]) for entry in trainer.state.log_history if name in entry}


def test_all_that_is_logged_arrives_at_its_step(offline: dict[str, Any]) -> None:
    trainer = train(offline, SidestepCallback(every=4, **offline))
    for name in ("loss", "grad_norm", "learning_rate", "train_loss", "train_runtime"):
        logged = history(trainer, name)
        assert logged
        assert read_scalars(offline["dir"], f"train/{name}") == logged
    assert list(read_scalars(offline["dir"], "train/loss")) == list(range(1, 2 * STEPS, 2))


def test_evaluations_stand_at_their_place_in_the_epoch(offline: dict[str, Any]) -> None:
    trainer = train(offline, SidestepCallback(**offline), eval_strategy="steps", eval_steps=0.125)
    assert read_scalars(offline["dir"], "val/loss") == history(trainer, "eval_loss")
    found = [record.epoch for record in read_records(offline["dir"]) if "val/loss" in (record.values or {})]
    assert found == [1.25, 1.5, 1.75, 1.0, 2.25, 2.5, 2.75, 2.0]


def test_optimizer_and_model_are_watched_with_the_keywords_of_watch(offline: dict[str, Any]) -> None:
    train(offline, SidestepCallback(every=4, **offline))
    assert list(read_scalars(offline["dir"], "train/gradients/global_norm")) == [0, 4, 8, 12]
    assert {"train/gradients/layer", "train/gradients/head"} <= read_tags(offline["dir"])


def test_epochs_arguments_and_the_end_are_recorded(offline: dict[str, Any]) -> None:
    train(offline, SidestepCallback(**offline), learning_rate=0.003)
    folder = offline["dir"]
    assert [told["epoch"] for told in read_events(folder, "epoch_begin")] == [1.0, 2.0]
    assert [told["epoch"] for told in read_events(folder, "epoch_end")] == [1.0, 2.0]
    assert read_events(folder, "end") == [{"status": "finished", "error": None}]
    configs = [record for record in read_records(folder) if record.kind == "text" and record.fields[0] == "config"]
    assert json.loads(configs[-1].fields[2])["learning_rate"] == 0.003


def test_checkpoints_are_marked_with_their_size(offline: dict[str, Any]) -> None:
    train(offline, SidestepCallback(**offline), save_strategy="epoch")
    sizes = {
        str(folder): sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
        for folder in sorted((offline["dir"] / "out").glob("checkpoint-*"))
    }
    assert {told["path"]: told["size_mb"] for told in read_events(offline["dir"], "checkpoint")} == pytest.approx(
        sizes, rel=0.2
    )
    assert len(sizes) == len(read_scalars(offline["dir"], "checkpoint_size_mb")) == 2
    assert len(read_scalars(offline["dir"], "perf/checkpoint_time_sec")) == 2


def test_a_training_that_goes_on_counts_on(offline: dict[str, Any]) -> None:
    train(offline, save_strategy="epoch", max_steps=STEPS)
    train(offline, SidestepCallback(every=4, **offline), resume=True)
    assert list(read_scalars(offline["dir"], "train/gradients/global_norm")) == [8, 12]
    assert list(read_scalars(offline["dir"], "train/loss")) == [9, 11, 13, 15]
    assert [told["epoch"] for told in read_events(offline["dir"], "epoch_begin")] == [2.0]


def test_an_exception_passes_on_and_the_run_stays_open_for_the_script_to_end(offline: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        train(offline, SidestepCallback(**offline), model=Model(fail_at=4))
    run = sidestep.active_run()
    assert run is not None
    assert run.is_live


def test_training_is_the_same_bit_for_bit(offline: dict[str, Any]) -> None:
    def trained(*callbacks: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [parameter.detach() for parameter in train(offline, *callbacks, num_train_epochs=1).model.parameters()]

    plain, followed = trained(), trained(SidestepCallback(every=1, **offline))
    assert all(torch.equal(a, b) for a, b in zip(plain, followed, strict=True))


def test_a_model_s_own_settings_are_kept(offline: dict[str, Any]) -> None:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    model = transformers.BertForSequenceClassification(config)
    data = [{"input_ids": torch.arange(5), "labels": torch.tensor(index % 2)} for index in range(8)]
    args = transformers.TrainingArguments(
        str(offline["dir"] / "out"), max_steps=2, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[SidestepCallback(every=1, **offline)])
    trainer.train()
    assert read_scalars(offline["dir"], "train/loss") == history(trainer, "loss")
    configs = [
        record for record in read_records(offline["dir"]) if record.kind == "text" and record.fields[0] == "config"
    ]
    assert json.loads(configs[-1].fields[2])["model"]["hidden_size"] == 8


def test_an_unknown_keyword_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"SidestepCallback\(\) takes no 'evry'"):
        SidestepCallback(evry=3)
