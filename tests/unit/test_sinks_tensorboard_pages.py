"""What TensorBoard shows besides curves: settings, and the layout of charts."""

import json
import math
import re

from support.event_files import FILE, accumulator, at, block, folder, multiplexer, sink, stream
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata as hparams_metadata

from sidestep_collector.blocks import Batch, Event, Text
from sidestep_collector.profiles import Choices
from sidestep_collector.sinks.tensorboard import TensorBoardSink

__all__ = ["sink"]


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
