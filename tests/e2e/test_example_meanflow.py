"""The example of average-velocity flow matching: every quantity of its family arrives, and says what numpy says."""

import copy
import importlib.util
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.families import missing_of, shown_tags, stored_tags
from support.place import Place

from sidestep_schemas.epoch import FIELDS

# torch.func.jvp scripts its decompositions when it is first used.
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

FOLDER = Path(__file__).parents[2] / "examples" / "meanflow"
EPOCHS, SIZE, BATCH = 2, 64, 16
STEPS = SIZE // BATCH
CHANNELS = range(4)
FAST = {"OMP_NUM_THREADS": "1", "SIDESTEP_COLLECTOR_FLUSH_SECONDS": "0.1"}


def module(name):
    """A module of the example, under a name that no other example has."""
    spec = importlib.util.spec_from_file_location(f"meanflow_{name}", FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


data, loss, model = (module(name) for name in ("data", "loss", "model"))


def command(script, *arguments, **diagnostics):
    settings = {"log_every_n_steps": 1, "every_n_epochs": EPOCHS, **diagnostics}
    small = ("--epochs", str(EPOCHS), "--size", str(SIZE), "--diagnostics", json.dumps(settings))
    return (str(FOLDER / script), *small, *arguments)


def run_to_its_end(place, *words):
    """Run a training; what it printed. Loading torch takes a minute where many tests run at once."""
    process = place.start(sys.executable, *words, **FAST)
    out, errors = process.communicate(timeout=170)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The place and the run of a short training."""
    place = Place(tmp_path_factory.mktemp("meanflow") / "data")
    assert "lost 0" in run_to_its_end(place, *command("train.py", "--batch-size", str(BATCH), "--clip", "2"))
    [(run,)] = place.rows("select run from runs")
    yield place, run
    place.close()


def folder(place, run):
    return place.root / "runs" / "meanflow" / run


# --- recomputed ------------------------------------------------------------------------------------------


def norm_of(array):
    return np.linalg.norm(array.reshape(len(array), -1), axis=1).mean()


def expected_of(net, x, noise, r, t):
    """What a step must say, from the formulas: float64, du/dt by a finite difference."""
    net = copy.deepcopy(net).double()
    x, noise, r, t = (array.double() for array in (x, noise, r, t))
    at = t.view(-1, 1, 1, 1, 1)
    z, target = (1 - at) * x + at * noise, (noise - x).numpy()
    with torch.no_grad():
        own, average = net(z, t, t), net(z, r, t)
        later, earlier = (net(z + d * own, r, t + d) for d in (1e-5, -1e-5))
    slope = ((later - earlier) / 2e-5).numpy()
    own, average, h = own.numpy(), average.numpy(), (t - r).numpy()
    compound = average + h.reshape(-1, 1, 1, 1, 1) * slope
    errors = (compound - target) ** 2
    error = errors.reshape(len(h), -1).mean(1)
    weights = 1 / (error + 0.1)
    loss_fm = ((own - target) ** 2).mean()
    loss_mf = (weights / weights.mean() * error).mean()
    t = t.numpy()
    return {
        "train/loss_total": loss_fm + loss_mf,
        "train/loss_fm": loss_fm,
        "train/loss_mf": loss_mf,
        "train/loss_ratio_fm": loss_fm / (loss_fm + loss_mf),
        "train/meanflow/jvp_norm": norm_of(slope),
        "train/meanflow/u_norm": norm_of(average),
        "train/meanflow/v_tilde_norm": norm_of(own),
        "train/meanflow/compound_v_norm": norm_of(compound),
        "train/meanflow/target_v_norm": norm_of(target),
        "train/meanflow/adaptive_weight_mean": weights.mean(),
        "train/meanflow/adaptive_weight_std": weights.std(),
        **{f"train/channel/loss_ch{c}": errors[:, c].mean() for c in CHANNELS},
        "train/sampling/t_mean": t.mean(),
        "train/sampling/t_std": t.std(),
        "train/sampling/t_min": t.min(),
        "train/sampling/t_max": t.max(),
        "train/sampling/h_mean": h.mean(),
        "train/sampling/h_std": h.std(),
        "train/sampling/h_zero_frac": (h == 0).mean(),
        "train/sampling/n_fm": (h == 0).sum(),
        "train/sampling/n_mf": (h > 0).sum(),
    }


def block_norms(net):
    """Gradient norms by block in float64, from the parameters' names."""
    squares = dict.fromkeys(model.BLOCKS, 0.0)
    for name, parameter in net.named_parameters():
        [block] = [block for block, prefix in model.BLOCKS.items() if name.startswith(f"{prefix}.")]
        squares[block] += float((parameter.grad.double() ** 2).sum())
    return {block: math.sqrt(square) for block, square in squares.items()}


def vector(parameters):
    return torch.cat([parameter.detach().double().ravel() for parameter in parameters]).numpy()


def validated(net, val, noise, r, t):
    found = expected_of(net, val, noise, r, t)
    return {
        name.replace("train", "val"): found[name] for name in ("train/loss_total", "train/loss_fm", "train/loss_mf")
    }


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


# --- what arrives ----------------------------------------------------------------------------------------


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
    assert [step for step, _ in place.values(run, "train/updates/relative_update_norm")][-1] % 3 == 0
    documents = {file.name for file in (folder(place, run) / "diagnostics").glob("epoch_*")}
    assert documents == {"epoch_002"}
    assert {file.name for file in (folder(place, run) / "diagnostics" / "periods").iterdir()} == {"epochs_001-002.json"}


def test_two_ranks_are_one_run_whose_samples_are_counted_together(place):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run_to_its_end(place, "-m", "sidestep", "run", "--", *launcher, *command("train.py"))
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


# --- the loss --------------------------------------------------------------------------------------------


def drawn(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    x = data.latents(6, 3).to(dtype)
    noise = torch.randn(x.shape, generator=generator).to(dtype)
    r, t = loss.sample_times(6, 0.25, generator)
    return model.UNet().to(dtype), x, noise, r.to(dtype), t.to(dtype)


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_diagnostics_leave_every_gradient_as_it_is_bit_for_bit(derivative):
    gradients, given = [], []
    for return_diagnostics in (False, True):
        net, *batch = drawn()
        given.append(loss.MeanFlowLoss(derivative=derivative)(net, *batch, return_diagnostics=return_diagnostics))
        given[-1]["loss"].backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert set(given[0]) == {"loss", "loss_fm", "loss_mf"}
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    more = {name: value for name, value in given[1].items() if name not in given[0]}
    assert len(more) == 8
    assert more["loss_per_channel"].shape == (4,)
    assert all(torch.isfinite(value).all() and not value.requires_grad for value in more.values())
    assert all(torch.equal(given[0][name], given[1][name]) for name in given[0])


def test_diagnostics_take_no_pass_of_their_own():
    calls = []
    for return_diagnostics in (False, True):
        net, *batch = drawn()
        net.register_forward_hook(lambda *_, way=return_diagnostics: calls.append(way))
        loss.MeanFlowLoss()(net, *batch, return_diagnostics=return_diagnostics)
    assert calls == [False, False, True, True]


def test_forward_mode_and_finite_differences_agree_in_float64():
    net, *batch = drawn(torch.float64)
    exact = loss.MeanFlowLoss()(net, *batch, return_diagnostics=True)
    near = loss.MeanFlowLoss(derivative="difference", delta=1e-5)(net, *batch, return_diagnostics=True)
    for name, value in exact.items():
        torch.testing.assert_close(near[name], value, rtol=1e-6, atol=1e-9)


def test_times_are_ordered_logit_normal_and_a_quarter_of_them_alike():
    r, t = loss.sample_times(40_000, 0.25, torch.Generator().manual_seed(0))
    assert ((r >= 0) & (r <= t) & (t <= 1)).all()
    assert (r == t).double().mean() == pytest.approx(0.25)
    drawn = torch.cat([torch.logit(r[10_000:].double()), torch.logit(t[10_000:].double())])
    assert (drawn.mean(), drawn.std()) == (pytest.approx(-0.4, abs=0.02), pytest.approx(1.0, abs=0.02))


def test_a_watched_network_is_saved_as_an_unwatched_one(tmp_path):
    import sidestep

    net, *batch = drawn()
    before = {name: set(vars(part)) for name, part in net.named_modules()}
    keys = list(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters())
    run = sidestep.watch(net, optimizer, every=1, blocks=model.BLOCKS, dir=tmp_path, mode="offline", profile="meanflow")
    for _ in range(3):
        optimizer.zero_grad()
        loss.MeanFlowLoss()(net, *batch, return_diagnostics=True)["loss"].backward()
        optimizer.step()
    assert list(net.state_dict()) == keys
    assert all(isinstance(value, torch.Tensor) for value in net.state_dict().values())
    assert {name: set(vars(part)) for name, part in net.named_modules()} == before
    run.finish(timeout=0)
