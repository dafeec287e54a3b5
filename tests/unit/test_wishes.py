"""What runs wish of the collector."""

from sidestep_collector.aggregate.periodic import PeriodAggregator
from sidestep_collector.blocks import Batch, EpochSummary, Event, Moment, Stream
from sidestep_collector.sinks.epoch_json import EpochJsonSink
from sidestep_collector.wishes import Wishes
from sidestep_schemas.diagnostics import Diagnostics


def start(run, said, event="start"):
    at = Moment(Stream(b"12345678", b"r" * 16, run, "p", 0, 0), 0, 0, -1, float("nan"))
    return Event(at, event, {"diagnostics": said})


def summaries(run, count):
    statistics = {
        "train/loss_total": dict.fromkeys(("mean", "min", "max", "last"), 1.0) | {"n": 1, "std": None, "n_nonfinite": 0}
    }
    return [EpochSummary(run, "p", epoch, epoch, 1.0, 1, statistics) for epoch in range(1, count + 1)]


def test_a_run_goes_by_what_its_start_says_and_any_other_by_what_holds_otherwise():
    wishes = Wishes()
    wishes.note([start("a", {"every_n_epochs": 2}), start("b", {"every_n_epochs": 9}, event="mark")])
    assert wishes.of("a") == Diagnostics(every_n_epochs=2)
    assert wishes.of("b") == Diagnostics()
    wishes.forget("a")
    assert wishes.of("a") == Diagnostics()


def test_settings_that_a_newer_or_damaged_start_says_are_left_alone():
    wishes = Wishes()
    wishes.note([start("a", {"every_n_epochs": 2}), start("a", {"every_n_epochs": "often"}), start("b", [1])])
    assert wishes.of("a") == wishes.of("b") == Diagnostics()


def test_periods_of_each_run_have_the_length_it_wishes():
    wishes = Wishes()
    wishes.note([start("a", {"every_n_epochs": 2})])
    periods = PeriodAggregator(lambda run: wishes.of(run).every_n_epochs)
    told = periods.add([*summaries("a", 5), *summaries("b", 26)])
    assert [(one.run, one.first_epoch, one.last_epoch) for one in told] == [("a", 1, 2), ("a", 3, 4), ("b", 1, 25)]


def test_only_the_epochs_that_are_wished_have_documents(tmp_path):
    wishes = Wishes()
    wishes.note([start("a", {"json_every_n_epochs": 2})])
    sink = EpochJsonSink(tmp_path, lambda run: wishes.of(run).json_every_n_epochs)
    sink.write(Batch(summaries=[*summaries("a", 5), *summaries("b", 2)]))
    found = {run: sorted(f.name for f in (tmp_path / "runs/p" / run / "diagnostics").glob("epoch_*")) for run in "ab"}
    assert found == {"a": ["epoch_002", "epoch_004"], "b": ["epoch_001", "epoch_002"]}
