"""What a script logs, and what becomes of it."""

import io
import json
import math
import signal
import struct
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import begin, records, scalars

from sidestep import journal as journal_module
from sidestep.errors import SidestepWarning, UsageError
from sidestep.report import DeliveryReport

__all__ = ["begin"]


def events(run):
    return [(record.fields[0], json.loads(record.fields[1])) for record in records(run, "lifecycle")]


# --- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        1,
        True,
        np.float64(0.5),
        np.float32(0.5),
        np.float16(0.5),
        np.int8(3),
        np.uint64(3),
        np.bool_(True),
        np.array(0.5),
        np.array([0.5]),
        torch.tensor(0.5),
        torch.tensor([[2]]),
        torch.tensor(0.5, dtype=torch.bfloat16),
        torch.tensor(0.5, requires_grad=True),
        Fraction(1, 2),
    ],
    ids=lambda value: f"{type(value).__name__} {value!r}",
)
def test_a_number_of_any_kind_is_recorded_alone_and_beside_a_float(begin, value):
    run = begin()
    run.log({"a": value})
    run.log({"a": value, "b": 2.0})
    number = float(value.item() if hasattr(value, "item") else value)
    assert scalars(run) == [(0, {"train/a": number}), (1, {"train/a": number, "train/b": 2.0})]
    assert run.stats["refused"] == {}


def test_numbers_that_are_not_finite_are_kept(begin):
    run = begin()
    run.log({"a": math.nan, "b": math.inf, "c": -math.inf})
    ((_, values),) = scalars(run)
    assert math.isnan(values["train/a"])
    assert (values["train/b"], values["train/c"]) == (math.inf, -math.inf)


def test_names_without_a_split_get_one_and_others_stay(begin):
    run = begin()
    run.log({"loss": 1.0, "val/loss": 2.0})
    run.log({"loss": 3.0}, split="val")
    run.log({"loss": 4.0}, split=None)
    assert scalars(run) == [(0, {"train/loss": 1.0, "val/loss": 2.0}), (1, {"val/loss": 3.0}), (2, {"loss": 4.0})]


def test_a_key_set_is_declared_once(begin):
    run = begin()
    for _ in range(5):
        run.log({"a": 1.0, "b": 2.0})
    run.log({"b": 1.0, "a": 2.0})
    assert len(records(run, "schema")) == 2


def test_a_small_array_is_kept_as_a_tensor_beside_the_numbers(begin):
    run = begin()
    run.log({"loss": 1.0, "w": np.arange(4, dtype=np.int16).reshape(2, 2), "v": torch.ones(3)})
    assert scalars(run) == [(0, {"train/loss": 1.0})]
    first, second = records(run, "tensor")
    assert first.fields == ("train/w", "int16", [2, 2], struct.pack("<4h", 0, 1, 2, 3))
    assert second.fields[:3] == ("train/v", "float32", [3])


@pytest.mark.parametrize(
    "value", ["text", None, [1.0], {}, 1j, pytest.param(object(), id="object"), 10**400, b"1", np.array("x")], ids=repr
)
def test_a_value_that_is_no_number_is_counted_said_once_and_left_out(begin, value):
    run = begin()
    with pytest.warns(SidestepWarning, match="'bad' is no number and is left out") as said:
        for _ in range(3):
            run.log({"a": 1.0, "bad": value, "b": 2.0})
    assert [values for _, values in scalars(run)] == [{"train/a": 1.0, "train/b": 2.0}] * 3
    assert len(said) == 1
    assert said[0].filename == __file__
    assert run.stats["refused"] == {"value": 3}


@pytest.mark.parametrize("name", [1, "", None, "n" * 1025, ("a",)], ids=lambda name: repr(name)[:10])
def test_a_name_that_is_none_is_counted_said_once_and_left_out(begin, name):
    run = begin()
    with pytest.warns(SidestepWarning, match="is no name") as said:
        for _ in range(2):
            run.log({name: np.float32(1), "a": 2.0})
    assert [values for _, values in scalars(run)] == [{"train/a": 2.0}] * 2
    assert run.stats["refused"]["name"] == 2
    assert sum("is no name" in str(warning.message) for warning in said) == 1


@pytest.mark.parametrize("mapping", [[1, 2], "text", None, 7, {1.0}], ids=repr)
def test_what_is_no_mapping_is_counted(begin, mapping):
    run = begin()
    with pytest.warns(SidestepWarning, match="takes a mapping"):
        run.log(mapping)
    assert scalars(run) == []


def test_two_names_of_one_tag_record_nothing_and_say_which(begin):
    run = begin()
    with pytest.warns(SidestepWarning, match="the same tag 'train/a'"):
        run.log({"a": 1.0, "train/a": 2.0})
    assert scalars(run) == []


def test_an_empty_mapping_records_nothing_but_the_key_set_it_is(begin):
    run = begin()
    run.log({})
    assert scalars(run) == []
    assert run.stats["refused"] == {}


def test_a_name_that_is_no_utf8_is_mended(begin):
    run = begin()
    run.log({"a\udcff": 1.0})
    assert scalars(run) == [(0, {"train/a?": 1.0})]


def test_strict_runs_raise(begin, monkeypatch):
    monkeypatch.setenv("SIDESTEP_STRICT", "1")
    run = begin()
    with pytest.raises(UsageError, match="is no number"):
        run.log({"a": "text"})
    with pytest.raises(ValueError, match="inhomogeneous"):
        run.tensor("t", [[1], [1, 2]])


def test_a_filter_that_makes_errors_of_warnings_raises_nothing_into_the_loop(begin, caplog):
    run = begin()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.log({"a": "text"})
    assert "'a' is no number" in caplog.text
    assert "test_run.py" in caplog.text


# --- steps and epochs ------------------------------------------------------------------------------------


def test_steps_are_counted_by_calls_or_given(begin):
    run = begin()
    assert run.step == -1
    run.log({"a": 1.0})
    run.log({"a": 1.0}, step=10)
    run.log({"a": 1.0})
    run.log({"a": 1.0}, step=np.int64(20))
    run.log({"a": 1.0})
    assert [step for step, _ in scalars(run)] == [0, 10, 11, 20, 21]


def test_steps_that_an_optimizer_counts_are_not_counted_by_calls(begin):
    run = begin()
    run.count_steps_by_optimizer()
    run.log({"a": 1.0})
    assert run.next_step() == 0
    run.next_step()
    run.log({"a": 1.0})
    run.log({"a": 1.0}, step=50)
    run.log({"a": 1.0})
    assert [step for step, _ in scalars(run)] == [-1, 1, 50, 1]


@pytest.mark.parametrize("step", ["abc", None.__class__, [], 2**70], ids=repr)
def test_a_step_that_is_none_is_counted_and_the_loop_goes_on(begin, step):
    run = begin()
    with pytest.warns(SidestepWarning, match="recorded nothing"):
        run.log({"a": 1.0}, step=step)
    run.log({"a": 2.0}, step=3)
    assert scalars(run) == [(3, {"train/a": 2.0})]


def test_an_epoch_is_begun_by_a_call_and_ended_by_the_next(begin):
    run = begin()
    run.epoch(1)
    run.log({"a": 1.0})
    run.epoch(np.int64(2))
    run.log({"a": 1.0})
    run.epoch(torch.tensor(3))
    assert run.current_epoch == 3.0
    assert [record.epoch for record in records(run, "scalars")] == [1.0, 2.0]
    names = ["epoch_begin", "epoch_end", "epoch_begin", "epoch_end", "epoch_begin"]
    assert events(run) == list(zip(names, [{"epoch": float(n)} for n in (1, 1, 2, 2, 3)], strict=True))


@pytest.mark.parametrize(
    "number", [3, 2.5, np.int64(3), np.float32(3), torch.tensor(3)], ids=lambda n: type(n).__name__
)
def test_an_epoch_is_a_context(begin, number):
    run = begin()
    with run.epoch(number):
        assert run.current_epoch == float(number)
    assert math.isnan(run.current_epoch)
    assert [name for name, _ in events(run)] == ["epoch_begin", "epoch_end"]


def test_epochs_are_gone_through(begin):
    run = begin()
    seen = []
    for epoch in run.epoch(range(1, 4)):
        run.log({"a": 1.0})
        seen.append((epoch, run.current_epoch))
    assert seen == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert math.isnan(run.current_epoch)
    assert [record.epoch for record in records(run, "scalars")] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("wrong", [None, object()], ids=["None", "object"])
def test_an_epoch_that_is_none_raises_nothing_into_the_loop(begin, wrong):
    run = begin()
    with pytest.warns(SidestepWarning), run.epoch(wrong):
        run.log({"a": 1.0})
    assert scalars(run) == [(0, {"train/a": 1.0})]


def test_one_epoch_cannot_be_gone_through(begin):
    with pytest.raises(TypeError, match="write epoch"):
        list(begin().epoch(3))


def test_numbers_with_an_epoch_are_numbers_of_the_epoch(begin):
    run = begin()
    run.log({"a": 1.0})
    run.log({"acc": 0.5}, epoch=2, split="val")
    first, second = records(run, "scalars")
    assert (first.tier, second.tier) == ("step", "epoch")
    assert (second.step, second.epoch) == (0, 2.0)


def test_fixed_names_are_recorded_as_they_are(begin):
    run = begin()
    names = ("grad/norm", "lr")
    run.record(names, [1.0, 2.0], step=5, epoch=1.0, tier="periodic", t_ns=7)
    run.record(names, torch.tensor([3.0, 4.0]))
    first, second = records(run, "scalars")
    assert (first.step, first.epoch, first.t_ns, first.tier) == (5, 1.0, 7, "periodic")
    assert second.values == {"grad/norm": 3.0, "lr": 4.0}
    with pytest.warns(SidestepWarning):
        run.record(names, [1.0])


# --- other things ----------------------------------------------------------------------------------------


def pixels(run):
    (record,) = records(run, "figure")
    assert record.fields[:2] == ("image", "x")
    return np.asarray(Image.open(io.BytesIO(record.fields[2])))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_an_image_of_bytes_is_the_same_pixels(begin, shape):
    run = begin()
    given = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    run.image("x", given)
    assert np.array_equal(pixels(run), given.reshape(given.shape[:2]) if shape[2:] in ((), (1,)) else given)


def test_an_image_of_floats_goes_from_black_to_white(begin):
    run = begin()
    run.image("x", np.array([[0.0, 0.5, 1.0, 2.0, -1.0, np.nan]]))
    assert pixels(run).tolist() == [[0, 128, 255, 255, 0, 0]]


def test_an_image_of_torch_has_its_channels_first(begin):
    run = begin()
    given = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8)
    run.image("x", given)
    assert np.array_equal(pixels(run), given.permute(1, 2, 0).numpy())


def test_an_image_of_pillow_or_png_is_kept(begin):
    run = begin()
    image = Image.fromarray(np.eye(6, dtype=np.uint8) * 200)
    run.image("x", image)
    assert np.array_equal(pixels(run), np.asarray(image))


@pytest.mark.parametrize(
    "image",
    [np.zeros(4), np.zeros((2, 3, 5)), np.zeros((0, 4)), b"GIF89a", "x.png", np.zeros((1, 2, 3, 4)), None],
    ids=repr,
)
def test_what_is_no_image_is_counted(begin, image):
    run = begin()
    with pytest.warns(SidestepWarning):
        run.image("x", image)
    assert records(run) == []


def test_a_histogram_counts_finite_values(begin):
    run = begin()
    run.histogram("h", [0.0, 1.0, 1.0, math.nan, math.inf], bins=2, step=7)
    run.histogram("c", counts=[1, 2], edges=[0, 1, 2], split="val")
    first, second = records(run, "figure")
    assert (first.step, first.fields[:2]) == (7, ("histogram", "h"))
    assert struct.unpack("<3d", first.fields[2]) == (0.0, 0.5, 1.0)
    assert struct.unpack("<2d", first.fields[3]) == (1.0, 2.0)
    assert second.fields[1] == "val/c"


@pytest.mark.parametrize(
    "given", [{}, {"values": [1], "counts": [1]}, {"counts": [1], "edges": [1]}, {"values": ["x"]}]
)
def test_a_histogram_that_cannot_be_meant_is_counted(begin, given):
    run = begin()
    with pytest.warns(SidestepWarning):
        run.histogram("h", **given)
    assert records(run) == []


def test_tensors_of_all_types_are_kept_with_their_bytes(begin):
    run = begin()
    run.tensor("b", torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    run.tensor("n", np.array([[1, 2]], dtype=">i4"), step=4, split="train")
    run.tensor("e", torch.empty(0, 3))
    run.tensor("l", [[1.5, 2.5]])
    run.tensor("t", torch.arange(6).reshape(2, 3).T)
    first, second, empty, nested, turned = (record.fields for record in records(run, "tensor"))
    assert first == ("b", "bfloat16", [2], b"\x80\x3f\x00\xc0")
    assert second == ("train/n", "int32", [1, 2], struct.pack("<2i", 1, 2)) or second[3] == struct.pack("<2i", 1, 2)
    assert empty == ("e", "float32", [0, 3], b"")
    assert nested == ("l", "float64", [1, 2], struct.pack("<2d", 1.5, 2.5))
    assert turned == ("t", "int64", [3, 2], struct.pack("<6q", 0, 3, 1, 4, 2, 5))


@pytest.mark.parametrize(
    "value", [[[1], [1, 2]], ["a"], None, pytest.param(object(), id="object"), np.array([None])], ids=repr
)
def test_what_is_no_tensor_is_counted(begin, value):
    run = begin()
    with pytest.warns(SidestepWarning):
        run.tensor("t", value)
    assert records(run) == []


def test_a_tensor_beyond_a_record_is_refused_and_the_rest_goes_on(begin):
    run = begin()
    with pytest.warns(SidestepWarning, match="do not fit a record"):
        run.tensor("t", np.zeros(3 << 20))
    run.log({"a": 1.0})
    assert scalars(run) == [(0, {"train/a": 1.0})]


def test_texts_and_marks_are_recorded(begin):
    run = begin()
    run.text("note", "hello", step=3)
    run.mark("checkpoint", path="/x", size_mb=1.5, bad=math.nan, step=4)
    (text,) = records(run, "text")
    assert (text.step, text.fields) == (3, ("text", "note", "hello"))
    assert events(run) == [("checkpoint", {"path": "/x", "size_mb": 1.5, "bad": "nan"})]


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
