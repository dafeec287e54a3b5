"""A report put together: sections of text, tables and curves, independent of how it is written down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import duckdb
import numpy as np

from sidestep_collector.profiles import Profile
from sidestep_collector.query.epochs import ByEpoch, Epochs, read_epochs
from sidestep_collector.query.report import backward
from sidestep_collector.query.report.curves import Course, Reduction, course, reductions, spread
from sidestep_collector.query.report.diagnosis import Diagnosis, Facts, diagnose
from sidestep_collector.query.report.targets import WORRY, against_targets, profiles_of

_LOSSES: Final = ("train/loss_total", "train/loss", "train/loss_nats", "train/loss/total")
_VAL_LOSSES: Final = ("val/loss_total", "val/loss", "val/loss_nats", "val/loss/total")
_NORMS: Final = ("train/gradient/global_norm_before_clip", "train/gradients/global_norm", "grad_norm")
_UPDATES: Final = ("train/updates/relative_update_norm", "train/weight_change")
_BLOCK_NORMS: Final = "train/gradients/"
#: Tags in the folder of block norms that are of no block.
_NO_BLOCK: Final = frozenset({"global_norm", "nonfinite_count", "zero_share", "cosine_previous", "clip_fraction"})

Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over epochs: name to (epochs, values). `is_log` asks for a logarithmic axis where all are positive."""

    title: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    is_log: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report: sentences, then a table, then plots."""

    title: str
    lines: tuple[str, ...] = ()
    table: Table | None = None
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A report on a run.

    Attributes:
        run: its id.
        title: its name and project.
        facts: about the run itself: state, start, epochs.
        sections: what its curves say.
        diagnoses: what is wrong with it.
        findings: what the rules found while it went, as rows of the table `findings`; `suggest` is what each says to
            change, for a program to read, or None.
    """

    run: str
    title: str
    facts: Mapping[str, Any]
    sections: tuple[Section, ...]
    diagnoses: tuple[Diagnosis, ...]
    findings: tuple[Mapping[str, Any], ...] = field(default=())


def make_report(connection: duckdb.DuckDBPyConnection, run: str) -> Report:
    """The report on a run, whether it is finished, stopped, or still going."""
    about = _about(connection, run)
    epochs = read_epochs(connection, run)
    profiles, why = _profiles(connection, run, epochs)
    facts = _facts(connection, run, epochs, about, profiles[-1].name)
    sections = [
        section
        for section in (
            _rates(epochs, facts),
            _losses(epochs, facts),
            _accuracies(epochs, facts),
            _gradients(epochs, facts),
            _updates(epochs, facts),
            _targets(epochs, profiles, why),
        )
        if section is not None
    ]
    sections += _of_backward(connection, run, epochs)
    state = {name: about[name] for name in ("state", "started", "ended", "world_size", "profile") if about[name]}
    unit = "parts (the run told of no epochs)" if epochs.is_by_parts else "epochs"
    return Report(
        run=run,
        title=f"{about['project']} / {about['name']}",
        facts={**state, unit: facts.epochs},
        sections=tuple(sections),
        diagnoses=tuple(diagnose(facts)),
        findings=tuple(_findings(connection, run)),
    )


def _about(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, Any]:
    done = connection.execute("select * from runs where run = ?", [run])
    row: Any = done.fetchone()
    return dict(zip([str(column[0]) for column in done.description or ()], row, strict=True))


def _findings(connection: duckdb.DuckDBPyConnection, run: str) -> list[dict[str, Any]]:
    query = "select * from findings where run = ? and state <> 'pending' order by first_step, rule, subject"
    done = connection.execute(query, [run])
    columns = [str(column[0]) for column in done.description or ()]
    rows = [dict(zip(columns, row, strict=True)) for row in done.fetchall()]
    return [{**row, "suggest": json.loads(row["evidence"] or "{}").get("suggest")} for row in rows]


def _facts(
    connection: duckdb.DuckDBPyConnection, run: str, epochs: Epochs, about: Mapping[str, Any], profile: str
) -> Facts:
    def curve(tags: Sequence[str], better: str) -> Course | None:
        found = epochs.first_of(tags)
        return course(found[1], better=better) if found else None

    rate, norm, update = (epochs.first_of(tags) for tags in (("train/lr",), _NORMS, _UPDATES))
    clipped = epochs.metrics.get("train/gradient/clipped")
    shared = connection.execute(
        "select details->>'why', details->>'is_random' from events where run = ? and event = 'shared_dataset' limit 1",
        [run],
    ).fetchone()
    config = json.loads(about["config"] or "{}")
    return Facts(
        config=dict(_flat(config)) if isinstance(config, dict) else {},
        profile=profile,
        epochs=max((len(entry) for entry in epochs.metrics.values()), default=0),
        rate=tuple(reductions(rate[1])) if rate else (),
        rate_last=float(rate[1].last[-1]) if rate else None,
        rate_greatest=float(np.nanmax(rate[1].greatest)) if rate and np.isfinite(rate[1].greatest).any() else None,
        loss=curve(_LOSSES, "lower"),
        val_loss=curve(_VAL_LOSSES, "lower"),
        acc=curve(("train/acc",), "higher"),
        val_acc=curve(("val/acc",), "higher"),
        gradient=spread(norm[1]) if norm else None,
        update=spread(update[1]) if update else None,
        clipped=float(np.average(clipped.mean, weights=clipped.n)) if clipped is not None and clipped.n.sum() else None,
        amp_scale=_median(epochs.metrics.get("train/amp/scale")),
        norm_after_clip=_median(epochs.metrics.get("train/gradient/global_norm_after_clip")),
        norm_at_step=_norm_at_step(epochs),
        shared_data=str(shared[0]) if shared and shared[0] else "",
        shared_is_random=shared is None or shared[1] != "false",
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _median(curve: ByEpoch | None) -> float | None:
    known = curve.mean[np.isfinite(curve.mean)] if curve is not None else np.empty(0)
    return float(np.median(known)) if len(known) else None


def _norm_at_step(epochs: Epochs) -> float | None:
    """Norm of the gradient that the optimizer sees: from its blocks, which are measured at the step."""
    medians = [
        _median(curve)
        for tag, curve in epochs.metrics.items()
        if tag.startswith(_BLOCK_NORMS) and tag.removeprefix(_BLOCK_NORMS) not in _NO_BLOCK
    ]
    squares = [value**2 for value in medians if value is not None]
    return float(np.sqrt(sum(squares))) if squares else None


def _rates(epochs: Epochs, facts: Facts) -> Section | None:
    curve = epochs.metrics.get("train/lr")
    if curve is None:
        return None
    lines = [f"from {_number(curve.first[0])} to {_number(curve.last[-1])}"]
    lines += [_reduced(drop) for drop in facts.rate] or ["never reduced by half or more from one epoch to the next"]
    return Section("Learning rate", tuple(lines), plots=(_plot("learning rate", {"train/lr": curve}, is_log=True),))


def _reduced(drop: Reduction) -> str:
    return f"epoch {drop.epoch:g}: {drop.before:.3g} to {drop.after:.3g}, divided by {drop.factor:.3g}"


def _losses(epochs: Epochs, facts: Facts) -> Section | None:
    found = {entry[0]: entry[1] for tags in (_LOSSES, _VAL_LOSSES) if (entry := epochs.first_of(tags))}
    courses = {"training": facts.loss, "validation": facts.val_loss}
    return _courses("Loss", found, courses, is_log=True) if found else None


def _accuracies(epochs: Epochs, facts: Facts) -> Section | None:
    found = {tag: epochs.metrics[tag] for tag in ("train/acc", "val/acc") if tag in epochs.metrics}
    return _courses("Accuracy", found, {"training": facts.acc, "validation": facts.val_acc}) if found else None


def _courses(
    title: str, found: Mapping[str, ByEpoch], courses: Mapping[str, Course | None], *, is_log: bool = False
) -> Section:
    rows = [
        (name, one.first, one.last, one.best, f"{one.best_epoch:g}", _plateau(one))
        for name, one in courses.items()
        if one is not None
    ]
    table = Table(("", "first", "last", "best", "in epoch", "plateau"), tuple(rows))
    return Section(title, table=table, plots=(_plot(title.lower(), found, is_log=is_log),))


def _plateau(one: Course) -> str:
    return "still gains" if one.plateau_since is None else f"since epoch {one.plateau_since:g}"


def _gradients(epochs: Epochs, facts: Facts) -> Section | None:
    found = epochs.first_of(_NORMS)
    if found is None or facts.gradient is None:
        return None
    norm = facts.gradient
    lines = [f"L2 norm: mean {norm.mean:.3g}, from {norm.least:.3g} to {norm.greatest:.3g}"]
    if facts.clipped is not None:
        lines.append(f"{facts.clipped:.1%} of the steps were clipped (below 10 % is good, above 50 % for long is not)")
    return Section("Gradients", tuple(lines), plots=(_plot("gradient norm", {found[0]: found[1]}, is_log=True),))


def _updates(epochs: Epochs, facts: Facts) -> Section | None:
    found = epochs.first_of(_UPDATES)
    if found is None or facts.update is None:
        return None
    update = facts.update
    lines = (f"relative update a step: mean {update.mean:.3g}, from {update.least:.3g} to {update.greatest:.3g}",)
    return Section("Weight updates", lines, plots=(_plot("relative update", {found[0]: found[1]}, is_log=True),))


def _profiles(connection: duckdb.DuckDBPyConnection, run: str, epochs: Epochs) -> tuple[list[Profile], str]:
    said = connection.execute(
        "select details::varchar from events where run = ? and event = 'start' order by attempt desc, rank limit 1",
        [run],
    ).fetchone()
    start = json.loads(said[0] or "{}") if said else {}
    return profiles_of(run, start if isinstance(start, dict) else {}, epochs.metrics)


def _targets(epochs: Epochs, profiles: Sequence[Profile], why: str) -> Section | None:
    asked = against_targets(profiles, epochs.metrics)
    if not asked:
        return None
    names = " and ".join(profile.name for profile in profiles)
    lines = [f"as the profiles {names} have them" if len(profiles) > 1 else f"as the profile {names} has them"]
    lines[0] += f" (the last chosen {why})" if why else ""
    lines += [f"{one.metric}: worry where it is {one.worry}" for one in asked if one.state == WORRY and one.worry]
    rows = tuple((one.metric, one.last, one.target, one.state) for one in asked)
    return Section("Targets", tuple(lines), Table(("metric", "last", "target", ""), rows))


def _of_backward(connection: duckdb.DuckDBPyConnection, run: str, epochs: Epochs) -> Iterator[Section]:
    for title, lines, columns, rows in backward.parts(connection, run, epochs):
        yield Section(title, tuple(lines), Table(columns, tuple(rows)) if rows else None)


def _plot(title: str, found: Mapping[str, ByEpoch], *, is_log: bool = False) -> Plot:
    curves = {tag: (curve.epoch.tolist(), curve.mean.tolist()) for tag, curve in found.items()}
    return Plot(title, curves, is_log)


def _number(value: float) -> str:
    return f"{value:.3g}"
