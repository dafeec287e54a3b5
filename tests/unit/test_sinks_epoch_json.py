import json
import math

import pytest

from sidestep_collector.blocks import Batch, EpochSummary
from sidestep_collector.sinks import epoch_json
from sidestep_collector.sinks.epoch_json import EpochJsonSink


def summary(epoch, loss=0.5, run="r1", n=10):
    statistics = {"mean": loss, "std": 0.1, "min": 0.0, "max": 1.0, "last": loss, "n": n, "n_nonfinite": 0}
    return EpochSummary(run, "p", epoch, 100 * epoch, 1.5 * epoch, 1, {"train/loss_total": statistics})


def diagnostics(root, run="r1"):
    return root / "runs" / "p" / run / "diagnostics"


def strict(file):
    def refuse(name):
        raise ValueError(name)

    return json.loads(file.read_bytes(), parse_constant=refuse)


def losses(root, run="r1"):
    return [
        (one["epoch"], one["train"]["loss_total"]) for one in strict(diagnostics(root, run) / "training_summary.json")
    ]


def test_an_epoch_gets_a_document_and_a_place_in_the_array(tmp_path):
    EpochJsonSink(tmp_path).write(Batch(summaries=[summary(2), summary(1, 0.7), summary(1, run="r2")]))
    document = strict(diagnostics(tmp_path) / "epoch_001" / "summary.json")
    assert (document["epoch"], document["global_step"], document["wall_time_sec"]) == (1, 100, 1.5)
    assert document["train"]["loss_total"] == 0.7
    assert losses(tmp_path) == [(1, 0.7), (2, 0.5)]
    assert strict(diagnostics(tmp_path) / "training_summary.json")[0] == document
    assert losses(tmp_path, "r2") == [(1, 0.5)]


def test_an_epoch_written_again_replaces_its_object(tmp_path):
    sink = EpochJsonSink(tmp_path)
    sink.write(Batch(summaries=[summary(1), summary(10)]))
    sink.write(Batch(summaries=[summary(1, 0.25), summary(1, 0.125)]))
    assert losses(tmp_path) == [(1, 0.125), (10, 0.5)]
    assert strict(diagnostics(tmp_path) / "epoch_001" / "summary.json")["train"]["loss_total"] == 0.125


def test_writing_again_changes_no_byte(tmp_path):
    def content():
        return {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    batch = Batch(summaries=[summary(1), summary(2)])
    EpochJsonSink(tmp_path).write(batch)
    before = content()
    EpochJsonSink(tmp_path).write(batch)
    assert content() == before
    assert len(before) == 3


def test_nan_and_infinities_become_null_beside_their_count(tmp_path):
    bad = {"mean": math.nan, "std": math.inf, "min": -math.inf, "max": None, "last": math.nan, "n": 0, "n_nonfinite": 3}
    one = EpochSummary("r1", "p", 1, -1, math.nan, 1, {"train/loss_total": bad})
    EpochJsonSink(tmp_path).write(Batch(summaries=[one]))
    document = strict(diagnostics(tmp_path) / "epoch_001" / "summary.json")
    nulls = dict.fromkeys(("mean", "std", "min", "max", "last"))
    assert document["metrics"]["train/loss_total"] == {**nulls, "n": 0, "n_nonfinite": 3}
    assert document["train"]["loss_total"] is None
    assert document["wall_time_sec"] == 0


def test_the_array_goes_on_after_a_restart(tmp_path):
    EpochJsonSink(tmp_path).write(Batch(summaries=[summary(1)]))
    EpochJsonSink(tmp_path).write(Batch(summaries=[summary(2)]))
    assert losses(tmp_path) == [(1, 0.5), (2, 0.5)]


@pytest.mark.parametrize("damage", [b"", b"[{", b"{}", b"[1]", b'[{"epoch": "x"}]', b"\xff\xfe", None])
def test_a_damaged_array_is_made_anew_from_the_documents(tmp_path, damage):
    sink = EpochJsonSink(tmp_path)
    sink.write(Batch(summaries=[summary(1), summary(2)]))
    array = diagnostics(tmp_path) / "training_summary.json"
    before = array.read_bytes()
    array.unlink() if damage is None else array.write_bytes(damage)
    sink.write(Batch(summaries=[summary(2)]))
    assert array.read_bytes() == before


def test_an_epoch_that_a_crash_kept_out_of_the_array_is_added(tmp_path):
    EpochJsonSink(tmp_path).write(Batch(summaries=[summary(1), summary(2)]))
    array = diagnostics(tmp_path) / "training_summary.json"
    array.write_text(json.dumps(strict(array)[:1]))
    EpochJsonSink(tmp_path).write(Batch(summaries=[summary(3)]))
    assert [epoch for epoch, _ in losses(tmp_path)] == [1, 2, 3]


def test_a_damaged_document_and_foreign_folders_stop_nothing(tmp_path):
    EpochJsonSink(tmp_path).write(Batch(summaries=[summary(1), summary(2)]))
    (diagnostics(tmp_path) / "training_summary.json").unlink()
    (diagnostics(tmp_path) / "epoch_001" / "summary.json").write_bytes(b'{"epo')
    (diagnostics(tmp_path) / "epoch_mine").mkdir()
    EpochJsonSink(tmp_path).write(Batch(summaries=[summary(3)]))
    assert [epoch for epoch, _ in losses(tmp_path)] == [2, 3]


def test_the_array_is_written_once_for_many_epochs(tmp_path, monkeypatch):
    written = []
    replace = epoch_json.replace
    monkeypatch.setattr(
        epoch_json, "replace", lambda file, content: (written.append(file.name), replace(file, content))
    )
    EpochJsonSink(tmp_path).write(Batch(summaries=[summary(epoch) for epoch in range(1200)]))
    assert written.count("training_summary.json") == 1
    assert (diagnostics(tmp_path) / "epoch_1199" / "summary.json").exists()


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    sink = EpochJsonSink(tmp_path)
    sink.write(Batch(summaries=[summary(1)]))

    def full(path, content):
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        sink.write(Batch(summaries=[summary(1, 0.9), summary(2)]))
    monkeypatch.undo()
    assert losses(tmp_path) == [(1, 0.5)]
    sink.write(Batch(summaries=[summary(1, 0.9), summary(2)]))
    assert losses(tmp_path) == [(1, 0.9), (2, 0.5)]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_batch_without_epochs_writes_nothing(tmp_path):
    EpochJsonSink(tmp_path).write(Batch())
    assert not list(tmp_path.iterdir())
