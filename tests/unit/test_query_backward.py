"""What programs read of gradients in a run: summary, series by section, bottlenecks, alerts, suggestions.

Every number that is expected here was worked out by hand from the values below.
"""

import hashlib
import json
import math

import numpy as np
import pytest

from sidestep_collector.aggregate import EpochAggregator
from sidestep_collector.blocks import Batch, Event, Finding, KeySet, Moment, Progress, ScalarBlock, Stream
from sidestep_collector.query.backward import alerts, bottlenecks, export, series, suggestions, summary
from sidestep_collector.store import Store, connect

NAN = math.nan
#: Four steps, two of them in each epoch.
STEPS, EPOCHS = [0, 1, 2, 3], [1.0, 1.5, 2.0, 2.5]
BLOCKS = "train/flow/bottleneck_share/"
FIRST = {
    "train/loss_total": [4, 2, NAN, 1],
    "train/acc": [0.1, 0.2, 0.3, 0.4],
    "train/logits/max": [1, 3, 5, 9],
    "train/logits/gradient_norm": [8, 4, 2, 1],
    "train/gradients/stem": [1, 1, 3, 5],
    "train/kinds/phase": [2, 2, 2, 2],
    "train/updates/effectiveness": [0.5, 0.7, 0.9, 0.1],
    "train/flow/class": [3, 2, 2, 0],
    "train/flow/slope": [0.1, 0.3, 0.5, 0.7],
    "train/backward/passes_per_sec": [10, 20, 30, 40],
    "train/performance/backward_time_ms": [1, 2, 3, 6],
    "perf/host_rss_gb": [0.5, 1.0, 0.75, 0.25],
    "train/stability/explosion_count": [0, 3, 3, 5],
    f"{BLOCKS}stem": [0.0, 0.0, 1.0, 1.0],
    f"{BLOCKS}head": [0.6, 0.6, 0.4, 0.6],
}
SECOND_RANK = {"train/stability/explosion_count": [0, 1, 2, 2]}
OTHER = {f"{BLOCKS}head": [0.8, 0.8, 0.8, 0.0], "train/loss_total": [9, 8, 7, 6]}


def stream(run, rank=0):
    uid = hashlib.md5(run.encode()).digest()
    return Stream(hashlib.sha256(f"{run}{rank}".encode()).digest()[:8], uid, run, "p", rank, 0)


def records(run, values, rank=0):
    table = np.array(list(values.values()), dtype=float).T
    seq = np.arange(1, len(table) + 1)
    key_set = KeySet(1, 1, "step", tuple(values), ())
    return ScalarBlock(stream(run, rank), key_set, seq, seq * 10**9, np.array(STEPS), np.array(EPOCHS), table)


def finding(rule, state, *, count, severity="warning", first_step=0, suggest=None):
    return Finding(
        run="quantised", project="p", finding=f"{rule}@{first_step}", rule=rule, profile="backward", subject="",
        metric="train/loss_total", rank=0, severity=severity, state=state, first_step=first_step, last_step=3,
        first_t_ns=10**9, last_t_ns=4 * 10**9, count=count, value=1.0, threshold=0.5, message="m", advice=("a",),
        evidence={"suggest": suggest} if suggest else {},
    )  # fmt: skip


FOUND = [
    finding("explosion", "resolved", count=3),
    finding("explosion", "firing", count=4, first_step=2, suggest={"setting": "lr", "multiply": 0.5}),
    finding(
        "vanishing", "firing", count=9, first_step=3, severity="critical", suggest={"setting": "lr", "multiply": 10.0}
    ),
    finding(
        "stagnation", "firing", count=1, first_step=1, suggest={"setting": "rounding", "value": "stochastic"}
    ),
    finding("memory", "resolved", count=2, suggest={"setting": "batch_size", "multiply": 0.5}),
    finding("spike", "pending", count=0, suggest={"setting": "clip", "value": 1.0}),
]  # fmt: skip


@pytest.fixture(scope="module")
def connection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backward")
    store, aggregator = Store.open(folder), EpochAggregator()
    blocks = [records("quantised", FIRST), records("quantised", SECOND_RANK, rank=1), records("other", OTHER)]
    starts = [Event(Moment(one.stream, 0, 1, -1, NAN), "start", {}) for one in blocks]
    aggregator.add(blocks, starts)
    progress = [Progress(one.stream, 5, 0, ended=False) for one in blocks]
    store.commit(Batch(blocks, list(starts), aggregator.take()[0], progress=progress, findings=FOUND), {})
    store.close()
    with connect(folder) as connection:
        yield connection


def test_a_summary_has_means_over_all_epochs_and_the_last_one(connection):
    found = summary(connection, "quantised")
    assert (found["run"], found["epochs"]) == ("quantised", 2)
    assert found["loss"] == {"first": 3.0, "last": 1.0, "best": 1.0}
    assert found["logits"]["max"] == {"mean": 4.5, "last": 7.0}
    assert found["logits"]["gradient_norm"] == {"mean": 3.75, "last": 1.5}
    assert found["gradients"] == {"stem": {"mean": 2.5, "last": 4.0}}
    assert found["kinds"] == {"phase": {"mean": 2.0, "last": 2.0}}
    assert found["updates"]["effectiveness"] == {"mean": pytest.approx(0.55), "last": pytest.approx(0.5)}
    assert found["time"] == {
        "passes_per_sec": {"mean": 25.0, "last": 35.0},
        "backward_time_ms": {"mean": 3.0, "last": 4.5},
    }
    assert found["memory_mb"] == 1000.0


def test_the_class_of_the_flow_is_that_at_the_end_of_each_epoch(connection):
    found = summary(connection, "quantised")["flow"]
    assert (found["class"], found["classes"]) == ("uniform", {"uniform": 1, "vanishing": 1})
    assert (found["slope"], found["min_over_median"]) == (pytest.approx(0.6), None)
    assert [one["block"] for one in found["bottlenecks"]] == ["head", "stem"]


def test_bottlenecks_are_those_of_one_run_or_of_several(connection):
    head, stem = bottlenecks(connection, ["quantised"])
    assert head == {
        "block": "head",
        "share": pytest.approx(0.55),
        "epochs_often": 3,
        "epochs": 4,
        "runs_often": 1,
        "runs": 1,
    }
    assert (stem["block"], stem["share"], stem["epochs_often"], stem["epochs"]) == ("stem", 0.5, 2, 4)
    head, stem = bottlenecks(connection, ["quantised", "other"])
    assert (head["share"], head["epochs_often"], head["epochs"]) == (pytest.approx(0.575), 6, 8)
    assert (head["runs_often"], head["runs"], stem["runs_often"], stem["runs"]) == (2, 2, 1, 1)


def test_alerts_are_counted_over_ranks_and_findings_tell_how_many_go_on(connection):
    assert alerts(connection, "quantised") == {
        "explosion": {"count": 7, "findings": 2, "open": 1},
        "memory": {"count": 2, "findings": 1, "open": 0},
        "stagnation": {"count": 1, "findings": 1, "open": 1},
        "vanishing": {"count": 9, "findings": 1, "open": 1},
    }
    assert alerts(connection, "other") == {}


def test_each_setting_is_suggested_once_by_the_worst_finding_that_goes_on(connection):
    assert suggestions(connection, "quantised") == [
        {
            "setting": "lr",
            "multiply": 10.0,
            "rule": "vanishing",
            "subject": "",
            "severity": "critical",
            "since_step": 3,
        },
        {
            "setting": "rounding",
            "value": "stochastic",
            "rule": "stagnation",
            "subject": "",
            "severity": "warning",
            "since_step": 1,
        },
    ]


def test_series_stand_in_the_first_section_that_names_them_and_over_all_ranks(connection):
    found = series(connection, "quantised")
    assert {section: set(tags) for section, tags in found.items()} == {
        "gradient_stats": {
            *("train/logits/gradient_norm", "train/gradients/stem", "train/kinds/phase", "train/flow/class"),
            *("train/flow/slope", f"{BLOCKS}stem", f"{BLOCKS}head"),
        },
        "loss_decomposition": {"train/loss_total", "train/acc", "train/logits/max"},
        "parameter_updates": {"train/updates/effectiveness"},
        "timing_stats": {"train/backward/passes_per_sec", "train/performance/backward_time_ms", "perf/host_rss_gb"},
        "stability_counts": {"train/stability/explosion_count"},
    }
    assert found["loss_decomposition"]["train/loss_total"] == {"step": STEPS, "value": [4.0, 2.0, None, 1.0]}


@pytest.mark.parametrize(("most", "steps"), [(1, [3]), (2, [1, 3]), (3, [1, 3]), (4, STEPS), (9, STEPS)])
def test_a_long_series_is_thinned_evenly_and_keeps_its_end(connection, most, steps):
    found = series(connection, "quantised", most=most)["gradient_stats"]["train/gradients/stem"]
    assert found == {"step": steps, "value": [[1.0, 1.0, 3.0, 5.0][step] for step in steps]}


def test_an_export_is_strict_json_with_the_summary_and_every_section(connection):
    document = export(connection, "quantised")
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["summary"] == summary(connection, "quantised")
    assert document["gradient_stats"] == series(connection, "quantised")["gradient_stats"]


def test_a_run_that_recorded_none_of_it_has_an_empty_summary(connection):
    found = summary(connection, "nobody")
    assert (found["epochs"], found["loss"], found["memory_mb"], found["suggestions"]) == (0, None, None, [])
    assert found["flow"] == {"class": None, "classes": {}, "slope": None, "min_over_median": None, "bottlenecks": []}
