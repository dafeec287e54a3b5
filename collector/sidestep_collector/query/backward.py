"""What becomes of gradients in a run, for programs: a summary, its series by section, bottlenecks over runs.

Everything is a plain dictionary or list that JSON can hold; a number that is not finite, or unknown, is None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import duckdb
import numpy as np

from sidestep_collector.query.epochs import ByEpoch, Epochs, read_epochs

#: Sections of an export, and the beginnings of the tags that belong to each.
SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "gradient_stats": ("train/gradients/", "train/gradient/", "train/kinds/", "train/flow/", "train/logits/gradient_"),
    "loss_decomposition": ("train/loss", "val/loss", "train/logits/", "train/acc", "val/acc"),
    "parameter_updates": ("train/updates/",),
    "timing_stats": ("train/backward/", "train/performance/", "perf/"),
    "stability_counts": ("train/stability/",),
}
#: As the analyser `flow` numbers them.
CLASSES: Final = ("uniform", "sparse", "vanishing", "exploding")
#: Values of a series that are given; of a longer one every k-th, and the last.
POINTS_MAX: Final = 10_000
#: A block that is a bottleneck in more of the observations than this is one often.
OFTEN: Final = 0.5

_SHARE: Final = "train/flow/bottleneck_share/"
_SERIES: Final = """
with numbered as (
    select metric, step, value, row_number() over (partition by metric order by step) as number,
        count(*) over (partition by metric) as length
    from points_over_ranks where run = $run and step >= 0
)
select metric, list(step order by step) as steps, list(value order by step) as values from numbered
where number % ceil(length / $most) = 0 or number = length group by metric order by metric"""
# Numbers are added in one order: else the same question has answers that differ in their last digit.
_BOTTLENECKS: Final = """
with ends as (
    select run, metric, step, avg(value order by rank) as share from points_current
    where starts_with(metric, $prefix) and list_contains($runs, run) group by all
)
select replace(metric, $prefix, '') as block, avg(share order by run, step) as share,
    count(*) filter (share > $often) as epochs_often, count(*) as epochs,
    count(distinct run) filter (share > $often) as runs_often, count(distinct run) as runs
from ends group by metric order by share desc, block"""
_COUNTS: Final = """
with last as (
    select metric, rank, arg_max(value, step) as value from points_current
    where run = ? and starts_with(metric, 'train/stability/') and ends_with(metric, '_count') group by all
)
select replace(replace(metric, 'train/stability/', ''), '_count', '') as kind, sum(value)::BIGINT as counted
from last group by kind order by kind"""
_FINDINGS: Final = """
select rule, count(*) as findings, count(*) filter (state = 'firing') as open, sum(count)::BIGINT as counted
from findings where run = ? and state <> 'pending' group by rule"""


def summary(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, Any]:
    """A run in numbers: losses, logits, gradients, flow, updates, kinds, times, memory, alerts, suggestions.

    Of a series there are its mean over all epochs, and its value in the last one.
    """
    epochs = read_epochs(connection, run)
    loss = epochs.metrics.get("train/loss_total")
    memory = epochs.first_of(("perf/gpu_mem_allocated_gb", "perf/host_rss_gb"))
    return {
        "run": run,
        "epochs": max(map(len, epochs.metrics.values()), default=0),
        "loss": None if loss is None else _course(loss),
        "logits": _group(epochs, "train/logits/"),
        "gradients": _group(epochs, "train/gradients/"),
        "kinds": _group(epochs, "train/kinds/"),
        "updates": _group(epochs, "train/updates/"),
        "flow": flow(epochs) | {"bottlenecks": bottlenecks(connection, [run])},
        "time": _group(epochs, "train/backward/") | _group(epochs, "train/performance/"),
        "memory_mb": None if memory is None else _times(_most(memory[1]), 1e3),
        "alerts": alerts(connection, run),
        "suggestions": suggestions(connection, run),
    }


def series(
    connection: duckdb.DuckDBPyConnection, run: str, *, most: int = POINTS_MAX
) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Section -> tag -> its steps and values over all ranks; a tag belongs to the first section that names it."""
    found: dict[str, dict[str, dict[str, list[Any]]]] = {section: {} for section in SECTIONS}
    rows: list[tuple[str, list[int], list[float | None]]] = connection.execute(
        _SERIES, {"run": run, "most": most}
    ).fetchall()
    for tag, steps, values in rows:
        section = next((name for name, begins in SECTIONS.items() if tag.startswith(begins)), None)
        if section is not None:
            found[section][tag] = {"step": steps, "value": [_plain(value) for value in values]}
    return found


def export(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, Any]:
    """The summary of a run and its series by section."""
    return {"run": run, "summary": summary(connection, run), **series(connection, run)}


def bottlenecks(connection: duckdb.DuckDBPyConnection, runs: Sequence[str]) -> list[dict[str, Any]]:
    """Blocks of one run or several, those that hold the gradient up most often first.

    Of each block: `share` of the observations in which its gradient was below a tenth of the median of all blocks,
    averaged over epochs; in how many epochs, and runs, that was more than half of them (`epochs_often`, `runs_often`),
    and of how many.
    """
    done = connection.execute(_BOTTLENECKS, {"runs": list(runs), "prefix": _SHARE, "often": OFTEN})
    columns = [str(column[0]) for column in done.description or ()]
    return [dict(zip(columns, row, strict=True)) for row in done.fetchall()]


def alerts(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, dict[str, int]]:
    """Kind of alert -> how often it was counted, over all ranks, how many findings it made, how many are open."""
    counted: list[tuple[str, int]] = connection.execute(_COUNTS, [run]).fetchall()
    found: list[tuple[str, int, int, int]] = connection.execute(_FINDINGS, [run]).fetchall()
    made = {rule: {"findings": findings, "open": still} for rule, findings, still, _ in found}
    # A rule that is not of the run's profile has findings, and no series of counts.
    kinds = {rule: count for rule, _, _, count in found} | dict(counted)
    none = {"findings": 0, "open": 0}
    return {kind: {"count": count, **made.get(kind, none)} for kind, count in sorted(kinds.items())}


def suggestions(connection: duckdb.DuckDBPyConnection, run: str) -> list[dict[str, Any]]:
    """What findings that go on suggest to change, each setting once, the worst finding's word first."""
    rows: list[tuple[str, str, str, int, str]] = connection.execute(
        """select rule, subject, severity, first_step, json_extract(evidence, '$.suggest')::varchar from findings
        where run = ? and state = 'firing' and json_extract(evidence, '$.suggest') is not null
        order by list_position(['critical', 'warning', 'info'], severity), first_step, rule, subject""",
        [run],
    ).fetchall()
    found: dict[str, dict[str, Any]] = {}
    for rule, subject, severity, step, text in rows:
        said = json.loads(text)
        origin = {"rule": rule, "subject": subject, "severity": severity, "since_step": step}
        found.setdefault(said["setting"], {**said, **origin})
    return list(found.values())


def flow(epochs: Epochs) -> dict[str, Any]:
    """Class of the gradient profile: the last, and in how many epochs it was which."""
    curve = epochs.metrics.get("train/flow/class")
    known = [] if curve is None else [CLASSES[int(value)] for value in curve.last if np.isfinite(value)]
    slope, least = (epochs.metrics.get(f"train/flow/{name}") for name in ("slope", "min_over_median"))
    return {
        "class": known[-1] if known else None,
        "classes": {name: known.count(name) for name in CLASSES if name in known},
        "slope": None if slope is None else _of(slope.mean, -1),
        "min_over_median": None if least is None else _of(least.mean, -1),
    }


def _group(epochs: Epochs, prefix: str) -> dict[str, dict[str, float | None]]:
    return {
        tag.removeprefix(prefix): {"mean": mean(curve), "last": _of(curve.mean, -1)}
        for tag, curve in epochs.metrics.items()
        if tag.startswith(prefix)
    }


def mean(curve: ByEpoch) -> float | None:
    """Mean of all finite values of a curve."""
    known = np.isfinite(curve.mean)
    return float(np.average(curve.mean[known], weights=curve.n[known])) if known.any() else None


def _of(values: Iterable[float], at: int) -> float | None:
    return _plain(list(values)[at])


def _course(curve: ByEpoch) -> dict[str, float | None]:
    best = float(np.nanmin(curve.mean)) if np.isfinite(curve.mean).any() else None
    return {"first": _of(curve.mean, 0), "last": _of(curve.mean, -1), "best": best}


def _most(curve: ByEpoch) -> float | None:
    return float(np.nanmax(curve.greatest)) if np.isfinite(curve.greatest).any() else None


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _plain(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
