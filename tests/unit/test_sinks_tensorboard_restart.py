"""Event files after a crash, a full disk or a loss: no point is there twice, and none is missing."""

import pytest
from support.event_files import FILE, at, block, folder, scalars, sink, stream

from sidestep_collector.blocks import Batch, Event
from sidestep_collector.sinks import event_file
from sidestep_collector.sinks.tensorboard import TensorBoardSink

__all__ = ["sink"]


def test_no_point_is_twice_after_a_restart_in_the_middle_of_a_batch(tmp_path):
    sink = TensorBoardSink(tmp_path, {})
    committed = sink.write(Batch(blocks=[block([1, 2])]))
    sink.write(Batch(blocks=[block([3, 4]), block([1], to=stream(rank=1))]))  # never committed
    sink.close()
    with (folder(tmp_path) / FILE).open("ab") as file:
        file.write(b"half a record")
    again = TensorBoardSink(tmp_path, committed)
    again.write(Batch(blocks=[block([3, 4, 5]), block([1, 2], to=stream(rank=1))]))
    again.close()
    assert [step for step, _ in scalars(tmp_path, "train/lr")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in scalars(tmp_path, "train/lr", "attempt_0_rank_1")] == [1, 2]


def test_a_discarded_batch_leaves_nothing(tmp_path, sink):
    before = sink.write(Batch(blocks=[block([1, 2])]))
    sink.write(Batch(blocks=[block([3]), block([9], names=("other/x",), key_set_id=7), block([1], to=stream(rank=1))]))
    sink.discard()
    sink.discard()
    assert (folder(tmp_path) / FILE).stat().st_size == next(iter(before.values()))
    assert not (folder(tmp_path, "attempt_0_rank_1") / FILE).exists()
    sink.write(Batch(blocks=[block([3, 4]), block([5], to=stream(rank=1))]))
    assert [step for step, _ in scalars(tmp_path, "train/lr")] == [1, 2, 3, 4]
    assert [step for step, _ in scalars(tmp_path, "train/lr", "attempt_0_rank_1")] == [5]


def test_a_disk_that_fills_up_raises_and_leaves_nothing_after_discard(tmp_path, sink, monkeypatch):
    sink.write(Batch(blocks=[block([1])]))
    write, calls = event_file._write_at, []

    def full(descriptor, buffer, offset):
        calls.append(offset)
        write(descriptor, buffer[: len(buffer) // 2], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_file, "_write_at", full)
    with pytest.raises(OSError, match="No space"):
        sink.write(Batch(blocks=[block([2, 3]), block([1], to=stream(rank=1))]))
    monkeypatch.undo()
    sink.discard()
    assert calls
    sink.write(Batch(blocks=[block([2, 3])]))
    assert [step for step, _ in scalars(tmp_path, "train/lr")] == [1, 2, 3]


def test_a_batch_that_broke_off_is_taken_back_by_the_next(tmp_path, sink, monkeypatch):
    sink.write(Batch(blocks=[block([1])]))
    calls = []

    def broken(descriptor, buffer, offset):
        calls.append(offset)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")
        write(descriptor, buffer, offset)

    write = event_file._write_at
    monkeypatch.setattr(event_file, "_write_at", broken)
    with pytest.raises(OSError, match="Input"):
        sink.write(Batch(blocks=[block([2]), block([1], to=stream(rank=1))]))
    monkeypatch.undo()
    sink.write(Batch(blocks=[block([2, 3]), block([1], to=stream(rank=1))]))
    assert [step for step, _ in scalars(tmp_path, "train/lr")] == [1, 2, 3]
    assert [step for step, _ in scalars(tmp_path, "train/lr", "attempt_0_rank_1")] == [1]


def test_a_discard_that_fails_is_made_up_for_by_the_next_batch(tmp_path, sink, monkeypatch):
    sink.write(Batch(blocks=[block([1])]))
    sink.write(Batch(blocks=[block([2])]))

    def broken(descriptor, length):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(event_file.os, "ftruncate", broken)
    with pytest.raises(OSError, match="Input"):
        sink.discard()
    monkeypatch.undo()
    sink.write(Batch(blocks=[block([2, 3])]))
    assert [step for step, _ in scalars(tmp_path, "train/lr")] == [1, 2, 3]


def test_a_file_that_lost_committed_bytes_goes_on_from_its_last_whole_record(tmp_path):
    sink = TensorBoardSink(tmp_path, {})
    committed = sink.write(Batch(blocks=[block([1, 2, 3], names=("a",))], items=[Event(at(), "end", {})]))
    sink.close()
    file = folder(tmp_path) / FILE
    with file.open("r+b") as opened:
        opened.truncate(200)  # within the records of scalars
    again = TensorBoardSink(tmp_path, committed)
    again.write(Batch(blocks=[block([4], names=("a",))]))
    again.close()
    steps = [step for step, _ in scalars(tmp_path, "a")]
    assert steps[-1] == 4
    assert steps[:-1] == [1, 2, 3][: len(steps) - 1]


def test_a_deleted_file_starts_anew(tmp_path, sink):
    sink.write(Batch(blocks=[block([1])]))
    (folder(tmp_path) / FILE).unlink()
    sink.write(Batch(blocks=[block([2])]))
    assert scalars(tmp_path, "train/lr") == [(2, 1)]
