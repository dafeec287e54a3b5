"""Training scripts as people write them, captured: what is stored is what they compute and print themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.captured import CLOSE, Captured, captured, check_same, script
from support.place import Place


def test_mnist_gives_the_values_that_it_prints(place: Place, tmp_path: Path) -> None:
    saved = tmp_path / "mnist.pt"
    command = script("mnist.py", "--save-model", str(saved))
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)
    sampled = ran.points("train/acc")
    assert [step for step, _ in sampled] == [0, 10, 20, 30, 40]
    assert [value for _, value in sampled] == pytest.approx([ran.said["acc"][step] for step, _ in sampled], **CLOSE)
    assert ran.values("val/loss_total") == pytest.approx(ran.said["val_loss"], **CLOSE)
    assert ran.values("val/acc") == pytest.approx(ran.said["val_acc"], **CLOSE)
    assert [step for step, _ in ran.points("val/acc")] == [20, 41]
    assert ran.values("checkpoint_size_mb") == pytest.approx([saved.stat().st_size / 1e6])
    assert all(0 < share < 1 for share in ran.values("perf/data_loading_frac"))
    assert all(0.1 < value < 1 for value in ran.values("val/logits/confidence"))
    assert {"train/lr", "train/gradients/global_norm", "train/updates/relative_update_norm"} <= ran.metrics()
    check_listing(place, ran)
    document = place.document(ran.run, 2, project="mnist")
    assert document["val"]["acc"] == pytest.approx(ran.said["val_acc"][1], **CLOSE)


def check_listing(place: Place, ran: Captured) -> None:
    assert ran.errors.count("this script is captured") == 1
    for found in (
        "mnist/",
        "Net, 3,658 parameters",
        "Adadelta (lr 1)",
        "DataLoader over Subset, 1,297 samples in batches of 64",
        "nll_loss",
        "6 settings",
        "--no-auto",
    ):
        assert found in ran.errors
    [(config,)] = place.rows("select config from runs")
    assert '"batch_size": 64' in re.sub(r"\s+", " ", config.replace('":', '": '))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_imagenet_gives_the_values_of_its_meters(place: Place, tmp_path: Path, workers: str) -> None:
    command = script("imagenet.py", str(tmp_path), "--workers", workers)
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)
    assert ran.values("val/loss_total") == pytest.approx(ran.said["val_loss"], **CLOSE)
    assert ran.values("val/acc") == pytest.approx(ran.said["val_acc"], **CLOSE)
    assert [value for _, value in ran.points("train/lr")] == pytest.approx(ran.said["lr"][::10])
    assert ran.values("checkpoint_size_mb") == pytest.approx([size / 1e6 for size in ran.said["size"]])
    validated = place.rows("select epoch, vlast from epochs where metric = 'val/acc' order by epoch")
    assert [epoch for epoch, _ in validated] == [1, 2, 3]
    assert [value for _, value in validated] == pytest.approx(ran.said["val_acc"], **CLOSE)
    assert [step for step, _ in ran.points("perf/data_loading_frac")] == [9, 19, 29]
    assert ran.errors.count("sidestep: ") == 1  # workers say nothing


def test_a_language_model_gives_loss_and_clipped_norms(place: Place, tmp_path: Path) -> None:
    command = script("words.py", str(tmp_path / "model.pt"))
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)
    assert ran.values("val/loss_total") == pytest.approx(ran.said["val_loss"], **CLOSE)
    norms = ran.said["norm"]
    assert ran.values("train/gradient/global_norm_before_clip") == pytest.approx(norms, **CLOSE)
    after = [min(norm, 0.25) for norm in norms]
    assert ran.values("train/gradient/global_norm_after_clip") == pytest.approx(after, rel=1e-4)
    assert ran.values("train/gradient/clipped") == [float(norm > 0.25) for norm in norms]
    assert len(ran.values("checkpoint_size_mb")) == 2  # written into a file object


def test_accumulated_gradients_give_the_loss_that_the_step_followed(place: Place) -> None:
    command = script("gpt.py")
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)
    sampled = ran.points("train/acc")
    assert [step for step, _ in sampled] == [0, 10]
    assert [value for _, value in sampled] == pytest.approx([ran.said["acc"][step] for step, _ in sampled], **CLOSE)
    for split in ("val", "train_eval"):
        assert ran.values(f"{split}/loss_total") == pytest.approx(ran.said[f"{split}_loss"], **CLOSE)
    assert [step for step, _ in ran.points("val/loss_total")] == [0, 3, 7]


def test_a_scaled_loss_counts_unscaled_and_skipped_steps_are_seen(place: Place) -> None:
    command = script("gpt.py", "--scaled")
    ran = captured(place, *command)
    assert ran.code == 0, ran.errors
    check_same(ran, *command)
    assert ran.said["skipped"] == [5]
    assert ran.values("train/loss_total") == pytest.approx(ran.said["loss"], **CLOSE)
    assert ran.values("train/amp/skipped").count(1.0) == 1
    assert ran.values("train/amp/scale") == ran.said["scale"]
