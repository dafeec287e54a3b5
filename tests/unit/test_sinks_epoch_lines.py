"""An epoch a line: what stands in it, and where the files go that a run asks for."""

import json
import math
import os
import stat

import pytest

from sidestep_collector.blocks import Batch, EpochSummary, Event, Moment, Stream
from sidestep_collector.sinks.epoch_lines import FIELDS, EpochLines
from sidestep_collector.telemetry import Counters

STREAM = Stream(b"12345678", b"1234567890123456", "r", "p", 0, 0)


def statistics(value):
    return {"mean": value, "std": None, "min": value, "max": value, "last": value, "n": 1, "n_nonfinite": 0}


MEASURED = {
    "train/loss_total": 0.5,
    "train/acc": 0.75,
    "train/lr": 0.1,
    "train/mean_grad_norm": 2.0,
    "train/min_grad_norm": 1.0,
    "train/max_grad_norm": 3.0,
    "train/weight_change": 1e-3,
    "train/num_batches": 40.0,
    "val/loss_total": 0.625,
    "val/acc": 0.5,
    "val/num_batches": 8.0,
}


def summary(epoch, measured=None, **more):
    measured = {**(MEASURED if measured is None else measured), **more}
    return EpochSummary("r", "p", epoch, 10, 1.0, 1, {tag: statistics(value) for tag, value in measured.items()})


def start(folder):
    return Event(Moment(STREAM, 0, 10**18, -1, math.nan), "start", {"diagnostics_dir": str(folder)})


def lines(folder, split):
    return [json.loads(line) for line in (folder / f"{split}_diagnostics.jsonl").read_text().splitlines()]


@pytest.fixture
def own(tmp_path):
    return tmp_path / "data" / "runs" / "p" / "r" / "diagnostics"


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def sink(tmp_path, counters):
    return EpochLines(tmp_path / "data", counters, takes_folders=True)


def test_a_line_has_all_fields_in_their_order_and_null_for_what_does_not_apply(sink, own):
    sink.write(Batch(summaries=[summary(1)]))
    [train], [val] = lines(own, "train"), lines(own, "val")
    assert tuple(train) == tuple(val) == FIELDS
    assert list(train.values()) == [1, 0.5, 0.75, 0.1, 2.0, 1.0, 3.0, 1e-3, 40]
    assert list(val.values()) == [1, 0.625, 0.5, 0.1, None, None, None, None, 8]


def test_epochs_stand_once_in_their_order_whatever_comes_late_or_again(sink, own, tmp_path):
    sink.write(Batch(summaries=[summary(3), summary(1)]))
    again = EpochLines(tmp_path / "data", Counters(), takes_folders=True)
    again.write(Batch(summaries=[summary(2), summary(3, **{"train/loss_total": 0.25})]))
    assert [(line["epoch"], line["loss"]) for line in lines(own, "train")] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_a_line_that_is_damaged_goes_and_the_others_stay(sink, own):
    sink.write(Batch(summaries=[summary(1), summary(2)]))
    file = own / "train_diagnostics.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    sink.write(Batch(summaries=[summary(3)]))
    assert [line["epoch"] for line in lines(own, "train")] == [1, 3]


def test_what_is_not_finite_is_null_and_a_run_without_losses_has_no_lines(sink, own):
    sink.write(Batch(summaries=[summary(1, {"train/loss_total": math.nan, "train/acc": 0.5})]))
    assert lines(own, "train")[0]["loss"] is None
    assert not (own / "val_diagnostics.jsonl").exists()
    sink.write(Batch(summaries=[summary(2, {"perf/samples_per_sec": 3.0, "train/lr": 0.1})]))
    assert [line["epoch"] for line in lines(own, "train")] == [1]


def test_a_folder_that_the_run_names_gets_both_files_whole(sink, own, tmp_path):
    named = tmp_path / "elsewhere" / "deep"
    sink.write(Batch(items=[start(named)], summaries=[summary(1)]))
    sink.write(Batch(summaries=[summary(2)]))
    for split in ("train", "val"):
        assert lines(named, split) == lines(own, split)
    assert sorted(os.listdir(named)) == ["train_diagnostics.jsonl", "val_diagnostics.jsonl"]


def test_a_link_that_lies_in_a_named_folder_is_replaced_and_never_followed(sink, tmp_path):
    named, target = tmp_path / "elsewhere", tmp_path / "precious"
    named.mkdir()
    target.write_text("mine")
    (named / "train_diagnostics.jsonl").symlink_to(target)
    sink.write(Batch(items=[start(named)], summaries=[summary(1)]))
    assert target.read_text() == "mine"
    assert stat.S_ISREG((named / "train_diagnostics.jsonl").lstat().st_mode)


def test_a_named_folder_that_cannot_be_written_is_counted_and_costs_nothing_else(sink, own, tmp_path, counters):
    (tmp_path / "file").write_text("")
    for epoch in (1, 2):
        sink.write(Batch(items=[start(tmp_path / "file" / "below")], summaries=[summary(epoch)]))
    assert counters.named_folder_failures == 4
    assert [line["epoch"] for line in lines(own, "val")] == [1, 2]


@pytest.mark.parametrize("given", ["relative/folder", "\0", 7, ["/tmp"], "/" + "x" * 5000])
def test_what_is_no_absolute_path_is_no_folder(sink, counters, given):
    wrong = Event(Moment(STREAM, 0, 10**18, -1, math.nan), "start", {"diagnostics_dir": given})
    sink.write(Batch(items=[wrong], summaries=[summary(1)]))
    assert counters.named_folder_failures == 0
    assert not sink._named


def test_a_collector_that_listens_to_other_machines_takes_no_folder(tmp_path, own):
    sink = EpochLines(tmp_path / "data", Counters(), takes_folders=False)
    sink.write(Batch(items=[start(tmp_path / "elsewhere")], summaries=[summary(1)]))
    assert not (tmp_path / "elsewhere").exists()
    assert len(lines(own, "train")) == 1
