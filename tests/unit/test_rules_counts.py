"""How often rules counted, by epoch; what they suggest; and that what lasts is one finding."""

import json
import math

import numpy as np
import pytest
from support.judged import T0, block, stage, stream, told

from sidestep_collector.blocks import Event, Moment
from sidestep_collector.profiles import Choices, builtin
from sidestep_collector.profiles.load import check
from sidestep_collector.rules import Rules

NORM, LOSS, CHANGE = ("train/gradients/global_norm", "train/loss_total", "train/updates/relative_update_norm")
MEMORY = "perf/gpu_mem_allocated_gb"


def event(name, step, epoch=math.nan, rank=0, **details):
    return Event(Moment(stream(rank), step + 1, T0 + step, step, epoch), name, details)


def backward(**rules):
    """A stage whose run "r" goes by the profile backward."""
    made = Rules(Choices())
    made.add([], [event("start", -1, rank=rank, profile="backward", rules=rules) for rank in range(2)])
    return made


def counts(rules):
    """(rank, step, epoch, what was counted) of each end of an epoch, without what was counted never."""
    found = []
    for one in rules.take_counts():
        assert one.key_set.derived
        values = dict(zip(one.key_set.names, one.values[0].tolist(), strict=True))
        named = {tag.removeprefix("train/stability/"): value for tag, value in values.items() if value}
        found.append((one.stream.rank, int(one.step[0]), float(one.epoch[0]), named))
    return found


def test_a_thousand_bad_steps_are_one_finding_that_counts_them():
    # The first two of three make it fire with the third, and are not counted.
    rules = backward()
    for first in range(0, 1020, 17):
        rules.add([block([100.0] * 17, names=(NORM,), first=first)], [])
    assert told(rules.take()) == [("explosion@20", "firing", "warning", 998)]
    assert rules.take() == []


@pytest.mark.parametrize(
    ("kind", "metric", "bad", "counted"),
    [
        ("explosion", NORM, 11.0, 8),
        ("vanishing", NORM, 1e-7, 3),
        ("stagnation", CHANGE, 1e-9, 3),
        ("loss_spike", LOSS, 5.0, 1),
        ("memory", MEMORY, 1.5, 3),
    ],
)
def test_each_kind_of_alert_is_counted_and_can_be_switched_off(kind, metric, bad, counted):
    values = [0.5] * 30 + [bad] * 10
    for is_on in (True, False):
        rules = backward(**({} if is_on else {kind: False}))
        rules.add([block(values, names=(metric,))], [event("epoch_end", 39, 1.0)])
        assert [one.rule for one in rules.take() if one.profile == "backward"] == [kind] * is_on
        assert counts(rules) == [(0, 39, 1.0, {f"{kind}_count": float(counted)} if is_on else {})]


def test_counts_rise_from_epoch_to_epoch_and_tell_what_was_up_to_it():
    rules = backward()
    values = [1.0] * 20 + [11.0] * 10 + [1.0] * 10
    # All of three epochs at once: an epoch is told what was counted in it, not what came after.
    ends = [event("epoch_end", step, epoch) for epoch, step in enumerate((14, 24, 39), 1)]
    rules.add([block(values, names=(NORM,))], ends)
    assert counts(rules) == [
        (0, 14, 1.0, {}),
        (0, 24, 2.0, {"explosion_count": 3.0}),
        (0, 39, 3.0, {"explosion_count": 8.0}),
    ]
    assert counts(rules) == []


def test_what_lasts_too_short_counts_nothing():
    rules = backward()
    rules.add([block([1.0] * 20 + [11.0, 11.0] + [1.0] * 10, names=(NORM,))], [event("epoch_end", 31, 1.0)])
    assert counts(rules) == [(0, 31, 1.0, {})]


def test_ranks_are_counted_apart_and_a_run_without_epochs_is_told_at_its_end():
    rules = backward()
    other = block([1.0] * 20 + [11.0] * 3, names=(NORM,), to=stream(1))
    rules.add([block([1.0] * 20 + [11.0] * 7, names=(NORM,)), other], [event("end", 26), event("end", 22, rank=1)])
    found = [(rank, named) for rank, _, _, named in counts(rules)]
    assert found == [(0, {"explosion_count": 5.0}), (1, {"explosion_count": 1.0})]


def test_a_restarted_collector_goes_on_from_what_is_stored():
    rules = backward()
    rules.add([block([1.0] * 20 + [11.0] * 5, names=(NORM,))], [event("epoch_end", 24, 1.0)])
    [found] = rules.take()
    columns = ("run", "project", "finding", "rule", "subject", "metric", "rank", "severity", "state", "first_step")
    row = {name: getattr(found, name) for name in (*columns, "last_step", "count", "value", "message")}
    row |= {"first_time": found.first_t_ns // 1000, "last_time": found.last_t_ns // 1000}
    row["evidence"] = json.dumps(found.evidence)
    again = Rules(Choices())
    again.restore([event("start", -1, profile="backward")], [row])
    again.add([block([11.0] * 4, names=(NORM,), first=25)], [event("epoch_end", 28, 2.0)])
    assert counts(again) == [(0, 28, 2.0, {"explosion_count": 7.0})]


def test_a_run_with_epochs_is_not_told_once_more_at_its_end():
    rules = backward()
    rules.add([block([1.0] * 25, names=(NORM,))], [event("epoch_begin", 0, 1.0), event("epoch_end", 24, 1.0)])
    rules.add([], [event("end", 24)])
    assert [step for _, step, _, _ in counts(rules)] == [24]
    again = Rules(Choices())
    again.restore([event("start", -1, profile="backward"), event("epoch_begin", 0, 1.0)], [])
    again.add([], [event("end", 24)])
    assert counts(again) == []


def test_a_run_of_another_profile_is_told_of_no_counts():
    rules = stage()
    rules.add([block([1.0] * 40, names=(NORM,))], [event("epoch_end", 39, 1.0)])
    assert rules.take_counts() == []


def test_many_bad_steps_of_a_run_without_epochs_take_little_memory():
    rules = backward()
    step = np.arange(200_000)
    rules.add([block(np.full(len(step), 11.0), names=(NORM,))], [])
    rules.add([block(np.full(len(step), 11.0), names=(NORM,), first=len(step))], [])
    [run] = rules._runs.values()
    assert sum(len(part) for parts in run.cases.counted._waiting.values() for part in parts) <= 1 << 16
    rules.add([], [event("end", 400_000)])
    assert counts(rules) == [(0, 400_000, pytest.approx(math.nan, nan_ok=True), {"explosion_count": 399_978.0})]


def test_a_finding_carries_what_its_rule_suggests():
    rules = backward()
    rules.add([block([11.0] * 40, names=(NORM,))], [])
    [found] = rules.take()
    assert found.evidence["suggest"] == {"setting": "lr", "multiply": 0.33}
    silent = stage()
    silent.add([block([1e4] * 40, names=("train/gradients/a",))], [])
    assert all("suggest" not in one.evidence for one in silent.take())


@pytest.mark.parametrize(
    ("suggest", "wrong"),
    [
        ("{setting: lr}", "takes either multiply or value"),
        ("{setting: lr, multiply: 2, value: 3}", "takes either multiply or value"),
        ("{setting: lr, multiply: -1}", "greater than 0"),
        ("{setting: lr, multiply: 0.33}", ""),
        ("{setting: rounding, value: stochastic}", ""),
    ],
)
def test_a_suggestion_says_a_factor_or_a_value(suggest, wrong):
    text = (
        "name: mine\ntitle: Mine\nmeaning: M.\nrules:\n  big:\n    form: threshold\n    metric: train/loss_total\n"
        f"    above: 1\n    message: m\n    advice: [a]\n    suggest: {suggest}\n"
    )
    _, problems = check(text, "mine.yaml")
    assert [wrong in str(problem) for problem in problems] == [True] * bool(wrong)


def test_every_suggestion_of_the_profile_names_a_setting():
    suggested = {name: rule.suggest for name, rule in builtin("backward").rules.items() if rule.suggest is not None}
    assert {"explosion", "vanishing", "stagnation", "update_ineffective"} <= set(suggested)
