"""What a report says of backward passes: flow, logits, updates, kinds of parameters, time, alerts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import duckdb

from sidestep_collector.query import backward
from sidestep_collector.query.epochs import ByEpoch, Epochs

_LOGITS: Final = ("max", "mean", "std", "confidence", "target_confidence", "agreement", "gradient_norm")
_UPDATES: Final = (
    *("expected_norm", "applied_norm", "effectiveness", "information_lost", "cosine_expected", "step_size_ratio"),
    *("changed_share", "changed_count"),
)
_TIMES: Final = (
    ("loss", "train/backward/loss_time_ms"),
    ("upstream gradient", "train/backward/upstream_time_ms"),
    ("gradients of the parameters", "train/performance/backward_time_ms"),
    ("update", "train/backward/update_time_ms"),
    ("together", "train/backward/total_time_ms"),
)
_OF_FAMILY: Final = ("train/updates/effectiveness", "train/backward/update_time_ms")


class Part(NamedTuple):
    """A section: sentences, and a table."""

    title: str
    lines: Sequence[str]
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[str | float | int | None, ...]] = ()


def parts(connection: duckdb.DuckDBPyConnection, run: str, epochs: Epochs) -> list[Part]:
    """The sections of a run whose backward passes were looked at; none of another."""
    if epochs.first_of(_OF_FAMILY) is None:
        return []
    found = (
        _flow(connection, run, epochs),
        _curves("Logits", epochs, [(name, f"train/logits/{name}") for name in _LOGITS]),
        _updates(epochs),
        _curves("Kinds of parameters", epochs, [(tag.removeprefix("train/kinds/"), tag) for tag in _kinds(epochs)]),
        _time(epochs),
        _alerts(connection, run),
    )
    return [part for part in found if part is not None]


def _flow(connection: duckdb.DuckDBPyConnection, run: str, epochs: Epochs) -> Part | None:
    seen = backward.flow(epochs)
    if seen["class"] is None:
        return None
    blocks = backward.bottlenecks(connection, [run])
    often = [row["block"] for row in blocks if row["share"] > backward.OFTEN]
    lines = [
        f"the gradient's profile over blocks is {seen['class']}; by epochs: "
        + ", ".join(f"{name} {count}" for name, count in seen["classes"].items()),
        f"often a bottleneck: {', '.join(often)}" if often else "no block is a bottleneck often",
    ]
    rows = [
        (
            row["block"],
            _mean(epochs, f"train/gradients/{row['block']}"),
            f"{row['share']:.0%}",
            row["epochs_often"],
            row["epochs"],
        )
        for row in sorted(blocks, key=lambda row: str(row["block"]))
    ]
    return Part("Gradient flow", lines, ("block", "mean norm", "bottleneck", "epochs often", "of"), rows)


def _updates(epochs: Epochs) -> Part | None:
    part = _curves("Expected and applied updates", epochs, [(name, f"train/updates/{name}") for name in _UPDATES])
    if part is None:
        return None
    prefix = "train/updates/update_frequency/"
    often = [
        f"{tag.removeprefix(prefix)} {curve.last[-1]:.0%}"
        for tag, curve in epochs.metrics.items()
        if tag.startswith(prefix)
    ]
    return part._replace(lines=[f"steps that changed a block: {', '.join(often)}"] if often else [])


def _kinds(epochs: Epochs) -> Iterator[str]:
    yield from (tag for tag in epochs.metrics if tag.startswith("train/kinds/"))


def _curves(title: str, epochs: Epochs, tags: Sequence[tuple[str, str]]) -> Part | None:
    rows = [(name, *_course(epochs.metrics[tag])) for name, tag in tags if tag in epochs.metrics]
    return Part(title, [], ("", "first", "last", "mean", "least", "greatest"), rows) if rows else None


def _course(curve: ByEpoch) -> tuple[float | None, ...]:
    return (
        float(curve.mean[0]),
        float(curve.mean[-1]),
        backward.mean(curve),
        float(curve.least.min()),
        float(curve.greatest.max()),
    )


def _time(epochs: Epochs) -> Part | None:
    whole = _mean(epochs, "train/backward/total_time_ms")
    if whole is None:
        return None
    means = [(name, _mean(epochs, tag)) for name, tag in _TIMES]
    rows = [(name, value, f"{value / whole:.0%}" if whole else "") for name, value in means if value is not None]
    lines: list[str] = []
    for tag, text in (
        ("train/backward/passes_per_sec", "{:.4g} passes a second"),
        ("train/backward/cache_hit_rate", "cache hit rate {:.1%}"),
        ("perf/gpu_mem_allocated_gb", "{:.3g} GB of device memory at most"),
        ("perf/host_rss_gb", "{:.3g} GB of host memory at most"),
    ):
        curve = epochs.metrics.get(tag)
        value = None if curve is None else curve.greatest.max() if tag.startswith("perf/") else backward.mean(curve)
        if value is not None:
            lines.append(text.format(value))
    return Part("Time of a backward pass", lines, ("", "ms a step", "share"), rows)


def _alerts(connection: duckdb.DuckDBPyConnection, run: str) -> Part | None:
    found = backward.alerts(connection, run)
    rows = [(kind, row["count"], row["findings"], row["open"]) for kind, row in found.items()]
    lines = [f"suggests {_said(row)} ({row['rule']})" for row in backward.suggestions(connection, run)]
    return Part("Alerts", lines, ("kind", "counted", "findings", "open"), rows) if rows else None


def _said(row: Mapping[str, Any]) -> str:
    return f"{row['setting']} x {row['multiply']:g}" if "multiply" in row else f"{row['setting']} = {row['value']}"


def _mean(epochs: Epochs, tag: str) -> float | None:
    curve = epochs.metrics.get(tag)
    return None if curve is None else backward.mean(curve)
