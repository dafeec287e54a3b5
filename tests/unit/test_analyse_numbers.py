"""The numbers that analysers give, against plain recomputations."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.signal
import scipy.stats
from support.analysed import STREAM, Recorded, analysed, described, values

from sidestep_collector import latents
from sidestep_collector.analyse import arrays, features, flow, generated, noise, sampling, shares, stability, units
from sidestep_collector.blocks import Histogram, Moment, Tensor, Text

rng = np.random.default_rng(0)
AT = Moment(STREAM, 0, 0, 0, math.nan)


# --- units and shares


def test_a_loss_in_nats_is_given_in_bits_and_back() -> None:
    assert units.bits(np.array([math.log(2), 3.0])) == pytest.approx([1.0, 3 / math.log(2)])
    assert units.nats(units.bits(np.array([0.7]))) == pytest.approx([0.7])
    recorded = Recorded()
    for step, loss in enumerate((2.0, math.nan, 1.0)):
        recorded.log({"train/loss_nats": loss, "val/loss_bits": loss}, step=step)
    found, _ = analysed(recorded, [units.Units()])
    assert set(found) == {"train/loss_bits", "val/loss_nats"}
    np.testing.assert_allclose(values(found, "train/loss_bits"), [2 / math.log(2), math.nan, 1 / math.log(2)])
    np.testing.assert_allclose(values(found, "val/loss_nats"), [2 * math.log(2), math.nan, math.log(2)])


def test_shares_are_of_sizes_and_of_one_record() -> None:
    recorded = Recorded()
    recorded.log({"train/loss/h0": 3.0, "train/loss/h1": -1.0, "train/loss/total": -4.0}, step=0)
    recorded.log({"train/loss/h0": 5.0}, step=1)  # without its total
    recorded.log({"train/loss_fm": 1.0, "train/loss": 4.0}, step=2)
    recorded.log({"train/loss_fm": 1.0, "train/loss": 4.0, "train/loss_total": 8.0}, step=3)
    found, _ = analysed(recorded, [shares.Shares()])
    assert [row[2:] for row in found["train/loss/contribution_h0"]] == [(0, pytest.approx(math.nan, nan_ok=True), 0.75)]
    assert values(found, "train/loss/contribution_h1") == [0.25]
    assert values(found, "train/loss_ratio_fm") == [0.25, 0.125]


def test_a_profile_can_give_ratios_of_its_own() -> None:
    recorded = Recorded()
    recorded.log({"a/x": 1.0, "a/y": 3.0, "b": 4.0})
    found, _ = analysed(recorded, [shares.Shares([shares.Ratio("share/<part>", "a/<part>", ("b",))])])
    assert {tag: rows[0][-1] for tag, rows in found.items()} == {"share/x": 0.25, "share/y": 0.75}


# --- stability


def block_slope(loss: np.ndarray, steps: np.ndarray) -> float:
    """Theil-Sen by scipy, over the means of at most 20 blocks of neighbours."""
    bounds = [number * len(loss) // min(20, len(loss)) for number in range(min(20, len(loss)) + 1)]
    y, x = ([part[a:b].mean() for a, b in pairwise(bounds)] for part in (loss, steps))
    return scipy.stats.theilslopes(y, x).slope


@pytest.mark.parametrize("length", [2, 20, 37, 100])
def test_stability_of_a_window_is_that_of_numpy_and_scipy(length: int) -> None:
    loss, steps = rng.normal(2, 0.1, length) - np.arange(length) * 0.01, np.arange(length) * 3.0
    assert stability.smoothness(loss) == pytest.approx(np.std(np.diff(loss)) / np.std(loss))
    assert stability.trend_slope(loss, steps) == pytest.approx(block_slope(loss, steps))
    assert stability.spike_ratio(loss, loss[-1]) == pytest.approx(loss[-1] / np.median(loss))


def test_windows_that_are_computed_together_are_as_those_computed_alone() -> None:
    loss, steps = rng.normal(1, 0.2, 700), np.cumsum(rng.integers(1, 4, 700)).astype(float)
    loss[[250, 251, 400]] = math.nan, math.inf, math.nan
    steps[500:520] = steps[500]
    ends = np.arange(9, 700, 10)
    found = stability.stability(loss, steps, ends)
    for column, end in enumerate(ends):
        window, at = loss[max(0, end - 99) : end + 1], steps[max(0, end - 99) : end + 1]
        finite = np.isfinite(window)
        window, at = window[finite], at[finite]
        assert found.smoothness[column] == pytest.approx(np.std(np.diff(window)) / np.std(window), rel=1e-12)
        assert found.slope[column] == pytest.approx(block_slope(window, at), rel=1e-9)
        assert found.spike_ratio[column] == pytest.approx(window[-1] / np.median(window), rel=1e-12)


def test_a_constant_loss_is_smooth_and_a_median_of_zero_has_no_ratio() -> None:
    assert stability.smoothness(np.ones(5)) == 0.0
    assert math.isnan(stability.spike_ratio(np.array([-1.0, 0.0, 1.0]), 1.0))
    assert math.isnan(stability.trend_slope(np.ones(3), np.ones(3)))


def test_stability_is_told_at_each_tenth_loss() -> None:
    recorded = Recorded()
    loss = 1 + rng.random(250)
    for step, value in enumerate(loss):
        recorded.log({"train/loss": value, "train/acc": 0.5}, step=step)
    found, _ = analysed(recorded, [stability.Stability()])
    rows = found["train/stability/loss_trend_slope"]
    assert [row[2] for row in rows] == list(range(9, 250, 10))
    assert rows[-1][-1] == pytest.approx(block_slope(loss[-100:], np.arange(150, 250)))
    assert rows[2][-1] == pytest.approx(block_slope(loss[:30], np.arange(30)))


# --- noise


@pytest.mark.parametrize("length", [32, 33, 255, 256, 257, 1000])
def test_the_spectrum_is_that_of_scipy(length: int) -> None:
    series = rng.normal(size=length).cumsum()
    frequency, power = scipy.signal.welch(scipy.signal.detrend(series), nperseg=min(256, length))
    found = noise.welch(noise.detrended(series))
    np.testing.assert_allclose(found.frequency, frequency)
    np.testing.assert_allclose(found.power, power, rtol=1e-9, atol=1e-12)
    upper = frequency >= 0.25
    tail = noise.psd_tail(series)
    assert tail.slope == pytest.approx(np.polyfit(np.log(frequency[upper]), np.log(power[upper]), 1)[0])
    assert tail.power == pytest.approx(power[upper].mean())


def test_residual_power_and_floor_are_those_of_a_line_and_of_differences() -> None:
    series = 3 - 0.01 * np.arange(500) + rng.normal(0, 0.2, 500)
    line = np.polyval(np.polyfit(np.arange(500), series, 1), np.arange(500))
    assert noise.residual_power(series) == pytest.approx(np.var(series - line))
    mad = scipy.stats.median_abs_deviation(np.diff(series))
    assert noise.floor(series) == pytest.approx(1.4826 * mad / math.sqrt(2))
    assert noise.floor(series) == pytest.approx(0.2, rel=0.1)
    assert noise.psd_tail(np.full(64, 2.0)).power == 0.0
    assert math.isnan(noise.psd_tail(np.zeros(64)).slope)


def test_noise_is_told_at_the_end_of_each_second_epoch_of_the_losses_of_both() -> None:
    recorded = Recorded()
    loss = rng.normal(1, 0.1, (5, 40))
    loss[3, 7] = math.nan
    for epoch in range(5):
        recorded.event("epoch_begin", epoch=epoch)
        for step in range(40):
            recorded.log({"train/loss": loss[epoch, step]}, step=40 * epoch + step, epoch=epoch)
        recorded.event("epoch_end", epoch=epoch)
    found, _ = analysed(recorded, [noise.Noise()])
    assert [row[3] for row in found["noise/floor"]] == [1, 3]
    second = loss[2:4].ravel()
    expected = [noise.floor(loss[:2].ravel()), noise.floor(second[np.isfinite(second)])]
    assert values(found, "noise/floor") == pytest.approx(expected)


@pytest.mark.parametrize("also", [{}, {"train/loss": 0.0}])
def test_noise_of_a_loss_in_nats_is_told_where_there_is_no_other(also: dict[str, float]) -> None:
    recorded = Recorded()
    loss = rng.normal(1, 0.1, 80)
    for step, value in enumerate(loss):
        recorded.log({"train/loss_nats": value, **also}, step=step, epoch=step // 40)
    recorded.event("end")
    found, _ = analysed(recorded, [noise.Noise()])
    assert values(found, "noise/floor") == [0.0 if also else noise.floor(loss)]


def test_an_epoch_that_is_longer_than_what_is_looked_at_is_judged_by_its_last_losses() -> None:
    recorded = Recorded()
    loss = rng.normal(1, 0.1, (2, noise.MEMORY + 100))
    for epoch in range(2):
        for step in range(loss.shape[1]):
            recorded.log({"train/loss": loss[epoch, step]}, step=step, epoch=epoch)
    recorded.event("end")
    found, _ = analysed(recorded, [noise.Noise()], cuts=[5000, 12_000])
    assert values(found, "noise/residual_power") == [noise.residual_power(loss[1, -noise.MEMORY :])]


# --- flow


def test_the_slope_by_depth_is_that_of_a_line_through_the_logarithms() -> None:
    norms = 10 ** rng.normal(size=8)
    assert flow.depth_slope(norms) == pytest.approx(np.polyfit(np.arange(8), np.log10(norms), 1)[0])
    with_zero = np.array([1.0, 0.0, 100.0])
    assert flow.depth_slope(with_zero) == pytest.approx(1.0)
    assert math.isnan(flow.depth_slope(np.array([0.0, 1.0])))


@pytest.mark.parametrize(
    ("norms", "kind"),
    [
        ([1, 1.1, 0.9, 1.2], "uniform"),
        ([1, 0.01, 1, 0.02], "sparse"),
        ([1, 0.01, 1, 1, 1], "uniform"),
        ([1e-4, 1e-3, 1e-2, 1e-1, 1], "vanishing"),
        ([1e-9, 2e-9, 1e-9], "vanishing"),
        ([0, 0, 0], "vanishing"),
        ([1e3, 1e2, 10, 1, 0.1, 0.01], "exploding"),
        ([1, 2e3, 1], "exploding"),
        ([1, math.inf, 1], "exploding"),
        ([1, math.nan, 1], "exploding"),
        ([math.nan, math.nan], "exploding"),
    ],
)
def test_a_profile_has_its_class(norms: list[float], kind: str) -> None:
    assert flow.CLASSES[flow.profile(np.array(norms, float)).kind] == kind


def test_flow_is_told_of_the_norms_of_an_epoch_and_names_bottlenecks() -> None:
    recorded = Recorded()
    norms = np.abs(rng.normal(1, 0.1, (2, 6, 3))) * [1, 1e-3, 1]
    norms[1, :4, 1] = 1.0
    for epoch in range(2):
        for step in range(6):
            named = dict(zip(("stem", "down.0", "head"), norms[epoch, step], strict=True))
            tags = {f"train/gradients/{block}": norm for block, norm in named.items()}
            recorded.log({**tags, "train/gradients/global_norm": 1e9}, step=6 * epoch + step, epoch=epoch)
        recorded.event("epoch_end", epoch=epoch)
    found, items = analysed(recorded, [flow.Flow()])
    mean = norms[0].mean(axis=0)
    assert values(found, "train/flow/slope")[0] == pytest.approx(flow.depth_slope(mean))
    assert values(found, "train/flow/min_over_median")[0] == pytest.approx(mean.min() / np.median(mean))
    assert values(found, "train/flow/class") == [flow.SPARSE, flow.UNIFORM]
    assert values(found, "train/flow/bottleneck_count") == [1, 0]
    assert values(found, "train/flow/bottleneck/down.0") == [1, 0]
    assert values(found, "train/flow/bottleneck_share/down.0") == pytest.approx([1, 2 / 6])
    assert values(found, "train/flow/bottleneck/stem") == [0, 0]
    assert [item.text for item in items if isinstance(item, Text)] == ["sparse; bottlenecks: down.0", "uniform"]


# --- features


@pytest.mark.parametrize("shape", [(20, 7), (7, 20), (256, 64)])
def test_the_effective_rank_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = rng.normal(1, 1, shape)
    s = np.linalg.svd(matrix, compute_uv=False)
    p = s / s.sum()
    assert features.effective_rank(matrix) == pytest.approx(math.exp(-(p * np.log(p)).sum()))


def test_rows_that_are_all_alike_have_a_rank_of_one_whatever_their_mean() -> None:
    assert features.effective_rank(np.ones((10, 4))) == pytest.approx(1, abs=1e-6)
    assert features.effective_rank(5 + 1e-5 * rng.normal(size=(100, 16))) == pytest.approx(1, abs=1e-2)
    assert features.effective_rank(np.eye(6)) == pytest.approx(6)
    assert math.isnan(features.effective_rank(np.zeros((3, 3))))


def test_the_mean_similarity_is_that_of_all_pairs() -> None:
    matrix = rng.normal(0.5, 1, (12, 5))
    matrix[4] = 0
    rows = [row / np.linalg.norm(row) for row in matrix if row.any()]
    cosines = [a @ b for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    assert features.mean_similarity(matrix) == pytest.approx(np.mean(cosines))
    assert math.isnan(features.mean_similarity(np.zeros((5, 2))))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_tensor_of_features_is_described(dtype: str) -> None:
    matrix = rng.normal(size=(30, 8)).astype(dtype)
    recorded = Recorded()
    recorded.tensor("train/collapse/level2_features", matrix, step=7, epoch=1.5)
    found, items = analysed(recorded, [features.Features()])
    exact = matrix.astype(np.float64)
    name = "train/collapse/level2"
    assert found[f"{name}_mean_std_per_dim"] == [(0, 0, 7, 1.5, pytest.approx(exact.std(axis=0).mean()))]
    assert values(found, f"{name}_min_std_per_dim") == pytest.approx([exact.std(axis=0).min()])
    assert values(found, f"{name}_effective_rank") == pytest.approx([features.effective_rank(exact)])
    assert values(found, f"{name}_effective_rank_share") == pytest.approx([features.effective_rank(exact) / 8])
    assert values(found, f"{name}_mean_similarity") == pytest.approx([features.mean_similarity(exact)])
    [histogram] = items
    assert isinstance(histogram, Histogram)
    assert histogram.name == "feature_distributions/level2"
    assert histogram.counts.sum() == matrix.size


def test_the_share_of_dimensions_is_not_told_from_too_few_rows() -> None:
    assert "effective_rank_share" in features.described(rng.normal(size=(10, 30)))
    assert "effective_rank_share" not in features.described(rng.normal(size=(9, 30)))


def test_features_of_validation_have_a_histogram_of_their_own() -> None:
    names = ("train/collapse/level0", "val/collapse/level0", "val", "level0")
    found = [features.distribution_of(name).removeprefix("feature_distributions/") for name in names]
    assert found == ["level0", "val_level0", "val", "level0"]


def test_features_that_cannot_be_used_are_left_out() -> None:
    recorded = Recorded()
    recorded.tensor("a_features", np.ones(5))
    recorded.tensor("b_features", np.full((4, 3), math.nan))
    recorded.tensor("c_features", np.ones((0, 3)))
    recorded.tensor("d_features", np.ones((4, 3), np.complex64))
    damaged = np.arange(12.0).reshape(4, 3)
    damaged[1, 1] = math.inf
    recorded.tensor("e_features", damaged)
    recorded.tensor("f_features", rng.normal(size=(10, 100, 4)))
    found, _ = analysed(recorded, [features.Features()])
    assert set(found) == {f"{name}_{what[2:]}" for name in "ef" for what in features.Features.gives}
    assert values(found, "e_mean_std_per_dim") == pytest.approx([damaged[[0, 2, 3]].std(axis=0).mean()])


def test_bfloat16_is_read_as_it_is() -> None:
    numbers = np.array([1.0, -2.5, 3e38, math.inf], np.float32)
    upper = (numbers.view(np.uint32) >> 16).astype("<u2")
    exact = (upper.astype(np.uint32) << 16).view(np.float32)
    read = latents.floats(Tensor(AT, "x", "bfloat16", (2, 2), upper.tobytes()))
    np.testing.assert_array_equal(read, exact.reshape(2, 2).astype(float))
    assert latents.floats(Tensor(AT, "x", "float8_e5m2", (1,), b"\0")) is None


def test_histograms_count_as_numpy_does() -> None:
    numbers = rng.normal(size=5000)
    found = arrays.histogram(AT, "h", np.append(numbers, [math.nan, math.inf]))
    counts, edges = np.histogram(numbers, bins=64)
    assert found is not None
    np.testing.assert_allclose(found.edges, edges)
    assert np.abs(found.counts - counts).sum() <= 4  # a value within rounding of an edge
    assert found.counts.sum() == 5000
    alike = arrays.histogram(AT, "h", np.full(9, 2.0))
    assert alike is not None
    assert alike.counts.sum() == 9
    assert arrays.histogram(AT, "h", np.array([math.nan])) is None


# --- generated


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 33), (1, 40)])
def test_the_distance_of_samples_is_that_of_scipy(n: int, m: int) -> None:
    one, other = rng.normal(size=n), rng.normal(1, 2, m)
    assert latents.wasserstein(one, other) == pytest.approx(scipy.stats.wasserstein_distance(one, other))
    found = latents.distances(one, other)
    spread = np.std(other)
    assert found["mean_shift"] == pytest.approx((np.mean(one) - np.mean(other)) / spread)
    assert found["std_ratio"] == pytest.approx(np.std(one) / spread)
    assert found["distance"] == pytest.approx(scipy.stats.wasserstein_distance(one, other) / spread)


def test_generated_latents_are_described_by_channel_and_compared_with_the_last_real_ones() -> None:
    fake, early, late = (rng.normal(number, 1, (4, 2, 3, 3)).astype(np.float32) for number in range(3))
    recorded = Recorded()
    recorded.tensor("samples/generated_latents", fake, step=1)
    recorded.tensor("samples/real_latents", early, step=1)  # the first: compared with what came before
    recorded.tensor("samples/real_latents", late, step=2)
    recorded.tensor("samples/generated_latents", fake * 2, step=2)
    found, items = analysed(recorded, [generated.Generated()], cuts=[1, 2, 3])
    channel = [array[:, 1].ravel().astype(float) for array in (fake, early, late)]
    assert values(found, "generated/mean_ch1") == pytest.approx([channel[0].mean(), 2 * channel[0].mean()])
    assert values(found, "data/std_ch1") == pytest.approx([channel[1].std(), channel[2].std()])
    expected = [latents.distances(channel[0], channel[1]), latents.distances(2 * channel[0], channel[2])]
    for what in ("mean_shift", "std_ratio", "distance"):
        assert values(found, f"generated/{what}_ch1") == pytest.approx([one[what] for one in expected])
    assert [row[2] for row in found["generated/distance_ch0"]] == [1, 2]
    names = [name for _, name, *_ in described(items)]
    assert names == ["histograms/generated_latent_ch0", "histograms/generated_latent_ch1"] * 2


# --- sampling


def test_sampled_times_are_described() -> None:
    t, h = rng.random(64).astype(np.float32), np.where(np.arange(64) % 4, rng.random(64), 0)
    recorded = Recorded()
    recorded.tensor("train/sampling/t", t, step=3)
    recorded.tensor("train/sampling/h", h, step=3)
    found, items = analysed(recorded, [sampling.Sampling()])
    exact = t.astype(float)
    assert [values(found, f"train/sampling/t_{what}")[0] for what in ("mean", "std", "min", "max")] == pytest.approx(
        [exact.mean(), exact.std(), exact.min(), exact.max()]
    )
    assert values(found, "train/sampling/h_mean") == pytest.approx([h.mean()])
    assert values(found, "train/sampling/h_zero_frac") == [0.25]
    assert (values(found, "train/sampling/n_fm"), values(found, "train/sampling/n_mf")) == ([16], [48])
    assert {name for _, name, *_ in described(items)} == {"histograms/t_distribution", "histograms/h_distribution"}
