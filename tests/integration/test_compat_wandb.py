"""Scripts written for wandb, with another import."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.journal_reader import Record, read_events, read_records, read_scalars, read_tags
from support.watched import offline, small_net, take_step

import sidestep
from sidestep.compat import wandb
from sidestep.errors import ConfigError, SidestepWarning, UsageError

__all__ = ["offline"]


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    wandb.finish()


@pytest.fixture
def place(offline: dict[str, Any]) -> dict[str, Any]:
    return {"dir": offline["dir"], "mode": "offline", "project": "test"}


@pytest.fixture
def lenient(place: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("SIDESTEP_STRICT", "0")
    return place


def items(place: dict[str, Any], kind: str) -> list[Record]:
    return [record for record in read_records(place["dir"]) if record.kind == kind]


def configs(place: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(record.fields[2]) for record in items(place, "text") if record.fields[0] == "config"]


def test_a_script_s_usual_calls_are_recorded(place: dict[str, Any]) -> None:
    assert wandb.login()
    run = wandb.init(
        name="first", id="abc", group="sweep", tags=["a"], notes="hm", config={"lr": 0.1}, entity="us", **place
    )
    assert wandb.run is run
    assert (run.id, run.name, run.project) == ("abc", "first", "test")
    for step in range(3):
        wandb.log({"loss": 1.0 / (step + 1), "nested": {"a": step, "deep": {"b": 2.0}}})
    wandb.finish()
    assert wandb.run is None
    [start], [end] = read_events(place["dir"], "start"), read_events(place["dir"], "end")
    assert {name: start[name] for name in ("id", "name", "group", "tags", "notes", "config", "project")} == {
        "id": "abc", "name": "first", "group": "sweep", "tags": ["a"], "notes": "hm", "config": {"lr": 0.1}, "project": "test",
    }  # fmt: skip
    assert end["status"] == "finished"
    assert read_scalars(place["dir"], "loss") == pytest.approx({0: 1.0, 1: 1 / 2, 2: 1 / 3})
    assert read_scalars(place["dir"], "nested/a") == {0: 0.0, 1: 1.0, 2: 2.0}
    assert read_scalars(place["dir"], "nested/deep/b") == dict.fromkeys(range(3), 2.0)


def test_steps_are_counted_by_calls_unless_step_or_commit_say_otherwise(place: dict[str, Any]) -> None:
    run = wandb.init(**place)
    wandb.log({"a": 1.0}, commit=False)
    wandb.log({"b": 1.0})
    wandb.log({"a": 2.0}, step=7)
    wandb.log({"b": 2.0}, step=7)
    wandb.log({"c": 1.0})
    assert run.step == 8
    wandb.finish()
    assert read_scalars(place["dir"], "a") == {0: 1.0, 7: 2.0}
    assert read_scalars(place["dir"], "b") == {0: 1.0, 7: 2.0}
    assert read_scalars(place["dir"], "c") == {7: 1.0}


def test_images_histograms_figures_and_texts_arrive(place: dict[str, Any]) -> None:
    class Figure:
        def savefig(self, target: Any, **how: Any) -> None:
            Image.new("RGB", (3, 2)).save(target, **how)

    path = place["dir"] / "image.png"
    Image.new("RGB", (5, 4), (9, 9, 9)).save(path)
    wandb.init(**place)
    wandb.log({
        "array": wandb.Image(np.zeros((2, 3, 3), np.uint8), caption="black"),
        "file": wandb.Image(path),
        "list": [wandb.Image(torch.zeros(1, 2, 2)), wandb.Image(Image.new("L", (1, 1)))],
        "figure": Figure(),
        "values": wandb.Histogram(np.arange(10.0), num_bins=5),
        "counted": wandb.Histogram(np_histogram=np.histogram([1.0, 2.0], bins=2)),
        "said": "hello",
        "nothing": None,
    })  # fmt: skip
    wandb.finish()
    figures = {record.fields[1]: record for record in items(place, "figure")}
    assert list(figures) == ["array", "file", "list/0", "list/1", "figure", "values", "counted"]
    assert Image.open(io.BytesIO(figures["file"].fields[2])).size == (5, 4)
    assert list(np.frombuffer(figures["values"].fields[3], "<f8")) == [2.0] * 5
    texts = [record.fields[1:3] for record in items(place, "text")]
    assert ("array/caption", "black") in texts
    assert ("said", "hello") in texts


def test_settings_are_read_and_written_by_attribute_and_by_item(place: dict[str, Any]) -> None:
    wandb.init(config=argparse.Namespace(lr=0.1, width=4), **place)
    config = wandb.config
    assert (config.lr, config["width"], config.get("none"), "lr" in config, len(config)) == (0.1, 4, None, True, 2)
    config.lr = 0.2
    config["depth"] = 3
    config.update({"width": 8}, allow_val_change=True)
    config.setdefaults({"width": 1, "seed": 5})
    assert dict(config) == config.as_dict() == {"lr": 0.2, "width": 8, "depth": 3, "seed": 5}
    assert configs(place)[-1] == config.as_dict()
    with pytest.raises(AttributeError, match="config has no 'none'"):
        _ = config.none


def test_the_summary_holds_last_values_and_what_the_script_puts_there(place: dict[str, Any]) -> None:
    run = wandb.init(**place)
    run.log({"loss": 2.0})
    run.log({"loss": 1.0})
    assert wandb.summary["loss"] == 1.0
    run.summary["best"] = 0.5
    run.finish()
    assert read_events(place["dir"], "summary") == [{"values": {"loss": 1.0, "best": 0.5}}]


def test_watch_follows_the_optimizer_from_its_first_step(place: dict[str, Any]) -> None:
    model, other = small_net(), small_net()
    wandb.init(**place)
    wandb.watch(model, log="all", log_freq=2)
    take_step(other, torch.optim.SGD(other.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        take_step(model, optimizer, step)
        wandb.log({"loss": 1.0})
    wandb.finish()
    assert list(read_scalars(place["dir"], "train/gradients/global_norm")) == [0, 2]
    assert list(read_scalars(place["dir"], "loss")) == [0, 1, 2, 3]


def test_alerts_and_saved_files_are_events(place: dict[str, Any]) -> None:
    wandb.init(**place)
    wandb.define_metric("loss", summary="min")
    wandb.alert("high", "the loss is high", level=wandb.AlertLevel.WARN)
    wandb.save("model.pt")
    assert read_events(place["dir"], "alert") == [{"title": "high", "text": "the loss is high", "level": "WARN"}]
    assert read_events(place["dir"], "save") == [{"path": "model.pt"}]


@pytest.mark.parametrize(("mode", "is_off"), [("disabled", True), ("offline", False)])
def test_modes_are_translated(place: dict[str, Any], mode: str, is_off: bool) -> None:
    wandb.init(**{**place, "mode": mode})
    wandb.log({"loss": 1.0})
    run = sidestep.active_run()
    assert run is not None
    assert run.is_off is is_off


def test_what_cannot_be_meant_is_one_line_at_the_start(place: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="mode='onlin': it is one of"):
        wandb.init(**{**place, "mode": "onlin"})
    with pytest.raises(UsageError, match="config= takes a mapping"):
        wandb.init(**place, config="settings.yaml")
    with pytest.raises(UsageError, match="resume='must' asks for one"):
        wandb.init(**place, id="none", resume="must")


def test_init_again_takes_the_run_and_reinit_a_new_one(place: dict[str, Any]) -> None:
    first = wandb.init(**place)
    assert wandb.init() is first
    second = wandb.init(**place, reinit=True)
    assert second.id != first.id


def test_an_exception_or_an_exit_code_is_a_failed_run(place: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="no"), wandb.init(**place):
        raise RuntimeError("no")
    wandb.init(**place)
    wandb.finish(exit_code=1)
    assert [end["status"] for end in read_events(place["dir"], "end")] == ["failed", "failed"]


def test_a_run_of_the_script_s_is_not_ended(offline: dict[str, Any]) -> None:
    with sidestep.init(**offline) as run:
        wandb.init(project="other")
        wandb.log({"loss": 1.0}, step=3)
        wandb.finish()
        assert run.is_live
    assert read_scalars(offline["dir"], "loss") == {3: 1.0}


def test_unknown_calls_do_nothing_and_are_said_once(lenient: dict[str, Any]) -> None:
    wandb.init(**lenient)
    with pytest.warns(SidestepWarning, match="wandb.Artifact is not recorded by sidestep") as said:
        for _ in range(2):
            artifact = wandb.Artifact("name", type="model")
            artifact.add_file("x")
            wandb.log({"loss": 1.0, "artifact": artifact})
    assert len(said) == 1
    assert said[0].filename == __file__
    with pytest.warns(SidestepWarning, match=r"wandb.run.log_code is not recorded"):
        wandb.run.log_code(".")
    with pytest.warns(SidestepWarning, match=r"wandb.init\(projct=…\)"):
        wandb.init(projct="x")
    assert read_tags(lenient["dir"]) == {"loss"}


def test_calls_before_init_are_said_and_do_nothing() -> None:
    with pytest.warns(SidestepWarning, match=r"wandb.log\(\) before wandb.init\(\) records nothing"):
        wandb.log({"loss": 1.0})
    with pytest.warns(SidestepWarning, match=r"wandb.Table is not recorded"):
        wandb.Table(columns=["a"]).add_data(1)


def test_what_cannot_be_recorded_is_said_and_never_raised(lenient: dict[str, Any]) -> None:
    wandb.init(**lenient)
    with pytest.warns(SidestepWarning, match="'list' is no number"):
        wandb.log({"list": [1, 2], "loss": 1.0})
    with pytest.warns(SidestepWarning):
        wandb.log("loss")  # type: ignore[arg-type]
    with pytest.warns(SidestepWarning):
        wandb.log({"image": wandb.Image(Path("none.png"))})
    assert read_scalars(lenient["dir"], "loss") == {0: 1.0}


def test_strict_raises_what_is_unknown(place: dict[str, Any]) -> None:
    wandb.init(**place)
    with pytest.raises(UsageError, match=r"wandb.Table"):
        wandb.Table()
