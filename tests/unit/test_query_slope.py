"""What `sidestep analyze slope` reads from a store, over runs."""

import csv
import hashlib
import json

import numpy as np
import pytest
from support.commands import call

from sidestep_collector.blocks import Batch, Event, KeySet, Moment, Progress, ScalarBlock, Stream
from sidestep_collector.commands.analyze import analyze
from sidestep_collector.query.series import Series
from sidestep_collector.query.slope import rank_correlation
from sidestep_collector.store import Store
from sidestep_schemas.errors import UsageError

EPOCHS, STEPS = 20, 16
EXPONENTS = {f"run-{number}": 0.3 + 0.1 * number for number in range(6)}


def scalars(stream, names, steps, epochs, values, *, tier="step", first=0, number=0):
    seq = np.arange(first, first + len(steps))
    return ScalarBlock(stream, KeySet(number, 1, tier, names, ()), seq, seq * 1000, steps, epochs, values)


def fill(store, run, b):
    rng = np.random.default_rng(int(10 * b))
    stream = Stream(hashlib.sha256(run.encode()).digest()[:8], hashlib.md5(run.encode()).digest(), run, "sweep", 0, 0)
    steps = np.arange(EPOCHS * STEPS)
    epochs = (1 + steps // STEPS).astype(float)
    nats = 0.2 + 2 * ((steps + 1) / STEPS) ** -b + rng.normal(0, 0.01, len(steps))
    losses = scalars(
        stream, ("train/loss_nats", "train/loss_bits"), steps, epochs, np.stack([nats, nats / np.log(2)], 1)
    )
    at = steps[::20]
    greatest = round(200 * b)
    curvature = scalars(
        stream, ("curvature/lambda_max",), at, epochs[::20], (100 - np.abs(at - greatest))[:, None],
        tier="periodic", first=len(steps), number=1,
    )  # fmt: skip
    start = Event(Moment(stream, 900, 10**18, -1, np.nan), "start", {"config": {"lr": b}, "group": "g"})
    store.commit(Batch(blocks=[losses, curvature], items=[start], progress=[Progress(stream, 901, 0, False)]), {})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    store = Store.open(folder)
    for run, b in EXPONENTS.items():
        fill(store, run, b)
    store.close()
    return folder


def analysed(root, *arguments):
    return call(analyze, "slope", "--dir", root, *arguments)


def test_the_exponents_that_made_the_runs_are_found(root):
    document = json.loads(analysed(root, "--json"))
    rows = {row["run"]: row for row in document["runs"]}
    assert list(rows) == list(EXPONENTS)
    inside = [rows[run]["exponent_low"] <= b <= rows[run]["exponent_high"] for run, b in EXPONENTS.items()]
    assert sum(inside) >= 5
    assert all(
        row["metric"] == "train/loss_nats" and row["epochs"] == pytest.approx(EPOCHS, abs=0.2) for row in rows.values()
    )
    assert [row["config.lr"] for row in rows.values()] == list(EXPONENTS.values())


def test_slopes_get_steeper_with_the_exponent_and_a_unit_changes_none_of_it(root):
    in_nats = json.loads(analysed(root, "--json"))["runs"]
    in_bits = json.loads(analysed(root, "--json", "--metric", "train/loss_bits"))["runs"]
    slopes = [row["early_slope"] for row in in_nats]
    assert slopes == sorted(slopes, reverse=True)
    assert [row["early_slope"] for row in in_bits] == pytest.approx(slopes, rel=1e-9)
    assert [row["exponent"] for row in in_bits] == pytest.approx([row["exponent"] for row in in_nats], rel=1e-6)
    assert all(row["unit_difference_se"] < 1e-3 for row in in_nats)


def test_the_curvature_peaks_where_it_was_made_to_and_is_related_to_the_slope(root):
    document = json.loads(analysed(root, "--json"))
    for row, b in zip(document["runs"], EXPONENTS.values(), strict=True):
        assert row["curvature_peak_at"] == pytest.approx((round(200 * b) + 1) / STEPS)
    (relation,) = [one for one in document["relations"] if (one["x"], one["y"]) == ("curvature_peak_at", "early_slope")]
    assert relation["runs"] == 6
    assert relation["rho"] < -0.9


def test_a_table_and_pictures_are_written(root, tmp_path):
    said = analysed(root, "--csv", tmp_path / "slopes.csv", "--plots", tmp_path / "plots", "--project", "sweep")
    with (tmp_path / "slopes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == list(EXPONENTS)
    pictures = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert pictures == sorted(
        f"slope_{name}.png" for name in ("curves", "early_slopes", "exponents", "burn_in", "curvature_against_slope")
    )
    assert all((tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert "rank correlation" in said


def test_runs_can_be_named_and_a_loss_that_nobody_has_is_an_error(root):
    assert [row["run"] for row in json.loads(analysed(root, "--json", "run-3"))["runs"]] == ["run-3"]
    with pytest.raises(UsageError, match="none of 6 runs has the loss nothing"):
        analysed(root, "--metric", "nothing")
    with pytest.raises(UsageError, match="no runs missing"):
        analysed(root, "missing")
    with pytest.raises(UsageError, match="no runs missing, gone:"):
        analysed(root, "run-1", "missing", "gone")


def test_averages_are_over_stretches_that_end_where_they_say():
    series = Series(np.array([0.1875, 0.25, 0.375, 0.5, 0.75]), np.array([1.0, 3.0, 5.0, np.nan, 8.0]), True)
    found = series.averaged(0.25)
    np.testing.assert_allclose(found.n, [np.sqrt(0.1875 * 0.25), 0.375, 0.75])
    np.testing.assert_allclose(found.values, [2.0, 5.0, 8.0])
    np.testing.assert_allclose(found.cumulants[0], [(np.log(0.25 / 0.1875) / 2) ** 2, 0, 0], atol=1e-12)


def test_a_stretch_that_runs_over_decades_is_left_out_and_the_others_are_told_exactly():
    n = (np.arange(64 * 4) + 1) / 64
    found = Series(n, 2 * n**-0.7, True).averaged(0.25)
    assert len(found.n) == 15
    spread, third = found.cumulants
    told = 2 * np.exp(-0.7 * np.log(found.n) + 0.7**2 * spread / 2 - 0.7**3 * third / 6)
    np.testing.assert_allclose(found.values, told, rtol=1e-4)


@pytest.mark.parametrize("ties", [3, 1000])
def test_rank_correlations_are_those_of_scipy(ties):
    from scipy.stats import spearmanr

    chance = np.random.default_rng(ties)
    x = chance.integers(0, ties, 60).astype(float)
    for y in (x + chance.normal(0, ties, 60), -x, chance.normal(size=60)):
        expected = spearmanr(x, y)
        assert rank_correlation(x, y) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9, abs=1e-12)
