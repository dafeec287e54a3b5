"""The example of average-velocity flow matching: every quantity of its family arrives, and says what numpy says."""

import copy
import io
import json
import math

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.families import missing_of, shown_tags, stored_tags
from support.meanflow import (
    BATCH,
    CHANNELS,
    EPOCHS,
    SIZE,
    block_norms,
    command,
    data,
    expected_of,
    folder,
    loss,
    model,
    run_to_its_end,
    validated,
    vector,
)
from support.place import Place

from sidestep_schemas.epoch import FIELDS

# torch.func.jvp scripts its decompositions when it is first used.
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

STEPS = SIZE // BATCH


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The place and the run of a short training."""
    place = Place(tmp_path_factory.mktemp("meanflow") / "data")
    assert "lost 0" in run_to_its_end(place, *command("train.py", "--batch-size", str(BATCH), "--clip", "2"))
    [(run,)] = place.rows("select run from runs")
    yield place, run
    place.close()


@pytest.fixture(scope="module")
def again():
    """The same training without sidestep: what each step and epoch must say, and the samples at the end."""
    torch.manual_seed(0)
    net = model.UNet()
    ema = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    x, val = data.latents(SIZE, 0), data.latents(64, 1)
    order, draws, fixed = (torch.Generator().manual_seed(seed) for seed in (0, 1, 0))
    val_noise = torch.randn(val.shape, generator=fixed)
    val_times = loss.sample_times(64, 0.25, fixed)
    steps, epochs = [], []
    for _ in range(EPOCHS):
        for batch in torch.randperm(SIZE, generator=order).split(BATCH):
            noise = torch.randn((BATCH, *x.shape[1:]), generator=draws)
            r, t = loss.sample_times(BATCH, 0.25, draws)
            said = expected_of(net, x[batch], noise, r, t)
            optimizer.zero_grad()
            loss.MeanFlowLoss()(net, x[batch], noise, r, t)["loss"].backward()
            blocks = block_norms(net)
            whole = math.sqrt(sum(norm**2 for norm in blocks.values()))
            scale = min(1.0, 2.0 / (whole + 1e-6))
            for parameter in net.parameters():
                parameter.grad *= scale
            before = vector(net.parameters())
            optimizer.step()
            after = vector(net.parameters())
            with torch.no_grad():
                for mean, parameter in zip(ema.parameters(), net.parameters(), strict=True):
                    mean.copy_(parameter if not steps else 0.98 * mean + 0.02 * parameter)
            said |= {f"train/gradients/{block}": scale * norm for block, norm in blocks.items()}
            said["train/gradients/global_norm"] = said["train/gradient/global_norm_before_clip"] = whole
            said["train/gradient/global_norm_after_clip"] = scale * whole
            said["train/gradient/clipped"] = float(whole > 2.0)
            said["train/updates/relative_update_norm"] = np.linalg.norm(after - before) / np.linalg.norm(before)
            said["weight_norm"] = np.linalg.norm(after)
            said["ema/param_divergence"] = np.linalg.norm(vector(ema.parameters()) - after) / np.linalg.norm(after)
            said["train/lr"] = 2e-3
            steps.append(said)
        epochs.append(validated(ema, val, val_noise, *val_times))
    return steps, epochs, loss.sample(ema, val_noise[:8]).numpy(), val[:8].numpy()


#: Estimated from a sample of each parameter's elements, so right within a few percent.
ESTIMATED = {"ema/param_divergence": 0.1, "train/updates/relative_update_norm": 0.1}
#: Measured after the step: of the weights as they are then; before the average has taken the step in.
SOMETIMES = {"ema/param_divergence", "weight_norm"}


def step_tags():
    names = ("train/loss_total", "train/loss_fm", "train/loss_mf", "train/loss_ratio_fm", "train/lr")
    norms = ("jvp_norm", "u_norm", "v_tilde_norm", "compound_v_norm", "target_v_norm")
    times = ("t_mean", "t_std", "t_min", "t_max", "h_mean", "h_std", "h_zero_frac", "n_fm", "n_mf")
    clips = ("global_norm_before_clip", "global_norm_after_clip", "clipped")
    return (
        *names,
        *(f"train/meanflow/{name}" for name in (*norms, "adaptive_weight_mean", "adaptive_weight_std")),
        *(f"train/sampling/{name}" for name in times),
        *(f"train/channel/loss_ch{c}" for c in CHANNELS),
        *(f"train/gradients/{block}" for block in (*model.BLOCKS, "global_norm")),
        *(f"train/gradient/{name}" for name in clips),
        "train/updates/relative_update_norm",
    )


def test_every_quantity_of_the_family_is_stored_and_shown(trained):
    place, run = trained
    place.check_whole(run)
    assert missing_of("meanflow", stored_tags(place, run)) == []
    assert missing_of("meanflow", shown_tags(place, run, project="meanflow")) == []
    assert place.rows("select rule from findings where state = 'firing'") == []
    assert set(model.BLOCKS) == {
        *("conv_in", "middle_block", "out", "r_embed", "time_embed"),
        *(f"{way}_block_{number}" for way in ("down", "up") for number in range(4)),
    }


@pytest.mark.parametrize("tag", step_tags())
def test_each_step_says_what_its_formula_gives(trained, again, tag):
    place, run = trained
    found = place.values(run, tag)
    first = int(tag == "train/updates/relative_update_norm" and found[0][0] == 1)
    assert [step for step, _ in found] == list(range(first, EPOCHS * STEPS))
    expected = [again[0][step][tag] for step, _ in found]
    np.testing.assert_allclose([value for _, value in found], expected, rtol=ESTIMATED.get(tag, 2e-3), atol=1e-6)


def test_the_distance_of_the_average_is_that_of_all_weights_within_the_error_of_its_sample(trained, again):
    place, run = trained
    found = place.values(run, "ema/param_divergence")
    assert {step // STEPS for step, _ in found} == set(range(EPOCHS))
    for step, value in found:
        if step > 1:  # at a step's end the average has not taken it in: that of the step before, against these weights
            assert value == pytest.approx(again[0][step]["ema/param_divergence"] / 0.98, rel=0.1)


@pytest.mark.parametrize("tag", ["val/loss_total", "val/loss_fm", "val/loss_mf"])
def test_each_epoch_is_validated_with_the_average(trained, again, tag):
    place, run = trained
    found = [value for _, value in place.values(run, tag)]
    assert found == pytest.approx([said[tag] for said in again[1]], rel=2e-3)


def test_the_document_of_an_epoch_has_every_field_and_each_is_true(trained, again):
    place, run = trained
    array = json.loads((folder(place, run) / "diagnostics" / "training_summary.json").read_text())
    assert [one["epoch"] for one in array] == [1, 2]
    for epoch in range(1, EPOCHS + 1):
        document = place.document(run, epoch, project="meanflow")
        steps, val = again[0][(epoch - 1) * STEPS : epoch * STEPS], again[1][epoch - 1]
        for group in ("train", "val", "meanflow", "ema", "performance"):
            assert {field.name for field in FIELDS if field.group == group} - {"acc"} == document[group].keys()

        def mean(tag, steps=steps):
            return np.mean([said[tag] for said in steps])

        losses = [said["train/loss_total"] for said in steps]
        norms = [said["train/gradients/global_norm"] for said in steps]
        by_channel = document["train"].pop("loss_per_channel")
        assert document["train"] == pytest.approx(
            {
                **{name: mean(f"train/{name}") for name in ("loss_total", "loss_fm", "loss_mf")},
                "loss_std": np.std(losses, ddof=1),
                "grad_norm_mean": np.mean(norms),
                "grad_norm_max": np.max(norms),
                "clip_fraction": mean("train/gradient/clipped"),
                "lr": 2e-3,
            },
            rel=5e-3,
        )
        channels = [mean(f"train/channel/loss_ch{c}") for c in CHANNELS]
        assert by_channel == pytest.approx(channels, rel=2e-3)
        assert document["val"] == pytest.approx({tag.removeprefix("val/"): x for tag, x in val.items()}, rel=2e-3)
        for name, value in document["meanflow"].items():
            assert value == pytest.approx(mean(f"train/meanflow/{name}"), rel=2e-3)
        inside = [v for step, v in place.values(run, "ema/param_divergence") if step // STEPS == epoch - 1]
        assert document["ema"]["param_divergence"] == inside[-1]
        assert document["global_step"] == epoch * STEPS - 1
        check_performance(place, run, epoch, document)
        assert array[epoch - 1] == place.document(run, epoch, project="meanflow")


def check_performance(place, run, epoch, document):
    said = document["performance"]
    for name in ("samples_per_sec", "steps_per_sec"):
        inside = [value for step, value in place.values(run, f"perf/{name}") if step // STEPS == epoch - 1]
        assert min(inside) > 0
        assert said[name] == pytest.approx(np.mean(inside))
    begun, over = (
        place.row(
            "select min(wall_time) from events where run = ? and event = ? and floor(epoch) = ?", run, event, epoch
        )[0]
        for event in ("epoch_begin", "epoch_end")
    )
    assert said["epoch_time_sec"] == pytest.approx((over - begun).total_seconds(), rel=1e-3)
    if not torch.cuda.is_available():
        assert said["gpu_mem_allocated_gb"] is said["gpu_mem_reserved_gb"] is None


def test_samples_are_those_of_the_average_in_one_step_and_stand_beside_real_ones(trained, again):
    place, run = trained
    _, _, generated, real = again
    samples = folder(place, run) / "samples" / "epoch_002"
    np.testing.assert_allclose(np.load(samples / "latents" / "generated.npy"), generated, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(np.load(samples / "latents" / "real.npy"), real)
    said = json.loads((samples / "latent_stats.json").read_text())
    for c in CHANNELS:
        ours, theirs = generated[:, c].astype(float), real[:, c].astype(float)
        for of, values, key in (("generated", ours, "generated"), ("data", theirs, "real")):
            for what in ("mean", "std", "min", "max"):
                expected = getattr(values, what)()
                assert said[key][c][what] == pytest.approx(expected, abs=2e-3)
                assert place.values(run, f"{of}/{what}_ch{c}")[-1][1] == said[key][c][what]
        distance = np.abs(np.sort(ours.ravel()) - np.sort(theirs.ravel())).mean() / theirs.std()
        assert said["distances"][c]["distance"] == pytest.approx(distance, rel=1e-2)
        assert place.values(run, f"generated/distance_ch{c}")[-1][1] == said["distances"][c]["distance"]
        query = "select edges, counts from histograms where run = ? and name = ?"
        [(edges, counts)] = place.rows(query, run, f"histograms/generated_latent_ch{c}")
        assert sum(counts) == ours.size
        assert (edges[0], edges[-1]) == pytest.approx((ours.min(), ours.max()), abs=2e-3)


def test_pictures_have_eight_samples_as_rows(trained):
    place, run = trained
    samples = folder(place, run) / "samples" / "epoch_002"
    for plane in ("axial", "coronal", "sagittal"):
        with Image.open(samples / f"grid_{plane}.png") as grid:
            assert grid.size == (4 * 34 + 2, 8 * 34 + 2)
    pictures = dict(place.rows("select name, png from images where run = ?", run))
    assert Image.open(io.BytesIO(pictures["samples/generated_grid"])).size == (12 * 34 + 2, 8 * 34 + 2)
    assert Image.open(io.BytesIO(pictures["samples/real_vs_generated"])).size == (8 * 34 + 2, 8 * 34 + 8 + 4)


def test_the_settings_of_the_run_lie_beside_its_events(trained):
    place, run = trained
    said = yaml.safe_load((folder(place, run) / "tensorboard" / "hparams.yaml").read_text())
    assert (said["epochs"], said["lr"], said["derivative"]) == (EPOCHS, 2e-3, "jvp")
    assert said["diagnostics"] == {"log_every_n_steps": 1, "every_n_epochs": EPOCHS}
