"""The rules of the jepa profile: each tells of its trouble, and none of a training that is well."""

import pytest
from support.judged import T0, block, stream

from sidestep_collector.blocks import EpochSummary, Event, Moment
from sidestep_collector.profiles import Choices, builtin
from sidestep_collector.rules import Rules

STEPS, EPOCHS = 60, 14
#: What the example's healthy training has, about.
HEALTHY = {
    "train/loss/contribution_h0": 0.55,
    "train/loss/contribution_h1": 0.31,
    "train/loss/contribution_h2": 0.14,
    "train/prediction/level0_cosine_sim_mean": 0.76,
    "train/prediction/level0_cosine_sim_std": 0.35,
    "train/collapse/level0_mean_std_per_dim": 0.85,
    "train/collapse/level0_min_std_per_dim": 0.31,
    "train/collapse/level0_effective_rank": 23.0,
    "train/collapse/level0_effective_rank_share": 0.36,
    "train/collapse/level0_mean_similarity": 0.09,
    "train/ema/weight_magnitude_ratio": 1.0,
    "train/ema/momentum_current": 0.998,
    "train/stability/loss_spike_ratio": 0.9,
    "train/gradient/clipping_percentage": 30.0,
}
#: For each rule a value that is just beyond its bound, one that is just within, and how bad it is.
TROUBLES = [
    ("collapse_mean_std", "train/collapse/level0_mean_std_per_dim", 0.009, 0.011, "critical"),
    ("collapse_min_std", "train/collapse/level0_min_std_per_dim", 0.0009, 0.0011, "warning"),
    ("collapse_effective_rank", "train/collapse/level0_effective_rank_share", 0.12, 0.14, "critical"),
    ("collapse_similarity", "train/collapse/level0_mean_similarity", 0.71, 0.69, "warning"),
    ("level_rules", "train/loss/contribution_h0", 0.71, 0.69, "info"),
    ("level_ignored", "train/loss/contribution_h2", 0.04, 0.06, "info"),
    ("poor_prediction", "train/prediction/level0_cosine_sim_mean", 0.69, 0.71, "info"),
    ("uniform_prediction", "train/prediction/level0_cosine_sim_std", 0.09, 0.11, "info"),
    ("ema_magnitude_high", "train/ema/weight_magnitude_ratio", 1.06, 1.04, "warning"),
    ("ema_magnitude_low", "train/ema/weight_magnitude_ratio", 0.94, 0.96, "warning"),
    ("ema_momentum_low", "train/ema/momentum_current", 0.98, 0.995, "info"),
    ("loss_spike", "train/stability/loss_spike_ratio", 2.1, 1.9, "warning"),
    ("clipping", "train/gradient/clipping_percentage", 51.0, 49.0, "warning"),
]


def findings(values, said=None):
    """Severity of what fires, by rule, after steps and epochs with the same values."""
    rules = Rules(Choices())
    begin = Event(Moment(stream(), 0, T0, -1, float("nan")), "start", {"profile": "jepa", "rules": said or {}})
    rules.add([], [begin])
    rules.add([block([list(values.values())] * STEPS, list(values))], [])
    for epoch in range(1, EPOCHS + 1):
        statistics = {tag: {"mean": value, "last": value, "n": 1} for tag, value in values.items()}
        rules.add_epochs([EpochSummary("r", "p", epoch, 100 * epoch, 1.0, 1, statistics, T0 + epoch)])
    return {one.rule: one.severity for one in rules.take() if one.state == "firing"}


def test_a_training_that_is_well_is_left_in_peace():
    assert findings(HEALTHY) == {}


@pytest.mark.parametrize(("rule", "metric", "bad", "well", "severity"), TROUBLES)
def test_each_rule_tells_of_its_trouble_and_of_nothing_short_of_it(rule, metric, bad, well, severity):
    assert findings(HEALTHY | {metric: bad}) == {rule: severity}
    assert findings(HEALTHY | {metric: well}) == {}


def test_the_bound_for_768_dimensions_can_be_switched_on():
    tag = "train/collapse/level0_effective_rank"
    on = {"collapse_effective_rank_of_768": {"enabled": True}}
    assert findings(HEALTHY | {tag: 99.0}, on) == {"collapse_effective_rank_of_768": "critical"}
    assert findings(HEALTHY | {tag: 101.0}, on) == {}


def test_every_rule_that_is_on_is_tested_here():
    assert {name for name, rule in builtin("jepa").rules.items() if rule.enabled} == {name for name, *_ in TROUBLES}
