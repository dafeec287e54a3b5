"""Other ways to train the example of average-velocity flow matching: parts of it off, two ranks, Lightning."""

import sys

import numpy as np
import pytest
from support.families import TWO_RANKS, missing_of, shown_tags, stored_tags
from support.meanflow import BATCH, EPOCHS, SIZE, command, folder, run_to_its_end


def test_what_is_switched_off_does_not_arrive_and_the_rest_does(place):
    off = ("grad_block_norms", "meanflow_norms", "time_sampling_stats", "ema_divergence", "performance_counters")
    said = dict.fromkeys((*off, "latent_histograms"), False) | {"json_every_n_epochs": 2, "log_every_n_steps": 3}
    run_to_its_end(place, *command("train.py", "--batch-size", str(BATCH), **said))
    [(run,)] = place.rows("select run from runs")
    tags = stored_tags(place, run)
    gone = (
        "train/gradients/conv_in",
        "train/meanflow/",
        "train/channel/",
        "train/sampling/",
        "ema/",
        "perf/steps",
        "histograms/",
    )
    assert [tag for tag in tags if tag.startswith(gone)] == []
    assert {"train/loss_fm", "train/gradients/global_norm", "generated/distance_ch0", "samples/generated_grid"} <= tags
    steps = [step for step, _ in place.values(run, "train/updates/relative_update_norm")]
    assert {step % 3 for step in steps} == {0}
    documents = {file.name for file in (folder(place, run) / "diagnostics").glob("epoch_*")}
    assert documents == {"epoch_002"}
    assert {file.name for file in (folder(place, run) / "diagnostics" / "periods").iterdir()} == {"epochs_001-002.json"}


def test_two_ranks_are_one_run_whose_samples_are_counted_together(place):
    run_to_its_end(place, "-m", "sidestep", "run", "--", sys.executable, *TWO_RANKS, *command("train.py"))
    [(run,)] = place.rows("select run from runs")
    place.check_whole(run)
    query = "select step, value from points_over_ranks where run = ? and metric = ? order by step"
    each = [dict(place.values(run, "train/sampling/n_mf", rank=rank)) for rank in (0, 1)]
    assert len(each[0]) == EPOCHS * SIZE // 32
    assert place.rows(query, run, "train/sampling/n_mf") == [(step, each[0][step] + each[1][step]) for step in each[0]]
    norms = [dict(place.values(run, "train/gradients/global_norm", rank=rank)) for rank in (0, 1)]
    assert norms[0] == pytest.approx(norms[1])  # gradients were averaged before
    losses = [dict(place.values(run, "train/loss_fm", rank=rank)) for rank in (0, 1)]
    assert losses[0] != losses[1]
    first = [value for rank in (0, 1) for step, value in losses[rank].items() if step < SIZE // 32]
    assert place.document(run, 1, project="meanflow")["train"]["loss_fm"] == pytest.approx(np.mean(first))


def test_the_same_training_with_lightning_has_every_quantity_too(place):
    pytest.importorskip("lightning")
    run_to_its_end(place, "-W", "ignore", *command("lightning_train.py"))
    [(run,)] = place.rows("select run from runs")
    assert missing_of("meanflow", stored_tags(place, run)) == []
    assert missing_of("meanflow", shown_tags(place, run, project="meanflow")) == []
    steps = list(range(EPOCHS * SIZE // 32))
    for tag in ("train/loss_fm", "train/meanflow/jvp_norm", "train/sampling/t_mean", "train/gradients/r_embed"):
        assert [step for step, _ in place.values(run, tag)] == steps
    document = place.document(run, 2, project="meanflow")
    values = [value for step, value in place.values(run, "train/loss_mf") if step >= SIZE // 32]
    assert document["train"]["loss_mf"] == pytest.approx(np.mean(values))
    assert document["val"].keys() >= {"loss_total", "loss_fm", "loss_mf"}
    assert (folder(place, run) / "samples" / "epoch_002" / "grid_axial.png").exists()
