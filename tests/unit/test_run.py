"""The life of a run: its modes, its configuration, how it ends, and what its report tells."""

import json
import signal

import pytest
from support.runs import begin, records

from sidestep import journal as journal_module
from sidestep.errors import SidestepWarning
from sidestep.report import DeliveryReport

__all__ = ["begin"]


def test_every_change_of_the_configuration_is_recorded(begin):
    run = begin(config={"lr": 0.1, "nested": {"a": (1, 2)}})
    run.config["lr"] = 0.2
    run.config.update(batch=8)
    held = run.config
    held |= {"workers": 2}
    del held["workers"]
    del run.config["nested"]
    run.config.setdefault("seed", 7)
    run.config.setdefault("seed", 8)
    assert run.config.pop("batch") == 8
    assert run.config.popitem() == ("seed", 7)
    run.config.clear()
    documents = [json.loads(record.fields[2]) for record in records(run, "text")]
    assert documents[0] == {"lr": 0.2, "nested": {"a": [1, 2]}}
    assert documents[-4:] == [{"lr": 0.2, "batch": 8, "seed": 7}, {"lr": 0.2, "seed": 7}, {"lr": 0.2}, {}]


def test_a_configuration_that_json_cannot_hold_raises_nothing_into_the_loop(begin):
    run = begin()
    endless: list = []
    endless.append(endless)
    with pytest.warns(SidestepWarning, match="recorded nothing"):
        run.config["endless"] = endless


# --- modes and ends --------------------------------------------------------------------------------------


def test_a_run_that_is_off_does_nothing_and_makes_no_file(begin, tmp_path):
    run = begin(mode="off")
    assert run.is_off
    run.log({"a": 1.0, "b": object()})
    run.record(("a",), [1.0])
    for call in (run.image, run.tensor, run.text, run.histogram):
        call("x", object())
    run.mark("event")
    run.collect()
    run.config["a"] = 1
    for _ in run.epoch(range(2)):
        run.log({})
    assert run.flush()
    assert run.stats["records"] == 0
    assert run.finish() == DeliveryReport(0, 0, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_an_offline_run_leaves_its_records_and_says_where(begin, tmp_path):
    run = begin(project="p", id="r", name="n", config={"lr": 0.1}, tags="one", notes="text")
    run.log({"a": 1.0})
    assert not run.flush(timeout=3600.0)
    report = run.finish(timeout=3600.0)
    assert (report.sent, report.committed, report.pending, report.lost) == (4, 0, 4, 0)
    assert not report.complete
    assert "4 wait in" in str(report)
    assert report.journal.startswith(str(tmp_path / "data" / "journal"))
    first, *_, last = records_of(report.journal)
    details = json.loads(first.fields[1])
    assert (details["project"], details["id"], details["config"], details["tags"]) == ("p", "r", {"lr": 0.1}, ["one"])
    assert (last.fields[0], json.loads(last.fields[1])) == ("end", {"status": "finished", "error": None})


def records_of(folder):
    from support.journal_reader import read_records

    return read_records(folder)


def test_finishing_twice_gives_the_same_report_and_later_calls_do_nothing(begin):
    run = begin()
    assert run.is_live
    report = run.finish()
    assert not run.is_live
    run.log({"a": 1.0})
    run.text("a", "b")
    assert run.finish() is report
    assert [record.kind for record in records_of(report.journal)] == ["lifecycle"] * 2


def test_finishing_without_a_collector_is_bounded_and_leaves_the_journal(begin, tmp_path):
    run = begin(mode="on", collector=f"ipc://{tmp_path.anchor}tmp/nobody-{id(begin)}")
    run.log({"a": 1.0})
    assert not run.flush(timeout=0.01)
    report = run.finish(timeout=0.01)
    assert (report.committed, report.pending, report.lost) == (0, report.sent, 0)
    assert len(records_of(report.journal)) == report.sent


def test_an_open_epoch_ends_with_the_run(begin):
    run = begin()
    run.epoch(1)
    found = records_of(run.finish("failed").journal)
    assert [record.fields[0] for record in found] == ["start", "epoch_begin", "epoch_end", "end"]
    assert json.loads(found[-1].fields[1])["status"] == "failed"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "finished"),
        (ValueError("x"), "failed"),
        (KeyboardInterrupt(), "failed"),
        (SystemExit(0), "finished"),
        (SystemExit(2), "failed"),
    ],
    ids=repr,
)
def test_an_exception_in_the_context_is_how_the_run_ended(begin, error, status):
    run = begin()
    try:
        with run:
            if error is not None:
                raise error
    except type(error or ValueError()):
        pass
    details = json.loads(records_of(run.finish().journal)[-1].fields[1])
    assert details["status"] == status
    if status == "failed":
        assert details["error"].startswith(type(error).__name__)


def test_what_is_said_at_the_end_is_done_before_it(begin):
    run = begin()
    run.at_finish(lambda: run.log({"late": 1.0}))
    run.at_finish(lambda: 1 / 0)
    with pytest.warns(SidestepWarning, match="division by zero"):
        report = run.finish()
    assert [record.kind for record in records_of(report.journal)] == ["lifecycle", "schema", "scalars", "lifecycle"]
    assert report.refused == {"ZeroDivisionError": 1}


def test_the_report_tells_what_was_lost_and_why(begin, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(journal_module, "RING_BYTES_MAX", 1 << 20)
    run = begin(dir=tmp_path / "file" / "data")
    assert "cannot be written" in run.stats["degraded"]
    for _ in range(3):
        run.text("t", "x" * 600_000)
    report = run.finish()
    assert (report.sent, report.committed, report.pending) == (5, 0, 0)
    assert report.lost == 5 == sum(report.reasons.values())
    assert report.reasons["neither the collector nor a disk took them"] == 2
    assert report.journal is None
    assert "records of this run are lost" in caplog.text


def test_a_signal_handler_may_finish_a_run_that_is_finishing(begin):
    run = begin()
    inner = []

    def handler(*_):
        inner.append(run.finish())

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        run.at_finish(lambda: signal.raise_signal(signal.SIGUSR1))
        report = run.finish()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert inner == [DeliveryReport(0, 0, 0, 0)]
    assert report.pending == 2
    assert run.finish() is report
