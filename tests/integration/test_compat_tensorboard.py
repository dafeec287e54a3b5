"""Scripts written for torch's SummaryWriter: the same calls, recorded here as torch writes them there."""

from __future__ import annotations

import inspect
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.journal_reader import Record, read_records, read_scalars, read_tags
from support.place import tensorboard_points
from support.watched import offline, small_net, take_step

import sidestep
from sidestep.compat import SummaryWriter
from sidestep.errors import SidestepWarning, UsageError

__all__ = ["offline"]


@pytest.fixture
def lenient(offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("SIDESTEP_STRICT", "0")
    return offline


def items(folder: Path, kind: str) -> list[Record]:
    return [record for record in read_records(folder) if record.kind == kind]


def picture(record: Record) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(record.fields[2])))


def script(writer: Any) -> None:
    for step in range(3):
        writer.add_scalar("Loss/train", 1.0 / (step + 1), step)
        writer.add_scalar("plain", torch.tensor(step * 2.0), global_step=step)
        writer.add_scalar("counted", np.float32(step), torch.tensor(step))


def test_numbers_are_those_that_torch_writes(offline: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(offline["dir"] / "torch")
        with theirs:
            script(theirs)
        written = {(tag, step): value for tag, step, value in tensorboard_points(offline["dir"] / "torch")}
    with SummaryWriter(**offline) as ours:
        script(ours)
    tags = ("Loss/train", "plain", "counted")
    recorded = {(tag, step): value for tag in tags for step, value in read_scalars(offline["dir"], tag).items()}
    assert recorded == pytest.approx(written)


def test_each_call_takes_the_arguments_that_torch_s_takes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    for name, call in inspect.getmembers(SummaryWriter, inspect.isfunction):
        if name.startswith("_") and name != "__init__":
            continue
        ours = inspect.signature(call).parameters
        if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in ours.values()):
            continue
        expected = list(inspect.signature(getattr(theirs, name)).parameters)
        assert list(ours)[: len(expected)] == expected, name


def test_the_log_dir_is_the_run_s_name_and_close_ends_the_run(offline: dict[str, Any]) -> None:
    writer = SummaryWriter("runs/first", **offline)
    run = sidestep.active_run()
    assert run is not None
    assert (run.name, writer.get_logdir(), writer.log_dir) == ("runs/first", "runs/first", "runs/first")
    writer.flush()
    writer.close()
    writer.close()
    assert not run.is_live
    assert not Path("runs/first").exists()


def test_several_numbers_stand_under_one_name(offline: dict[str, Any]) -> None:
    with SummaryWriter(**offline) as writer:
        writer.add_scalars("run", {"a": 1.0, "b": 2.0}, 7)
    assert read_scalars(offline["dir"], "run/a") == {7: 1.0}
    assert read_scalars(offline["dir"], "run/b") == {7: 2.0}


def test_a_wall_time_is_kept(offline: dict[str, Any]) -> None:
    with SummaryWriter(**offline) as writer:
        writer.add_scalar("then", 1.5, 2, walltime=1000.25)
    [record] = [record for record in items(offline["dir"], "scalars") if "then" in (record.values or {})]
    assert (record.t_ns, record.step, record.values) == (1_000_250_000_000, 2, {"then": 1.5})


def test_without_a_step_it_is_the_watched_one_or_zero(offline: dict[str, Any]) -> None:
    with SummaryWriter(**offline) as writer:
        writer.add_scalar("early", 1.0)
    writer = SummaryWriter(**offline)
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sidestep.watch(model, optimizer, every=100)
    for step in range(3):
        take_step(model, optimizer, step)
    writer.add_scalar("late", 1.0)
    writer.close()
    assert read_scalars(offline["dir"], "early") == {0: 1.0}
    assert read_scalars(offline["dir"], "late") == {2: 1.0}


def test_histograms_arrive_counted(offline: dict[str, Any]) -> None:
    with SummaryWriter(**offline) as writer:
        writer.add_histogram("weights", torch.arange(100.0), 1)
        writer.add_histogram("automatic", np.arange(10.0), 1, bins="auto")
        writer.add_histogram_raw("raw", 0.0, 3.0, 6, 9.0, 15.0, [1.0, 2.0, 3.0], [1, 2, 3], 1)
    by_name = {record.fields[1]: record for record in items(offline["dir"], "figure")}
    edges, counts = (np.frombuffer(part, "<f8") for part in by_name["weights"].fields[2:4])
    assert (len(counts), counts.sum(), edges[0], edges[-1]) == (64, 100, 0.0, 99.0)
    edges, counts = (np.frombuffer(part, "<f8") for part in by_name["raw"].fields[2:4])
    assert (list(edges), list(counts)) == ([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert "automatic" in by_name


def test_images_of_any_axes_arrive(offline: dict[str, Any]) -> None:
    image = torch.arange(2 * 3 * 3, dtype=torch.uint8).reshape(3, 2, 3)  # CHW
    with SummaryWriter(**offline) as writer:
        writer.add_image("chw", image, 0)
        writer.add_image("hwc", image.permute(1, 2, 0), 0, dataformats="HWC")
        writer.add_image("hw", image[0], 0, dataformats="HW")
        writer.add_images("many", torch.stack([image] * 10), 0)
    by_name = {record.fields[1]: picture(record) for record in items(offline["dir"], "figure")}
    expected = image.permute(1, 2, 0).numpy()
    assert np.array_equal(by_name["chw"], expected)
    assert np.array_equal(by_name["hwc"], expected)
    assert np.array_equal(by_name["hw"], expected[:, :, 0])
    assert by_name["many"].shape == (4, 24, 3)
    assert np.array_equal(by_name["many"][2:, 3:6], expected)
    assert not by_name["many"][2:, 6:].any()


def test_figures_arrive_as_images(offline: dict[str, Any]) -> None:
    class Figure:
        """Has what of matplotlib's is needed."""

        def savefig(self, target: Any, **how: Any) -> None:
            Image.new("RGB", (3, 2), (255, 0, 0)).save(target, **how)

    with SummaryWriter(**offline) as writer:
        writer.add_figure("one", Figure(), 4)
        writer.add_figure("two", [Figure(), Figure()], 4)
    found = [(record.fields[1], record.step, picture(record).shape) for record in items(offline["dir"], "figure")]
    assert found == [("one", 4, (2, 3, 3)), ("two/0", 4, (2, 3, 3)), ("two/1", 4, (2, 3, 3))]


def test_texts_tensors_and_settings_arrive(offline: dict[str, Any]) -> None:
    with SummaryWriter(**offline) as writer:
        writer.add_text("note", "hello", 3)
        writer.add_tensor("matrix", torch.eye(2), 3)
        writer.add_hparams({"lr": 0.1, "width": 8}, {"hparam/loss": 0.5})
    texts = [(record.step, *record.fields) for record in items(offline["dir"], "text")]
    assert (3, "text", "note", "hello") in texts
    assert {"lr": 0.1, "width": 8} in [json.loads(text) for _, kind, _, text in texts if kind == "config"]
    [tensor] = items(offline["dir"], "tensor")
    assert (tensor.step, tensor.fields[0]) == (3, "matrix")
    assert read_scalars(offline["dir"], "hparam/loss") == {0: 0.5}


def test_a_second_writer_puts_its_folder_before_its_tags_and_the_last_close_ends(offline: dict[str, Any]) -> None:
    train = SummaryWriter("runs/x/train", **offline)
    val = SummaryWriter("runs/x/val")
    run = sidestep.active_run()
    assert run is not None
    train.add_scalar("loss", 1.0, 0)
    val.add_scalar("loss", 2.0, 0)
    train.close()
    assert run.is_live
    val.add_scalar("loss", 3.0, 1)
    val.close()
    assert not run.is_live
    assert read_scalars(offline["dir"], "loss") == {0: 1.0}
    assert read_scalars(offline["dir"], "val/loss") == {0: 2.0, 1: 3.0}


def test_a_run_of_the_script_s_is_not_ended(offline: dict[str, Any]) -> None:
    with sidestep.init(**offline) as run:
        with SummaryWriter() as writer:
            writer.add_scalar("a", 1.0, 0)
        assert run.is_live


def test_an_exception_in_its_block_is_a_failed_run(offline: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="no"), SummaryWriter(**offline):
        raise RuntimeError("no")
    [end] = [json.loads(record.fields[1]) for record in items(offline["dir"], "lifecycle") if record.fields[0] == "end"]
    assert (end["status"], end["error"]) == ("failed", "RuntimeError: no")
    assert end["traceback"].endswith("RuntimeError: no")


@pytest.mark.parametrize("name", ["add_graph", "add_pr_curve", "add_video", "add_mesh", "add_custom_scalars"])
def test_what_is_not_recorded_is_said_once(lenient: dict[str, Any], name: str) -> None:
    message = f"SummaryWriter.{name} is not recorded by sidestep"
    with SummaryWriter(**lenient) as writer, pytest.warns(SidestepWarning, match=message) as said:
        getattr(writer, name)("tag", 1)
        getattr(writer, name)("tag", 2)
    assert len(said) == 1
    assert said[0].filename == __file__


def test_embeddings_are_refused_with_what_to_do_instead(lenient: dict[str, Any]) -> None:
    with SummaryWriter(**lenient) as writer, pytest.warns(SidestepWarning, match="no projector; run.tensor"):
        writer.add_embedding(torch.eye(3))


def test_what_cannot_be_recorded_is_said_and_never_raised(lenient: dict[str, Any]) -> None:
    with SummaryWriter(**lenient) as writer:
        with pytest.warns(SidestepWarning, match="'word' is no number"):
            writer.add_scalar("word", "text", 0)
        with pytest.warns(SidestepWarning, match="has no axes 'CHW'"):
            writer.add_image("flat", torch.zeros(3), 0)
        with pytest.warns(SidestepWarning):
            writer.add_scalar("timed", "text", 0, walltime=1.0)
        with pytest.warns(SidestepWarning):
            writer.add_figure("none", object(), 0)
        with pytest.warns(SidestepWarning):
            writer.add_scalars("several", 1.0, 0)  # type: ignore[arg-type]
    assert not {"word", "timed"} & read_tags(lenient["dir"])


def test_strict_raises_and_unknown_names_are_errors(offline: dict[str, Any]) -> None:
    with SummaryWriter(**offline) as writer:
        with pytest.raises(UsageError, match="add_graph"):
            writer.add_graph(None)
        with pytest.raises(AttributeError, match="no attribute 'close_all'"):
            writer.close_all()
    with pytest.raises(UsageError, match=r"SummaryWriter\(\) takes no 'logdir'"):
        SummaryWriter(logdir="x")
