"""Records as event files: what TensorBoard reads of them is what was recorded."""

import io
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as Picture
from support.event_files import (
    FILE,
    START_NS,
    accumulator,
    at,
    block,
    folder,
    multiplexer,
    scalars,
    sink,
    statistics,
    stream,
)
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event as EventProto

from sidestep_collector.blocks import Batch, EpochSummary, Histogram, Image, Tensor, Text
from sidestep_collector.sinks.tensorboard import TensorBoardSink

__all__ = ["sink"]


def test_scalars_are_read_by_tensorboard(tmp_path, sink):
    lengths = sink.write(Batch(blocks=[block([1, 2, 3])]))
    assert scalars(tmp_path, "train/loss_total") == [(1, 0), (2, 2), (3, 4)]
    assert scalars(tmp_path, "train/lr") == [(1, 1), (2, 3), (3, 5)]
    events = accumulator(folder(tmp_path)).Scalars("train/lr")
    assert [event.wall_time for event in events] == [1.7e9 + 1, 1.7e9 + 2, 1.7e9 + 3]
    assert lengths == {f"runs/p/r1/tensorboard/attempt_0/{FILE}": (folder(tmp_path) / FILE).stat().st_size}


def test_scalars_belong_to_the_scalars_page_and_are_described(tmp_path, sink):
    sink.write(Batch(blocks=[block([1, 2], names=("train/lr", "mine/own"))]))
    run = multiplexer(tmp_path)
    tags = run.PluginRunToTagToContent("scalars")["runs/p/r1/tensorboard/attempt_0"]
    assert set(tags) == {"train/lr", "mine/own"}
    described = run.SummaryMetadata("runs/p/r1/tensorboard/attempt_0", "train/lr")
    assert "Learning rate" in described.summary_description
    values = [
        float(event.tensor_proto.float_val[0]) for event in run.Tensors("runs/p/r1/tensorboard/attempt_0", "train/lr")
    ]
    assert values == [0, 2]


def test_every_checksum_is_right(tmp_path, sink):
    google_crc32c = pytest.importorskip("google_crc32c")
    sink.write(Batch(blocks=[block(range(50))], items=[Text(at(), "notes", "", "x" * 5000)]))
    data = (folder(tmp_path) / FILE).read_bytes()
    place, records = 0, 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        for begin, end in ((place, place + 8), (place + 12, place + 12 + length)):
            crc = google_crc32c.value(data[begin:end])
            assert struct.unpack_from("<I", data, end)[0] == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        place, records = place + 16 + length, records + 1
    assert records == 53  # file version, 50 records, text, layout
    assert place == len(data)


def test_a_file_begins_with_its_version(tmp_path, sink):
    sink.write(Batch(blocks=[block([1])]))
    events = list(EventFileLoader(str(folder(tmp_path) / FILE)).Load())
    assert events[0].file_version == "brain.Event:2"
    assert events[0].wall_time == 1.7e9 + 1


def test_nan_and_infinities_are_written_as_they_are(tmp_path, sink):
    sink.write(Batch(blocks=[block([1, 2, 3, 4], names=("a",), values=[[math.nan], [math.inf], [-math.inf], [1e300]])]))
    values = [value for _, value in scalars(tmp_path, "a")]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, math.inf]


def test_a_record_without_a_step_takes_its_seq(tmp_path, sink):
    sink.write(Batch(blocks=[block([-1, -1, 7, -5], names=("a",))]))
    assert [step for step, _ in scalars(tmp_path, "a")] == [1000, 1001, 7, -5]


def test_names_may_be_of_any_script(tmp_path, sink):
    sink.write(Batch(blocks=[block([1, 2], names=("训练/损失", "θ‖∇‖ 😀"), to=stream(run="été/…"))]))
    (file,) = tmp_path.glob(f"runs/p/*/tensorboard/attempt_0/{FILE}")
    assert set(accumulator(file.parent).Tags()["scalars"]) == {"训练/损失", "θ‖∇‖ 😀"}


def test_each_attempt_and_rank_is_a_sub_run(tmp_path, sink):
    streams = [stream(), stream(rank=1), stream(attempt=1), stream(rank=3, attempt=1)]
    sink.write(Batch(blocks=[block([index], names=("a",), to=to) for index, to in enumerate(streams)]))
    subs = ("attempt_0", "attempt_0_rank_1", "attempt_1", "attempt_1_rank_3")
    assert [scalars(tmp_path, "a", sub) for sub in subs] == [[(0, 0)], [(1, 0)], [(2, 0)], [(3, 0)]]


def test_blocks_without_records_or_names_write_no_points(tmp_path, sink):
    sink.write(
        Batch(blocks=[block([]), block([1], names=(), key_set_id=1)], items=[Tensor(at(), "t", "<f4", (1,), bytes(4))])
    )
    assert accumulator(folder(tmp_path)).Tags()["scalars"] == []
    assert sink.write(Batch()) == {}


def test_histograms_keep_their_buckets(tmp_path, sink):
    item = Histogram(at(3), "h", np.array([-2.0, -1, 0, 1, 2, 3]), np.array([0.0, 4, 0, 6, 0]))
    sink.write(Batch(items=[item]))
    (event,) = accumulator(folder(tmp_path)).Histograms("h")
    found = event.histogram_value
    assert (event.step, found.min, found.max, found.num) == (3, -1, 2, 10)
    assert (found.bucket_limit, found.bucket) == ([0, 1, 2], [4, 0, 6])
    assert (found.sum, found.sum_squares) == (4 * -0.5 + 6 * 1.5, 4 * 0.25 + 6 * 2.25)
    run = multiplexer(tmp_path)
    (migrated,) = run.Tensors("runs/p/r1/tensorboard/attempt_0", "h")
    buckets = np.frombuffer(migrated.tensor_proto.tensor_content, dtype=np.float32).reshape(-1, 3)
    assert buckets.tolist() == [[-1, 0, 4], [0, 1, 0], [1, 2, 6]]


def test_an_empty_or_ill_formed_histogram_stops_nothing(tmp_path, sink):
    sink.write(
        Batch(
            items=[
                Histogram(at(), "empty", np.array([0.0, 1.0]), np.array([0.0])),
                Histogram(at(), "ill", np.array([0.0, 1.0]), np.array([1.0, 2.0])),
                Histogram(at(), "ill", np.array([math.nan, 1.0]), np.array([1.0])),
                Histogram(at(), "ill", np.array([-math.inf, math.inf]), np.array([1.0])),
                Histogram(at(), "ill", np.array([0.0, 1.0]), np.array([math.nan])),
                Histogram(at(), "endless", np.array([-math.inf, 0, 1, math.inf]), np.array([1.0, 2, 3])),
            ]
        )
    )
    found = accumulator(folder(tmp_path))
    assert found.Tags()["histograms"] == ["empty", "endless"]
    (endless,) = found.Histograms("endless")
    assert endless.histogram_value.bucket_limit == [0, 1, 1]


def test_images_carry_their_size(tmp_path, sink):
    stored = io.BytesIO()
    Picture.new("RGB", (7, 4)).save(stored, "PNG")
    sink.write(Batch(items=[Image(at(9), "samples/x", stored.getvalue()), Image(at(), "no image", b"not a png")]))
    found = accumulator(folder(tmp_path))
    assert found.Tags()["images"] == ["samples/x"]
    (image,) = found.Images("samples/x")
    assert (image.step, image.width, image.height) == (9, 7, 4)
    assert image.encoded_image_string == stored.getvalue()


def test_texts_are_on_the_text_page(tmp_path, sink):
    sink.write(
        Batch(
            items=[
                Text(at(), "text", "sample", "a cat"),
                Text(at(), "summary", "", '{"best":1}'),
                Text(at(), "notes", "", "# on *this* run"),
                Text(at(), "tags", "", "no json ["),
            ]
        )
    )
    run, name = multiplexer(tmp_path), "runs/p/r1/tensorboard/attempt_0"
    assert set(run.PluginRunToTagToContent("text")[name]) == {"sample", "summary", "notes", "tags"}
    texts = {
        tag: run.Tensors(name, tag)[0].tensor_proto.string_val[0].decode() for tag in ("sample", "summary", "tags")
    }
    assert texts == {"sample": "a cat", "summary": '```json\n{\n  "best": 1\n}\n```', "tags": "no json ["}


def test_means_of_epochs_go_to_the_latest_attempt_of_rank_0(tmp_path, sink):
    shown = {"train/loss_total": statistics(0.5, 10), "val/acc": statistics(0.9, 1), "bad": statistics(None, 3)}
    summary = EpochSummary("r1", "p", 4, 100, 12.0, 1, shown, START_NS)
    sink.write(Batch(blocks=[block([1], to=stream(attempt=2)), block([1], to=stream(rank=1, attempt=5))]))
    sink.write(Batch(summaries=[summary]))
    found = accumulator(folder(tmp_path, "attempt_2"))
    assert [tag for tag in found.Tags()["scalars"] if tag.startswith("epoch/")] == ["epoch/train/loss_total"]
    (event,) = found.Scalars("epoch/train/loss_total")
    assert (event.step, event.value, event.wall_time) == (4, 0.5, 1.7e9)


def test_means_of_epochs_find_their_file_after_a_restart(tmp_path):
    first = TensorBoardSink(tmp_path, {})
    lengths = first.write(Batch(blocks=[block([1], to=stream(attempt=attempt)) for attempt in (0, 10, 9)]))
    first.close()
    again = TensorBoardSink(tmp_path, lengths)
    touched = again.write(Batch(summaries=[EpochSummary("r1", "p", 0, 1, 1.0, 1, {"a": statistics(1.0, 2)}, 0)]))
    again.close()
    assert list(touched) == [f"runs/p/r1/tensorboard/attempt_10/{FILE}"]


def test_more_runs_than_open_files_are_all_written(tmp_path, monkeypatch):
    sink = TensorBoardSink(tmp_path, {})
    sink._files._limit = 4
    runs = [f"run{index}" for index in range(12)]
    for step in (1, 2):
        sink.write(Batch(blocks=[block([step], names=("a",), to=stream(run)) for run in runs]))
        assert len(sink._files._open) == 4
    sink.write(Batch(blocks=[block([3], names=("a",), to=stream(run)) for run in runs]))
    sink.discard()
    assert len(sink._files._open) <= 4
    sink.close()
    assert all([step for step, _ in scalars(tmp_path, "a", run=run)] == [1, 2] for run in runs)


def test_importing_the_sink_loads_neither_tensorboard_nor_tensorflow():
    code = "import sys, sidestep_collector.sinks.tensorboard; print([m for m in ('tensorboard', 'tensorflow', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_events_are_valid_whatever_their_order_of_fields(tmp_path, sink):
    sink.write(Batch(blocks=[block([1, 2], names=("a",))]))
    data = (folder(tmp_path) / FILE).read_bytes()
    events, place = [], 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        events.append(EventProto.FromString(data[place + 12 : place + 12 + length]))
        place += 16 + length
    assert [(event.step, event.wall_time) for event in events[1:3]] == [(1, 1.7e9 + 1), (2, 1.7e9 + 2)]
