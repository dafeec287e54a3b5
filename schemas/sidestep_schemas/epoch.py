"""The epoch document: `diagnostics/epoch_001/summary.json`, and which aggregate stands in which field.

One declaration (`FIELDS`) makes both the document and its JSON Schema. A group appears when the run has a metric of
it, a field likewise; one whose value is not finite is null, and in `performance` also one that was not measured.
`metrics` holds the aggregates of every metric of the epoch, whatever its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

EPOCH_SCHEMA_VERSION: Final = 1

Statistic = Literal["mean", "std", "min", "max", "last", "n", "n_nonfinite"]
STATISTICS: Final[tuple[Statistic, ...]] = ("mean", "std", "min", "max", "last", "n", "n_nonfinite")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the document: the first of `tags` that the epoch has, by one statistic.

    A tag that ends in `*` collects all tags with that beginning, in the order of the number behind it, into
    an array.
    """

    group: str
    name: str
    tags: tuple[str, ...]
    statistic: Statistic


def _mean_fields(group: str, names: tuple[str, ...], prefix: str) -> tuple[Field, ...]:
    return tuple(Field(group, name, (prefix + name,), "mean") for name in names)


_NORM_TAGS: Final = ("train/gradients/global_norm", "train/gradient/global_norm_before_clip", "grad_norm")

FIELDS: Final[tuple[Field, ...]] = (
    Field("train", "loss_total", ("train/loss_total", "train/loss"), "mean"),
    *_mean_fields("train", ("loss_fm", "loss_mf"), "train/"),
    Field("train", "loss_std", ("train/loss_total", "train/loss"), "std"),
    Field("train", "loss_per_channel", ("train/channel/loss_ch*",), "mean"),
    Field("train", "acc", ("train/acc",), "mean"),
    Field("train", "grad_norm_mean", _NORM_TAGS, "mean"),
    Field("train", "grad_norm_max", _NORM_TAGS, "max"),
    Field("train", "clip_fraction", ("train/gradients/clip_fraction",), "last"),
    Field("train", "lr", ("train/lr",), "last"),
    Field("val", "loss_total", ("val/loss_total", "val/loss"), "mean"),
    *_mean_fields("val", ("loss_fm", "loss_mf", "acc"), "val/"),
    *_mean_fields(
        "meanflow",
        (
            *("jvp_norm", "u_norm", "v_tilde_norm", "compound_v_norm", "target_v_norm"),
            *("adaptive_weight_mean", "adaptive_weight_std"),
        ),
        "train/meanflow/",
    ),
    Field("ema", "param_divergence", ("ema/param_divergence",), "last"),
    *_mean_fields("performance", ("samples_per_sec", "steps_per_sec"), "perf/"),
    Field("performance", "gpu_mem_allocated_gb", ("perf/gpu_mem_allocated_gb",), "max"),
    Field("performance", "gpu_mem_reserved_gb", ("perf/gpu_mem_reserved_gb",), "max"),
    Field("performance", "epoch_time_sec", ("perf/epoch_time_sec",), "max"),
)

#: Groups whose fields are all there when one of them is: what this machine has none of (a GPU) is null.
_WHOLE: Final = frozenset({"performance"})

Aggregates = Mapping[str, Mapping[Statistic, float | int | None]]


def epoch_document(epoch: int, global_step: int, wall_time_sec: float, aggregates: Aggregates) -> dict[str, Any]:
    """The document of one epoch.

    Args:
        epoch: number of the epoch, as the run counts.
        global_step: last step of the epoch; -1 where none was logged.
        wall_time_sec: seconds from the start of the run to the end of the epoch.
        aggregates: statistics of every metric of the epoch; None stands for "not finite" and "unknown".
    """
    groups: dict[str, dict[str, Any]] = {}
    for field in FIELDS:
        found, value = _value(field, aggregates)
        if found:
            groups.setdefault(field.group, {})[field.name] = value
    for field in FIELDS:
        if field.group in _WHOLE and field.group in groups:
            groups[field.group].setdefault(field.name, None)
    return {
        "schema_version": EPOCH_SCHEMA_VERSION,
        "epoch": epoch,
        "global_step": global_step,
        "wall_time_sec": wall_time_sec,
        **groups,
        "metrics": {tag: dict(statistics) for tag, statistics in sorted(aggregates.items())},
    }


def epoch_json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) that every epoch document fulfils."""
    number = {"type": ["number", "null"]}
    groups: dict[str, Any] = {}
    for field in FIELDS:
        kind = {"type": "array", "items": number} if field.tags[0].endswith("*") else number
        group = groups.setdefault(
            field.group, {"type": "object", "additionalProperties": False, "minProperties": 1, "properties": {}}
        )
        group["properties"][field.name] = kind
    count = {"type": "integer", "minimum": 0}
    statistics = {name: count if name.startswith("n") else number for name in STATISTICS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sidestep epoch summary",
        "type": "object",
        "additionalProperties": False,
        "required": ["schema_version", "epoch", "global_step", "wall_time_sec", "metrics"],
        "properties": {
            "schema_version": {"const": EPOCH_SCHEMA_VERSION},
            "epoch": {"type": "integer"},
            "global_step": {"type": "integer", "minimum": -1},
            "wall_time_sec": {"type": "number", "minimum": 0},
            **groups,
            "metrics": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": list(STATISTICS),
                    "properties": statistics,
                },
            },
        },
    }


def _value(field: Field, aggregates: Aggregates) -> tuple[bool, Any]:
    if field.tags[0].endswith("*"):
        prefix = field.tags[0][:-1]
        numbered = {
            int(tag[len(prefix) :]): statistics[field.statistic]
            for tag, statistics in aggregates.items()
            if tag.startswith(prefix) and tag[len(prefix) :].isdigit()
        }
        return bool(numbered), [numbered[number] for number in sorted(numbered)]
    for tag in field.tags:
        if tag in aggregates:
            return True, aggregates[tag][field.statistic]
    return False, None
