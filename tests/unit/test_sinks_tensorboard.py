import io
import json
import math
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as Picture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event as EventProto
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata as hparams_metadata

from sidestep_collector.blocks import (
    Batch,
    EpochSummary,
    Event,
    Histogram,
    Image,
    KeySet,
    Moment,
    ScalarBlock,
    Stream,
    Tensor,
    Text,
)
from sidestep_collector.profiles import Choices
from sidestep_collector.sinks import event_file
from sidestep_collector.sinks.tensorboard import TensorBoardSink

START_NS = 1_700_000_000_000_000_000
KEEP_ALL = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
FILE = "events.out.tfevents.0.sidestep"


def stream(run="r1", rank=0, attempt=0, project="p"):
    return Stream(struct.pack("<II", rank, attempt), bytes(16), run, project, rank, attempt)


def block(steps, names=("train/loss_total", "train/lr"), values=None, to=None, key_set_id=0):
    steps = np.asarray(steps, dtype=np.int64)
    if values is None:
        values = np.arange(len(steps) * len(names), dtype=np.float32).reshape(len(steps), len(names))
    key_set = KeySet(key_set_id, 0, "step", tuple(names), ("mean",) * len(names))
    seq = np.arange(len(steps), dtype=np.int64) + 1000
    return ScalarBlock(to or stream(), key_set, seq, START_NS + steps * 10**9, steps, steps / 10, np.asarray(values))


def at(step=5, to=None, seq=77):
    return Moment(to or stream(), seq, START_NS + step * 10**9, step, 0.0)


def statistics(mean, n):
    return {"mean": mean, "std": 0.0, "min": mean, "max": mean, "last": mean, "n": n, "n_nonfinite": 0}


def folder(root, sub="attempt_0", run="r1"):
    return root / "runs" / "p" / run / "tensorboard" / sub


def accumulator(path):
    found = EventAccumulator(str(path), size_guidance=KEEP_ALL)
    return found.Reload()


def multiplexer(root):
    found = EventMultiplexer(tensor_size_guidance=dict.fromkeys(("scalars", "text", "hparams", "histograms"), 0))
    return found.AddRunsFromDirectory(str(root)).Reload()


def scalars(root, tag, sub="attempt_0", run="r1"):
    return [(event.step, event.value) for event in accumulator(folder(root, sub, run)).Scalars(tag)]


@pytest.fixture
def sink(tmp_path):
    made = TensorBoardSink(tmp_path, {})
    yield made
    made.close()


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


def hparams(root, tag, parse, sub="attempt_0"):
    content = multiplexer(root).PluginRunToTagToContent("hparams")[f"runs/p/r1/tensorboard/{sub}"]
    return parse(content[f"_hparams_/{tag}"])


def test_settings_and_the_end_are_on_the_hparams_page(tmp_path, sink):
    config = {"lr": 0.1, "deep": {"layers": 3, "none": None}, "amp": True, "name": "x", "dims": [1, 2], "big": 10**30}
    config["odd"] = math.nan
    sink.write(Batch(items=[Event(at(0), "start", {"config": config})]))
    sink.write(Batch(items=[Event(at(60), "end", {"status": "failed"})]))
    start = hparams(tmp_path, "session_start_info", hparams_metadata.parse_session_start_info_plugin_data)
    assert start.group_name == "r1"
    assert start.start_time_secs == 1.7e9
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    expected = {"lr": 0.1, "deep/layers": 3.0, "deep/none": "null", "amp": True, "name": "x", "dims": "[1,2]"}
    assert found == {**expected, "big": "1" + "0" * 30, "odd": "nan"}
    end = hparams(tmp_path, "session_end_info", hparams_metadata.parse_session_end_info_plugin_data)
    assert (end.status, end.end_time_secs) == (2, 1.7e9 + 60)


def test_settings_that_come_later_as_text_count_where_the_start_had_none(tmp_path, sink):
    later = Text(at(), "config", "", json.dumps({"lr": 0.5}))
    sink.write(Batch(items=[Event(at(0), "start", {}), Text(at(), "config", "", "[no object"), later, later]))
    sink.write(Batch(items=[Event(at(0), "end", {"status": "finished"}), Event(at(0, stream(rank=1)), "end", {})]))
    start = hparams(tmp_path, "session_start_info", hparams_metadata.parse_session_start_info_plugin_data)
    assert start.hparams["lr"].number_value == 0.5
    end = hparams(tmp_path, "session_end_info", hparams_metadata.parse_session_end_info_plugin_data)
    assert end.status == 1
    sessions = multiplexer(tmp_path).PluginRunToTagToContent("hparams")
    assert list(sessions) == ["runs/p/r1/tensorboard/attempt_0"]


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


def layouts(root, sub="attempt_0"):
    found = [event for event in EventFileLoader(str(folder(root, sub) / FILE)).Load() if event.HasField("summary")]
    values = [value for event in found for value in event.summary.value if value.tag == "custom_scalars__config__"]
    return [Layout.FromString(value.tensor.string_val[0]) for value in values]


def test_the_layout_has_a_chart_for_each_group_of_tags(tmp_path, sink):
    names = ("train/mine", "train/other/a", "train/other/b", "alone", "val/x.y")
    sink.write(Batch(blocks=[block([1], names=names)]))
    (layout,) = layouts(tmp_path)
    charts = {category.title: [chart.title for chart in category.chart] for category in layout.category}
    assert charts == {
        "other": ["alone"],
        "train": ["train/mine", "train/other"],
        "val": ["val/x.y"],
    }
    assert layout.category[1].chart[1].multiline.tag == ["^train/other(/|$)"]
    assert layout.category[2].chart[0].multiline.tag == [r"^val/x\.y(/|$)"]


def test_the_panels_of_the_runs_profile_come_first_and_show_what_is_there(tmp_path):
    choices = Choices()
    choices.note("r1", {"profile": "jepa"})
    sink = TensorBoardSink(tmp_path, {}, choices)
    cosines = tuple(f"train/prediction/level0_cosine_sim_{name}" for name in ("mean", "min", "max"))
    sink.write(Batch(blocks=[block([1], names=("train/loss/h0", "train/loss/h1", "train/loss_total", *cosines))]))
    sink.close()
    (layout,) = layouts(tmp_path)
    charts = [(category.title, [chart.title for chart in category.chart]) for category in layout.category]
    assert charts == [
        ("Losses", ["levels"]),
        ("Prediction", ["level 0", "cosine, all levels"]),
        ("Losses", ["loss"]),  # of the common part
        ("train", ["train/loss", "train/loss_total", "train/prediction"]),
    ]
    [pattern] = layout.category[0].chart[0].multiline.tag
    assert [bool(re.match(pattern, tag)) for tag in ("train/loss/h0", "train/loss/h12", "train/loss_total")] == [
        1,
        1,
        0,
    ]
    [series] = layout.category[1].chart[0].margin.series
    assert (series.value, series.lower, series.upper) == cosines


def test_a_tag_is_described_as_the_runs_profile_says(tmp_path):
    choices = Choices()
    choices.note("r1", {"profile": "jepa"})
    sink = TensorBoardSink(tmp_path, {}, choices)
    sink.write(Batch(blocks=[block([1], names=("train/collapse/level3_effective_rank",))]))
    sink.close()
    described = accumulator(folder(tmp_path)).SummaryMetadata("train/collapse/level3_effective_rank")
    assert "Unit: dimensions. Target: above 100 of 768" in described.summary_description


def test_the_layout_does_not_grow_the_file(tmp_path, sink):
    for index in range(40):
        sink.write(Batch(blocks=[block([index], names=(f"g{index}/x",), key_set_id=index)]))
    assert [len(layout.category) for layout in layouts(tmp_path)] == [1, 2, 4, 8, 16, 32]
    sink.write(Batch(items=[Event(at(), "end", {})]))
    assert len(layouts(tmp_path)[-1].category) == 40


def test_the_layout_remembers_tags_from_before_a_restart(tmp_path):
    sink = TensorBoardSink(tmp_path, {})
    lengths = sink.write(Batch(blocks=[block([1], names=("a/x", "b/x"))]))
    sink.close()
    sink = TensorBoardSink(tmp_path, lengths)
    sink.write(Batch(blocks=[block([2], names=("c/x",))]))
    sink.write(Batch(items=[Event(at(), "end", {})]))
    sink.close()
    assert [[category.title for category in layout.category] for layout in layouts(tmp_path)] == [
        ["a", "b"],
        ["a", "b", "c"],
    ]


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
