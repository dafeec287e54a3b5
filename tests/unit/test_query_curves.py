"""Laws of loss curves are found again in curves that were made from them."""

import numpy as np
import pytest
from scipy import optimize, stats

from sidestep_collector.query.curves import POINTS_MIN, early_slope, find_burn_in, fit_power_law, points_worth

QUARTERS = np.arange(1, 81) / 4.0


def curve(rng, *, a=2.0, b=0.6, c=0.3, noise=0.01, n=QUARTERS):
    return c + a * n**-b + rng.normal(0, noise, len(n))


def test_the_early_slope_is_the_regression_of_scipy_and_its_interval_is_the_students():
    rng = np.random.default_rng(0)
    loss = 2 * QUARTERS**-0.4 * np.exp(rng.normal(0, 0.02, len(QUARTERS)))
    found = early_slope(QUARTERS, loss)
    window = (QUARTERS >= 5) & (QUARTERS <= 15)
    plain = stats.linregress(np.log(QUARTERS[window]), np.log(loss[window]))
    assert found.slope == pytest.approx(plain.slope, rel=1e-12)
    assert found.se >= plain.stderr * (1 - 1e-12)  # widened where residuals hang together
    assert found.low < -0.4 < found.high
    assert found.r2 == pytest.approx(plain.rvalue**2, rel=1e-9)
    assert found.points == window.sum()


def test_the_slope_of_a_law_without_noise_is_its_exponent_in_any_unit():
    for unit in (1.0, 1 / np.log(2)):
        assert early_slope(QUARTERS, unit * 3 * QUARTERS**-0.7).slope == pytest.approx(-0.7, abs=1e-12)


def test_a_window_that_holds_too_little_has_no_slope():
    assert early_slope(QUARTERS[:8], np.ones(8)) is None
    assert early_slope(np.full(9, 6.0), np.ones(9)) is None
    assert early_slope(np.arange(5.0, 15.0), np.full(10, np.nan)) is None


def test_exponents_are_recovered_within_the_stated_interval_nineteen_times_in_twenty():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        b, c = rng.uniform(0.2, 1.5), rng.uniform(0, 0.5)
        law = fit_power_law(QUARTERS, curve(rng, b=b, c=c))
        inside += law.b_low <= b <= law.b_high
    assert 180 <= inside <= 199  # 190 are expected; beyond these 4 standard deviations


def test_noise_that_hangs_together_widens_the_interval_as_much_as_it_must():
    rng = np.random.default_rng(2)
    inside, plain = 0, 0
    for _ in range(150):
        noise = np.zeros(len(QUARTERS))
        for at in range(1, len(noise)):
            noise[at] = 0.7 * noise[at - 1] + rng.normal(0, 0.01)
        law = fit_power_law(QUARTERS, 0.2 + 2 * QUARTERS**-0.7 + noise)
        inside += law.b_low <= 0.7 <= law.b_high
        plain += law.points_worth < 0.6 * law.points
    assert inside >= 130
    assert plain >= 140


@pytest.mark.parametrize("floor", [True, False])
def test_the_fit_is_the_least_squares_that_a_general_solver_finds(floor):
    rng = np.random.default_rng(3)
    loss = curve(rng, c=0.3 if floor else 0.0)
    law = fit_power_law(QUARTERS, loss, floor=floor)

    def model(n, a, b, c=0.0):
        return c + a * n**-b

    start = [1.0, 0.5, 0.1] if floor else [1.0, 0.5]
    best, _ = optimize.curve_fit(model, QUARTERS, loss, p0=start, maxfev=20_000)
    assert [law.a, law.b] == pytest.approx(best[:2], rel=1e-5)
    assert law.c == pytest.approx(best[2] if floor else 0.0, rel=1e-5)
    assert law.rms == pytest.approx(np.sqrt(np.mean((loss - model(QUARTERS, *best)) ** 2)), rel=1e-6)


def test_a_floor_is_never_negative():
    law = fit_power_law(QUARTERS, 2 * QUARTERS**-0.3 - 0.5)
    assert law.c == 0.0


def test_what_does_not_fall_or_is_too_short_has_no_law():
    assert fit_power_law(QUARTERS, QUARTERS**0.5) is None
    assert fit_power_law(QUARTERS[: POINTS_MIN - 1], curve(np.random.default_rng(0))[: POINTS_MIN - 1]) is None
    assert find_burn_in(QUARTERS[:10], np.ones(10)) is None


def test_values_that_are_not_finite_are_left_out():
    loss = curve(np.random.default_rng(4))
    holes = loss.copy()
    holes[[3, 40]] = np.nan, np.inf
    kept = np.isfinite(holes)
    assert fit_power_law(QUARTERS, holes) == fit_power_law(QUARTERS[kept], loss[kept])
    found = find_burn_in(QUARTERS, np.where(QUARTERS < 1, np.nan, loss))
    assert QUARTERS[found.start] == found.at >= 1


@pytest.mark.parametrize("end", [2.0, 5.0])
def test_the_burn_in_ends_where_the_law_begins(end):
    rng = np.random.default_rng(5)
    ends = []
    for _ in range(30):
        law = curve(rng)
        before = 0.3 + 2 * end**-0.6 + 0.9 * (end - QUARTERS)
        ends.append(find_burn_in(QUARTERS, np.where(end > QUARTERS, before, law)).at)
    assert end - 0.5 <= np.median(ends) <= end + 1.5
    assert min(ends) >= end - 0.75  # a window with burn-in in it is never taken


def test_a_curve_without_burn_in_is_kept_whole_and_its_law_is_named():
    rng = np.random.default_rng(6)
    found = [find_burn_in(QUARTERS, curve(rng, noise=0.005)) for _ in range(20)]
    assert np.median([one.start for one in found]) == 0
    laws = [one.law for one in found]
    assert laws.count("power + c") + laws.count("power") > 14
    falling = [find_burn_in(QUARTERS, 0.3 + 2 * np.exp(-QUARTERS / 5) + rng.normal(0, 0.005, 80)) for _ in range(10)]
    assert [one.law for one in falling].count("exp + c") >= 8


def test_windows_are_judged_by_the_criterion_that_a_plain_fit_gives():
    rng = np.random.default_rng(7)
    loss = curve(rng, c=0.0)
    found = find_burn_in(QUARTERS, loss)
    law = fit_power_law(QUARTERS, loss, floor=False)
    m, k = len(loss), 3
    plain = (m * np.log(law.rms**2) + 2 * k + 2 * k * (k + 1) / (m - k - 1)) / m
    assert found.alternatives["power"] <= plain + 0.05  # the least over windows, the whole among them


def test_points_that_hang_together_are_worth_less():
    rng = np.random.default_rng(8)
    white = rng.normal(size=400)
    assert points_worth(white) > 300
    assert points_worth(np.cumsum(white)) < 20
    assert points_worth(np.zeros(10)) == 10
