"""Laws of loss curves: the early slope, power laws with intervals, and where the burn-in ends.

Curves are given as times n > 0 (epochs or steps: a law's exponent does not depend on the unit) and losses L at these
times, both of shape (points,), float64, n rising. Every fit is least squares on L. A law that has one shape parameter
(an exponent b, a time constant) and otherwise linear ones is fitted by variable projection (Golub & Pereyra 1973): for
each shape on a grid the linear part is solved in closed form, so all windows of a curve cost a few passes over an
array of shape (shapes, points), and no start value can send a fit astray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]
#: Values of a law without its linear parameters: shapes (k,) to an array (k, points).
Basis = Callable[[Floats], Floats]
Law = Literal["power", "power + c", "exp + c", "broken power"]

#: Exponents that are looked at: from nearly flat to far steeper than any training.
_EXPONENTS: Final = np.geomspace(0.01, 8.0, 160)
#: How often the grid is drawn closer around the best exponent; each time its spacing shrinks by 30.
_ZOOMS: Final = 5
#: Time constants of an exponential, as shares of the last time.
_TIME_SHARES: Final = np.geomspace(0.005, 5.0, 120)
#: Points that a window must have at least: a broken power law has four parameters.
POINTS_MIN: Final = 8
#: Starts of windows that are tried for the end of the burn-in, at most.
_STARTS_MAX: Final = 16
#: Share of the points that a window keeps at least: the burn-in is the beginning of a training, not most of it.
_WINDOW_SHARE_MIN: Final = 0.5
#: Residual squares below this share of the squares are rounding: less is not told from a perfect fit.
_NOTHING: Final = 1e-14
#: Where an exponent may change, as shares of the points.
_BREAKS: Final = np.linspace(0.1, 0.9, 13)


@dataclass(frozen=True, slots=True)
class Slope:
    """A straight line through log L over log n.

    Attributes:
        slope: d log L / d log n; falls with learning, so it is negative.
        se: its standard error, for as many independent points as the residuals are worth.
        low, high: ends of its 95 % interval.
        r2: share of the variance that the line explains.
        points: how many.
    """

    slope: float
    se: float
    low: float
    high: float
    r2: float
    points: int


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """L = c + a n^-b.

    Attributes:
        a, b, c: the parameters; c is at least 0 where that was asked for.
        b_se: half the width of the interval of b over the quantile of Student's t: its standard error.
        b_low, b_high: ends of the 95 % profile interval of b, within the exponents that are looked at (0.01 to 8).
        rms: root of the mean squared residual, in the unit of L.
        points: how many.
        points_worth: as how many independent ones they count, by the autocorrelation of the residuals.
    """

    a: float
    b: float
    c: float
    b_se: float
    b_low: float
    b_high: float
    rms: float
    points: int
    points_worth: float


@dataclass(frozen=True, slots=True)
class BurnIn:
    """Where the burn-in ends, and what law holds after it.

    Attributes:
        start: index of the first point after the burn-in.
        at: its time.
        law: the law that describes the rest best.
        aic_per_point: Akaike's criterion of that law over the rest, by its points.
        alternatives: for each law its least criterion by point, over all windows.
    """

    start: int
    at: float
    law: Law
    aic_per_point: float
    alternatives: dict[Law, float]


def early_slope(n: Floats, loss: Floats, *, first: float = 5.0, last: float = 15.0) -> Slope | None:
    """Slope of log L over log n for first <= n <= last, by ordinary least squares.

    The standard error is that of a regression, s / sqrt(Sxx), widened by sqrt(points / points worth), where points
    worth = points (1 - r) / (1 + r) with r the lag-1 autocorrelation of the residuals, if positive (Wilks 2011,
    section 5.2.4).

    Args:
        n: times, in epochs; shape (points,).
        loss: positive losses; shape (points,). Others, and those that are not finite, are left out.
        first: where the window begins, in the unit of n.
        last: where it ends.

    Returns:
        None with fewer than three points in the window, or where all have one time.
    """
    chosen = (n >= first) & (n <= last) & (n > 0) & np.isfinite(loss) & (loss > 0)
    x, y = np.log(n[chosen]), np.log(loss[chosen])
    spread = float(((x - x.mean()) ** 2).sum()) if len(x) else 0.0
    if len(x) < 3 or spread == 0.0:
        return None
    slope = float((x - x.mean()) @ (y - y.mean())) / spread
    residuals = y - y.mean() - slope * (x - x.mean())
    rss, total = float(residuals @ residuals), float(((y - y.mean()) ** 2).sum())
    worth = points_worth(residuals)
    se = float(np.sqrt(rss / (len(x) - 2) / spread * len(x) / worth))
    reach = _t_quantile(worth - 2) * se
    return Slope(slope, se, slope - reach, slope + reach, 1 - rss / total if total else 1.0, len(x))


def fit_power_law(n: Floats, loss: Floats, *, floor: bool = True, cumulants: Floats | None = None) -> PowerLaw | None:
    """Fit L = c + a n^-b, with the profile interval of b.

    The interval holds every b whose residual sum of squares is within a factor 1 + t^2 / (m - p) of the least, t being
    the 97.5 % quantile of Student's t with m - p degrees of freedom (Bates & Watts 1988, section 6.1), m the number
    of points that the residuals are worth, p = 3 (2 without floor).

    Args:
        n: times; shape (points,).
        loss: losses; shape (points,). Those that are not finite are left out.
        floor: whether there is a constant c, of at least 0; else c = 0.
        cumulants: where each loss is a mean over a stretch of times and n their geometric mean: variance and third
            cumulant of log n inside of each stretch; shape (2, points). The mean of n^-b over a stretch is then
            exp(-b log n + b^2 variance / 2 - b^3 third / 6) but for the fourth cumulant: without them the first
            stretches of a curve, which are wide in log n, bend the fit.

    Returns:
        None with fewer than `POINTS_MIN` points, or where the loss does not fall.
    """
    chosen = np.isfinite(loss) & (n > 0)
    n, loss = n[chosen], loss[chosen]
    inside = np.zeros((2, len(n))) if cumulants is None else cumulants[:, chosen]
    if len(n) < POINTS_MIN:
        return None
    scale = n[-1]
    seen: list[tuple[Floats, Floats]] = []
    solved, best = _zoom(
        _power(n / scale, inside), _EXPONENTS, loss, constant=floor, zooms=_ZOOMS, points=60, seen=seen
    )
    b, a, c, rss = best, float(solved.a), float(solved.c), float(solved.rss)
    if a <= 0:
        return None
    residuals = loss - c - a * _power(n / scale, inside)(np.array([b]))[0]
    worth = points_worth(residuals)
    freedom = max(worth - (3 if floor else 2), 1.0)
    quantile = _t_quantile(freedom)
    limit = rss * (1 + quantile**2 / freedom)
    every, order = np.unique(np.concatenate([grid for grid, _ in seen]), return_index=True)
    low, high = _crossings(every, np.concatenate([rss for _, rss in seen])[order], limit, b)
    return PowerLaw(
        a=float(a * scale**b),
        b=float(b),
        c=float(c),
        b_se=(high - low) / 2 / quantile,
        b_low=low,
        b_high=high,
        rms=float(np.sqrt(rss / len(n))),
        points=len(n),
        points_worth=worth,
    )


def find_burn_in(n: Floats, loss: Floats, *, cumulants: Floats | None = None) -> BurnIn | None:
    """Where the burn-in ends: the start of the window [start, end] with the least AIC by point over four laws.

    Of windows whose criterion is within two standard errors of the least, 2 sqrt(2 / m), the longest is taken: among
    windows that hold no burn-in chance would decide, and one chosen for its small residuals has intervals too narrow.

    The laws are a n^-b; c + a n^-b; c + a exp(-n / tau); and a power law whose exponent changes at one time. AIC =
    m ln(RSS / m) + 2 k for m points and k parameters, the variance counted (Burnham & Anderson 2002, section 2.2), with
    their correction 2 k (k + 1) / (m - k - 1) for few points; divided by m so that windows can be compared. At most
    the first half of the points can be burn-in.

    Args:
        n: times; shape (points,).
        loss: losses; shape (points,). Those that are not finite are left out, with their times.
        cumulants: as `fit_power_law` takes them.

    Returns:
        None with fewer than 2 `POINTS_MIN` points.
    """
    known = np.flatnonzero(np.isfinite(loss) & (n > 0))
    n, loss = n[known], loss[known]
    inside = np.zeros((2, len(n))) if cumulants is None else cumulants[:, known]
    if len(n) < 2 * POINTS_MIN:
        return None
    latest = min(int(len(n) * (1 - _WINDOW_SHARE_MIN)), len(n) - POINTS_MIN)
    starts = np.unique(np.linspace(0, latest, min(_STARTS_MAX, latest + 1)).astype(np.int64))
    found: dict[Law, tuple[float, int]] = {}
    least_of: dict[Law, float] = {}
    for law, parameters, rss in _laws(n, loss, starts, inside):
        criteria = _aic_per_point(rss, len(n) - starts, parameters + 1)
        least = least_of[law] = float(criteria.min())
        # of a Gaussian log-likelihood each point adds a variance of 1/2, and the criterion is -2 times its mean
        best = int(np.flatnonzero(criteria <= least + 2 * np.sqrt(2 / (len(n) - starts)))[0])
        found[law] = (float(criteria[best]), int(starts[best]))
    law = min(found, key=lambda entry: least_of[entry])
    criterion, start = found[law]
    return BurnIn(int(known[start]), float(n[start]), law, criterion, least_of)


def points_worth(residuals: Floats) -> float:
    """As how many independent points residuals of shape (points,) count: points (1 - r) / (1 + r), r their lag-1
    autocorrelation where that is positive; at least 3."""
    total = float(residuals @ residuals)
    r = float(residuals[1:] @ residuals[:-1]) / total if total > 0 else 0.0
    r = min(max(r, 0.0), 0.99)
    return max(3.0, len(residuals) * (1 - r) / (1 + r))


@dataclass(frozen=True, slots=True)
class _Solved:
    """For each shape the linear parameters and the residual sum of squares; arrays of one form."""

    a: Floats
    c: Floats
    rss: Floats


def _solve(basis: Floats, loss: Floats, *, constant: bool) -> _Solved:
    """Least squares of `loss` (points,) on a times each row of `basis` (shapes, points), plus a constant >= 0."""
    mean = loss.mean()
    ff = (basis**2).sum(1)
    a = basis @ loss / ff
    c = np.zeros_like(a)
    if constant:
        centre = basis.mean(1)
        centred = basis - centre[:, None]
        variance = np.maximum((centred**2).sum(1), np.finfo(np.float64).tiny)
        with_constant = centred @ (loss - mean) / variance
        level = mean - with_constant * centre
        usable = (level >= 0) & (variance > 1e-20 * ff)
        a, c = np.where(usable, with_constant, a), np.where(usable, level, c)
    residuals = loss - c[:, None] - a[:, None] * basis
    return _Solved(a, c, (residuals**2).sum(1))


def _zoom(
    basis: Basis,
    grid: Floats,
    loss: Floats,
    *,
    constant: bool,
    zooms: int,
    points: int,
    seen: list[tuple[Floats, Floats]] | None = None,
) -> tuple[_Solved, float]:
    """The best shape, found by drawing a grid closer around the best of it; `seen` gathers grids and their squares."""
    solved = _solve(basis(grid), loss, constant=constant)
    for _ in range(zooms):
        if seen is not None:
            seen.append((grid, solved.rss))
        best = int(np.argmin(solved.rss))
        grid = _around(grid, best, points)
        solved = _solve(basis(grid), loss, constant=constant)
    if seen is not None:
        seen.append((grid, solved.rss))
    best = int(np.argmin(solved.rss))
    return _Solved(solved.a[best], solved.c[best], solved.rss[best]), float(grid[best])


def _around(grid: Floats, best: int, points: int) -> Floats:
    """A closer grid, evenly spread in the logarithm, between the neighbours of an entry."""
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return low * (high / low) ** (np.arange(points) / (points - 1))


def _power(time: Floats, cumulants: Floats) -> Basis:
    logarithm, variance, third = np.log(time), cumulants[0] / 2, cumulants[1] / 6

    def basis(exponents: Floats) -> Floats:
        b = exponents[:, None]
        return np.exp(-b * (logarithm - b * (variance - b * third)))

    return basis


def _decay(time: Floats, _cumulants: Floats) -> Basis:
    return lambda shares: np.exp(-time / shares[:, None])


def _laws(n: Floats, loss: Floats, starts: NDArray[np.int64], cumulants: Floats) -> Iterator[tuple[Law, int, Floats]]:
    """Each law, its number of parameters, and its least residual squares for the window from each start."""
    time = n / n[-1]
    yield "power", 2, _least(_power, _EXPONENTS, time, loss, starts, cumulants=cumulants, constant=False)
    yield "power + c", 3, _least(_power, _EXPONENTS, time, loss, starts, cumulants=cumulants, constant=True)
    yield "exp + c", 3, _least(_decay, _TIME_SHARES, time, loss, starts, cumulants=cumulants, constant=True)
    yield "broken power", 4, _least_broken(time, loss, starts)


def _suffix(values: Floats, starts: NDArray[np.int64]) -> Floats:
    """Sums over the last dimension from each start to the end."""
    return np.cumsum(values[..., ::-1], axis=-1)[..., ::-1][..., starts]


def _least(
    basis: Callable[[Floats, Floats], Basis],
    grid: Floats,
    time: Floats,
    loss: Floats,
    starts: NDArray[np.int64],
    *,
    cumulants: Floats,
    constant: bool,
) -> Floats:
    """Least residual squares over all shapes, for the window from each start to the end: float64 (len(starts),).

    Suffix sums give the best of the grid for all windows at once; around it each window draws its own grid closer.
    """
    near = _nearest(basis(time, cumulants)(grid), loss, starts, constant=constant)
    least = np.empty(len(starts))
    for at, (start, best) in enumerate(zip(starts.tolist(), near.tolist(), strict=True)):
        window, within = loss[start:], basis(time[start:], cumulants[:, start:])
        solved, _ = _zoom(within, _around(grid, best, 9), window, constant=constant, zooms=1, points=9)
        least[at] = max(solved.rss, _NOTHING * (window @ window))
    return least


def _nearest(basis: Floats, loss: Floats, starts: NDArray[np.int64], *, constant: bool) -> NDArray[np.int64]:
    """Which row of `basis` (shapes, points) fits the window from each start best."""
    basis = basis / basis[:, -1:]
    y = loss - (loss.mean() if constant else 0.0)
    f, ff, fy = (_suffix(values, starts) for values in (basis, basis**2, basis * y))
    if not constant:
        return (fy**2 / ff).argmax(0)
    count, sy = (len(loss) - starts).astype(np.float64), _suffix(y, starts)
    variance = np.maximum(ff - f**2 / count, 1e-12 * ff)
    return ((fy - f * sy / count) ** 2 / variance).argmax(0)


def _least_broken(time: Floats, loss: Floats, starts: NDArray[np.int64]) -> Floats:
    """Least residual squares of a power law whose exponent changes once, for each window: float64 (len(starts),).

    A line with a bend through log L over log n, points weighed by L^2, which makes its residuals those of L where
    they are small against it. Losses that are not positive have no such law: infinity.
    """
    if (loss <= 0).any():
        return np.full(len(starts), np.inf)
    x, y, weight = np.log(time), np.log(loss), loss**2
    bends = x[np.unique((_BREAKS * len(x)).astype(np.int64))]
    columns = np.stack(
        np.broadcast_arrays(np.ones_like(x), x, np.maximum(x - bends[:, None], 0.0))
    )  # (3, bends, points)
    products = np.einsum("ibp,jbp->bijp", columns, columns) * weight
    matrix = np.moveaxis(_suffix(products, starts), -1, 1)
    right = np.moveaxis(_suffix(columns * y * weight, starts), 0, -1)
    # a bend before the window leaves a column without use, hence the pseudo-inverse
    solution = (np.linalg.pinv(matrix, hermitian=True) @ right[..., None])[..., 0]
    yy = _suffix(weight * y**2, starts)
    rss = yy - (solution * right).sum(-1)
    return np.maximum(rss.min(0), _NOTHING * (yy + _suffix(loss**2, starts)))


def _aic_per_point(rss: Floats, points: NDArray[np.int64], parameters: int) -> Floats:
    m = points.astype(np.float64)
    correction = 2 * parameters * (parameters + 1) / np.maximum(m - parameters - 1, 1)
    return (m * np.log(rss / m) + 2 * parameters + correction) / m


def _crossings(grid: Floats, profile: Floats, limit: float, best: float) -> tuple[float, float]:
    """Where a profile crosses a limit on both sides of its minimum, by linear interpolation; else the grid's end."""
    at = int(np.argmin(np.abs(grid - best)))
    ends: list[float] = []
    for indices in (np.arange(at, -1, -1), np.arange(at, len(grid))):
        above = np.flatnonzero(profile[indices] > limit)
        if len(above) == 0:
            ends.append(float(grid[indices[-1]]))
            continue
        outside, inside = indices[above[0]], indices[max(above[0] - 1, 0)]
        rise = profile[outside] - profile[inside]
        share = (limit - profile[inside]) / rise if rise > 0 else 0.0
        ends.append(float(grid[inside] + share * (grid[outside] - grid[inside])))
    return ends[0], ends[1]


def _t_quantile(freedom: float) -> float:
    return float(stdtrit(max(freedom, 1.0), 0.975))
