"""How fast runs learn: the laws of their loss curves beside their curvature, one row a run.

The profile `slope` records what is read here; any run with a loss by step will do. See `curves` for the formulas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import duckdb
import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from sidestep_collector.query.curves import BurnIn, PowerLaw, Slope, early_slope, find_burn_in, fit_power_law
from sidestep_collector.query.series import Series, read_series

#: The losses that are looked for, the best first.
LOSSES: Final = ("train/loss_nats", "train/loss_total", "train/loss", "train/loss_bits")
CURVATURE: Final = "curvature/lambda_max"
_BITS: Final = "train/loss_bits"
_NATS: Final = "train/loss_nats"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked.

    Attributes:
        metric: the loss; None takes the first of `LOSSES` that a run has.
        first, last: the window of the early slope, in epochs done (steps where a run told of none).
        width: losses are averaged over stretches of so many epochs before anything is fitted: noise of single
            batches bends a logarithm.
        floor: whether the power law has a constant.
    """

    metric: str | None = None
    first: float = 5.0
    last: float = 15.0
    width: float = 0.25
    floor: bool = True


@dataclass(frozen=True, slots=True)
class RunSlope:
    """What the loss curve of a run says.

    Attributes:
        run: its id.
        config: its settings.
        metric: the loss that was read.
        points: stretches that the fits saw.
        epochs: epochs done at the last of them.
        early: the early slope; None where the window holds too little.
        law: the power law of what follows the burn-in, or of the whole where none was found.
        burn_in: where the burn-in ends.
        curvature_peak_at: epochs done when the largest curvature was greatest; None where it was not measured.
        curvature_peak: its value there.
        bits_exponent_difference: difference of the law's exponent between nats and bits, over its standard error;
            beyond 1 the pipeline is at fault, as a unit cannot change an exponent. None without both.
    """

    run: str
    config: Mapping[str, Any]
    metric: str
    points: int
    epochs: float
    early: Slope | None
    law: PowerLaw | None
    burn_in: BurnIn | None
    curvature_peak_at: float | None
    curvature_peak: float | None
    bits_exponent_difference: float | None
    curve: Series = field(repr=False)

    def row(self) -> dict[str, Any]:
        """As one flat row: for a table, CSV or JSON."""
        early, law, burn_in = self.early, self.law, self.burn_in
        return {
            "run": self.run,
            "metric": self.metric,
            "points": self.points,
            "epochs": self.epochs,
            "early_slope": early and early.slope,
            "early_slope_se": early and early.se,
            "early_slope_low": early and early.low,
            "early_slope_high": early and early.high,
            "exponent": law and law.b,
            "exponent_low": law and law.b_low,
            "exponent_high": law and law.b_high,
            "amplitude": law and law.a,
            "floor": law and law.c,
            "burn_in_end": burn_in and burn_in.at,
            "law": burn_in and burn_in.law,
            "curvature_peak_at": self.curvature_peak_at,
            "curvature_peak": self.curvature_peak,
            "unit_difference_se": self.bits_exponent_difference,
            **{f"config.{name}": value for name, value in self.config.items()},
        }


@dataclass(frozen=True, slots=True)
class Relation:
    """Spearman's rank correlation of two columns over runs; `p` tests against none."""

    x: str
    y: str
    runs: int
    rho: float
    p: float


def analyse_slopes(
    connection: duckdb.DuckDBPyConnection, runs: Sequence[str], settings: Settings | None = None
) -> list[RunSlope]:
    """The laws of the loss curves of runs, in the order given; a run without a loss is left out."""
    settings = settings or Settings()
    losses = (settings.metric,) if settings.metric else LOSSES
    read = read_series(connection, runs, tuple(dict.fromkeys((losses[0], _NATS, _BITS, CURVATURE))))
    others = [run for run in runs if run not in read[losses[0]]]  # most runs have the loss that is looked for first
    if others:
        read |= read_series(connection, others, [name for name in losses if name not in read])
    configs = _configs(connection, runs)
    found: list[RunSlope] = []
    for run in runs:
        metric = next((name for name in losses if run in read.get(name, ())), None)
        if metric is not None:
            series = {name: by_run[run] for name, by_run in read.items() if run in by_run}
            found.append(_run_slope(run, configs.get(run, {}), metric, series, settings))
    return found


def relations(rows: Sequence[Mapping[str, Any]]) -> list[Relation]:
    """When the curvature peaks against the slopes, over runs: rank correlations of the pairs that at least five
    runs have both of."""
    pairs = (
        ("curvature_peak_at", "early_slope"),
        ("curvature_peak_at", "exponent"),
        ("curvature_peak_at", "burn_in_end"),
        ("curvature_peak", "early_slope"),
    )
    found: list[Relation] = []
    for x, y in pairs:
        both = [(row[x], row[y]) for row in rows if row[x] is not None and row[y] is not None]
        if len(both) >= 5 and all(len(set(values)) > 1 for values in zip(*both, strict=True)):
            first, second = zip(*both, strict=True)
            found.append(Relation(x, y, len(both), *rank_correlation(first, second)))
    return found


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Spearman's rank correlation, and how likely one as strong is without any relation.

    The correlation r of the ranks, equal values sharing their mean rank; r sqrt((n - 2) / (1 - r^2)) has Student's t
    distribution with n - 2 degrees of freedom (Kendall and Stuart, The Advanced Theory of Statistics, 31.19). As
    `scipy.stats.spearmanr`, whose import takes longer than the analysis of a hundred runs.

    Args:
        x: values, at least three, not all the same.
        y: as many, not all the same either.
    """
    r = float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])
    freedom = len(x) - 2
    against = (1 - r) * (1 + r)
    return r, float(2 * stdtr(freedom, -abs(r) * (freedom / against) ** 0.5)) if against > 0 else 0.0


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def document(found: Sequence[RunSlope]) -> dict[str, Any]:
    """Everything as plain data."""
    rows = [run.row() for run in found]
    return {"runs": rows, "relations": [asdict(relation) for relation in relations(rows)]}


def _run_slope(
    run: str, config: Mapping[str, Any], metric: str, series: Mapping[str, Series], settings: Settings
) -> RunSlope:
    curve = _averaged(series[metric], settings)
    burn_in = find_burn_in(curve.n, curve.values, cumulants=curve.cumulants)
    after = burn_in.start if burn_in else 0
    law = _law(curve, after, settings)
    peak_at, peak = _peak(series.get(CURVATURE))
    return RunSlope(
        run=run,
        config=config,
        metric=metric,
        points=len(curve.n),
        epochs=float(curve.n[-1]) if len(curve.n) else 0.0,
        early=early_slope(curve.n, curve.values, first=settings.first, last=settings.last),
        law=law,
        burn_in=burn_in,
        curvature_peak_at=peak_at,
        curvature_peak=peak,
        bits_exponent_difference=_unit_difference(series, metric, law, after, settings),
        curve=curve,
    )


def _law(curve: Series, after: int, settings: Settings) -> PowerLaw | None:
    cumulants = None if curve.cumulants is None else curve.cumulants[:, after:]
    return fit_power_law(curve.n[after:], curve.values[after:], floor=settings.floor, cumulants=cumulants)


def _averaged(series: Series, settings: Settings) -> Series:
    return series.averaged(settings.width if series.in_epochs else 1.0)


def _unit_difference(
    series: Mapping[str, Series], metric: str, law: PowerLaw | None, after: int, settings: Settings
) -> float | None:
    nats, bits = series.get(_NATS), series.get(_BITS)
    if nats is None or bits is None or law is None:
        return None
    first = law if metric == _NATS else _law(_averaged(nats, settings), after, settings)
    second = _law(_averaged(bits, settings), after, settings)
    if first is None or second is None:
        return None
    return abs(first.b - second.b) / max(first.b_se, 1e-9 * first.b)


def _peak(curvature: Series | None) -> tuple[float | None, float | None]:
    if curvature is None or not np.isfinite(curvature.values).any():
        return None, None
    at = int(np.nanargmax(np.where(np.isfinite(curvature.values), curvature.values, np.nan)))
    return float(curvature.n[at]), float(curvature.values[at])


def _configs(connection: duckdb.DuckDBPyConnection, runs: Sequence[str]) -> dict[str, dict[str, Any]]:
    rows: list[tuple[str, str | None]] = connection.execute(
        "select run, config from runs where list_contains($runs, run)", {"runs": list(runs)}
    ).fetchall()
    return {run: json.loads(config) if config else {} for run, config in rows}
