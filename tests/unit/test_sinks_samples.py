"""Files of latents, and settings beside the event files."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from sidestep_collector import latents
from sidestep_collector.blocks import Batch, Event, Moment, Stream, Tensor, Text
from sidestep_collector.sinks.hparams_file import HparamsFile
from sidestep_collector.sinks.samples import SampleSink

STREAM = Stream(b"12345678", b"r" * 16, "r", "p", 0, 0)
rng = np.random.default_rng(0)
X, REAL = (rng.normal(size=(3, 4, 4, 6, 8)).astype("f4") for _ in range(2))


def tensor(seq, array, *, real=False, epoch=25.0, step=100, stream=STREAM):
    name = "samples/real_latents" if real else "samples/generated_latents"
    at = Moment(stream, seq, seq, step, epoch)
    return Tensor(at, name, array.dtype.name, array.shape, array.tobytes())


def content(root):
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def samples(root):
    return root / "runs" / "p" / "r" / "samples"


def read(folder):
    found = json.loads((folder / "latent_stats.json").read_text())
    return found, {file.stem: np.load(file) for file in (folder / "latents").iterdir()}


def test_generated_latents_are_written_with_the_real_ones_before_them(tmp_path):
    SampleSink(tmp_path).write(Batch(items=[tensor(1, REAL, real=True, epoch=1.0), tensor(2, X)]))
    folder = samples(tmp_path) / "epoch_025"
    assert [file.name for file in samples(tmp_path).iterdir()] == ["epoch_025"]
    found, arrays = read(folder)
    np.testing.assert_array_equal(arrays["generated"], X)
    np.testing.assert_array_equal(arrays["real"], REAL)
    assert arrays["real"].dtype == np.float32
    assert (found["epoch"], found["step"], found["shape"]) == (25.0, 100, [3, 4, 4, 6, 8])
    for channel in range(4):
        ours, theirs = X[:, channel].astype(float), REAL[:, channel].astype(float)
        for said, values in ((found["generated"][channel], ours), (found["real"][channel], theirs)):
            numbers = (values.mean(), values.std(), values.min(), values.max())
            assert tuple(said[name] for name in ("mean", "std", "min", "max")) == pytest.approx(numbers)
        distance = np.abs(np.sort(ours.ravel()) - np.sort(theirs.ravel())).mean() / theirs.std()
        assert found["distances"][channel]["distance"] == pytest.approx(distance)
    for plane in ("axial", "coronal", "sagittal"):
        drawn = np.asarray(Image.open(io.BytesIO((folder / f"grid_{plane}.png").read_bytes())))
        np.testing.assert_array_equal(drawn, latents.grid(X.astype(float), plane))


def test_real_latents_that_come_later_are_added_to_the_files_of_generated_ones(tmp_path):
    sink = SampleSink(tmp_path)
    sink.write(Batch(items=[tensor(1, X)]))
    assert "distances" not in read(samples(tmp_path) / "epoch_025")[0]
    sink.write(Batch(items=[tensor(2, REAL, real=True, epoch=26.0)]))
    found, arrays = read(samples(tmp_path) / "epoch_025")
    assert len(found["distances"]) == 4
    np.testing.assert_array_equal(arrays["real"], REAL)


def test_a_batch_that_is_written_again_changes_no_byte(tmp_path):
    sink = SampleSink(tmp_path)
    sink.write(Batch(items=[tensor(1, REAL, real=True)]))
    batch = Batch(items=[tensor(2, X), tensor(3, 2 * REAL, real=True), Event(tensor(4, X).at, "end", {})])
    sink.write(batch)
    before = content(tmp_path)
    sink.write(batch)
    assert content(tmp_path) == before
    np.testing.assert_array_equal(read(samples(tmp_path) / "epoch_025")[1]["real"], REAL)


def test_a_sink_that_learns_the_stored_past_goes_on_as_if_it_had_never_stopped(tmp_path):
    first, later = (Batch(items=[tensor(n, array, real=n == 1, epoch=n)]) for n, array in ((1, REAL), (2, X)))
    whole = SampleSink(tmp_path / "whole")
    whole.write(first)
    whole.write(later)
    again = SampleSink(tmp_path / "again")
    again.restore(first.items)
    again.write(later)
    assert content(tmp_path / "again") == content(tmp_path / "whole")


def test_without_epochs_the_step_names_the_folder_and_another_rank_has_its_own(tmp_path):
    other = replace(STREAM, key=b"87654321", rank=1)
    nowhere = float("nan")
    items = [tensor(1, X, epoch=nowhere, step=123), tensor(1, X, epoch=nowhere, step=-1), tensor(1, X, stream=other)]
    SampleSink(tmp_path).write(Batch(items=items))
    names = {file.name for file in samples(tmp_path).iterdir()}
    assert names == {"step_000123", "step_000000", "epoch_025_rank_1"}


def test_flat_latents_have_statistics_and_no_picture_and_nan_is_null(tmp_path):
    flat = np.array([[1.0, np.nan], [1.0, np.nan]], "f4")
    SampleSink(tmp_path).write(Batch(items=[tensor(1, flat, real=True), tensor(2, flat)]))
    folder = samples(tmp_path) / "epoch_025"
    assert not list(folder.glob("*.png"))
    found, _ = read(folder)
    assert found["generated"] == [{"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0}, {}]
    assert found["distances"] == [{"mean_shift": None, "std_ratio": None, "distance": None}, {}]


def start(config, *, attempt=0, rank=0):
    stream = replace(STREAM, attempt=attempt, rank=rank)
    return Event(Moment(stream, 0, 0, -1, float("nan")), "start", {"config": config})


def hparams(root):
    return yaml.safe_load((root / "runs" / "p" / "r" / "tensorboard" / "hparams.yaml").read_text(encoding="utf-8"))


def test_settings_are_written_as_yaml_and_replaced_by_what_is_said_later(tmp_path):
    config = {"lr": 1e-3, "model": {"width": 16, "name": "größer"}, "betas": [0.9, 0.95], "ema": None}
    sink = HparamsFile(tmp_path)
    sink.write(Batch(items=[start(config), start({"lr": 2.0}, rank=1)]))
    assert hparams(tmp_path) == config
    text = Text(Moment(STREAM, 9, 9, 5, 1.0), "config", "config", json.dumps({**config, "lr": 0.5}))
    sink.write(Batch(items=[text]))
    assert hparams(tmp_path) == {**config, "lr": 0.5}


def test_the_settings_of_a_later_start_stand_and_a_run_without_settings_has_no_file(tmp_path):
    HparamsFile(tmp_path).write(Batch(items=[start({"lr": 2}, attempt=1), start({"lr": 1})]))
    assert hparams(tmp_path) == {"lr": 2}
    HparamsFile(tmp_path / "other").write(Batch(items=[start({})]))
    assert not (tmp_path / "other").exists()
