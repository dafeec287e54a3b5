"""The settings of diagnostics: what may be said, and what each does to a watched run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.journal_reader import read_records, read_tags
from support.watched import offline, small_net, take_step
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel

import sidestep
from sidestep.errors import ConfigError
from sidestep_schemas.diagnostics import Diagnostics

__all__ = ["offline"]


def test_nothing_said_is_every_quantity_at_the_cadence_of_the_catalogue() -> None:
    assert Diagnostics.read(None) == Diagnostics()
    assert (Diagnostics().log_every_n_steps, Diagnostics().every_n_epochs, Diagnostics().json_every_n_epochs) == (
        *(50, 25, 1),
    )
    assert Diagnostics().said() == {}


def test_what_is_said_is_told_and_read_again() -> None:
    said = {"every_n_epochs": 5, "latent_histograms": False}
    assert Diagnostics.read(said).said() == said
    assert Diagnostics.read({**said, "enabled": True}) == Diagnostics.read(said)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"every_epochs": 5}, "there is no 'every_epochs'"),
        ({5: 5}, "there is no 5"),
        ({"every_n_epochs": 0}, "every_n_epochs=0 is no whole number"),
        ({"every_n_epochs": True}, "every_n_epochs=True is no whole number"),
        ({"json_every_n_epochs": 2.0}, "json_every_n_epochs=2.0 is no whole number"),
        ({"ema_divergence": 1}, "ema_divergence=1 is neither"),
        ({"enabled": "no", "log_every_n_steps": -1}, "enabled='no' is neither.*; log_every_n_steps=-1"),
        ("all", "it maps names"),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_names_it(given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        sidestep.init(diagnostics=given, mode="off")


def watched(offline: dict[str, Any], steps: int = 4, **given: Any) -> tuple[sidestep.Run, set[str]]:
    model = small_net()
    optimizer = SGD(model.parameters(), 0.1)
    average = AveragedModel(model)
    run = sidestep.watch(model, optimizer, ema=average, **given, **offline)
    for step in range(steps):
        take_step(model, optimizer, step)
    folder = run.finish(timeout=0).journal
    return run, set() if folder is None else read_tags(folder)


EVERY_STEP: Any = {"log_every_n_steps": 1}


def test_all_is_measured_where_nothing_is_left_out(offline: dict[str, Any]) -> None:
    run, tags = watched(offline, diagnostics=EVERY_STEP)
    assert {"train/gradients/head", "ema/param_divergence", "perf/steps_per_sec"} <= tags
    assert run.diagnostics == Diagnostics(log_every_n_steps=1)


@pytest.mark.parametrize(
    ("setting", "gone", "stays"),
    [
        ("grad_block_norms", "train/gradients/head", "train/gradients/global_norm"),
        ("ema_divergence", "ema/param_divergence", "train/gradients/head"),
        ("performance_counters", "perf/steps_per_sec", "train/gradients/head"),
    ],
)
def test_a_setting_leaves_its_quantities_out_and_the_others_stay(
    offline: dict[str, Any], setting: str, gone: str, stays: str
) -> None:
    _, tags = watched(offline, diagnostics={**EVERY_STEP, setting: False})
    assert stays in tags
    assert gone not in tags


def test_probes_that_a_script_names_go_over_the_settings(offline: dict[str, Any]) -> None:
    _, tags = watched(offline, diagnostics={**EVERY_STEP, "grad_block_norms": False}, probes={"gradients": True})
    assert "train/gradients/head" in tags


@pytest.mark.parametrize(("given", "steps"), [({}, [0, 3]), ({"every": 2}, [0, 2, 4])])
def test_steps_are_measured_at_the_cadence_of_the_settings_unless_watch_is_told(
    offline: dict[str, Any], given: dict[str, Any], steps: list[int]
) -> None:
    run, _ = watched(offline, steps=6, diagnostics={"log_every_n_steps": 3}, **given)
    found = read_records(run.finish(timeout=0).journal)
    assert [record.step for record in found if "train/gradients/global_norm" in (record.values or {})] == steps


def test_a_run_of_average_velocity_has_the_distance_of_its_averages_once_an_epoch(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = SGD(model.parameters(), 0.1)
    run = sidestep.watch(model, optimizer, ema=AveragedModel(model), profile="meanflow", **offline)
    for _ in run.epoch(range(1, 4)):
        for step in range(5):
            take_step(model, optimizer, step)
    found = read_records(run.finish(timeout=0).journal)
    steps = [record.step for record in found if "ema/param_divergence" in (record.values or {})]
    assert steps == [0, 1, 6, 11]  # the first of all, then in each epoch as soon as it is seen to have begun


def test_a_run_that_was_begun_with_settings_is_watched_by_them(offline: dict[str, Any]) -> None:
    sidestep.init(diagnostics={**EVERY_STEP, "ema_divergence": False}, **offline)
    _, tags = watched(offline)
    assert "train/gradients/head" in tags
    assert "ema/param_divergence" not in tags


def test_what_is_not_enabled_records_nothing(offline: dict[str, Any]) -> None:
    run, tags = watched(offline, diagnostics={"enabled": False})
    assert run.is_off
    assert not tags
    assert not list(Path(offline["dir"]).rglob("*.seg"))
