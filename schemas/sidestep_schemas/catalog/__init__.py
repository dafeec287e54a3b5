"""Every metric that sidestep itself produces or gives a meaning to, declared once.

`docs/metrics.md`, the `metrics` table, TensorBoard descriptions and the epoch document read it. A metric a
user makes up needs no entry: it is stored under its tag all the same, without unit or meaning.
"""

from __future__ import annotations

import re
from typing import Final

from sidestep_schemas.catalog import derived, gradients, machine, model, training, updates
from sidestep_schemas.catalog.metric import Metric

__all__ = ["METRICS", "Metric", "block_of", "find", "reduction_of", "sharded_reduction"]

METRICS: Final[tuple[Metric, ...]] = (
    *training.METRICS,
    *gradients.METRICS,
    *updates.METRICS,
    *model.METRICS,
    *machine.METRICS,
    *derived.METRICS,
)

_EXACT: Final = {metric.tag: metric for metric in METRICS if "<" not in metric.tag}
_FAMILIES: Final = tuple(
    (
        re.compile(re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", re.escape(metric.tag).replace(r"\<", "<").replace(r"\>", ">"))),
        metric,
    )
    for metric in METRICS
    if "<" in metric.tag
)


def find(tag: str) -> Metric | None:
    """The declaration that a tag falls under; an exact one before a family; None for a user's own."""
    exact = _EXACT.get(tag)
    if exact is not None:
        return exact
    return next((metric for pattern, metric in _FAMILIES if pattern.fullmatch(tag)), None)


def reduction_of(tag: str) -> str:
    """How the values of several ranks become one, where the run says nothing else."""
    known = find(tag)
    return known.reduction if known is not None else "mean"


def sharded_reduction(tag: str) -> str:
    """How they do where the model is sharded, names in the place of placeholders; "" where that changes nothing."""
    exact = _EXACT.get(tag)
    if exact is not None:
        return exact.sharded
    for pattern, metric in _FAMILIES:
        match = pattern.fullmatch(tag)
        if match:
            text = metric.sharded
            for name, part in match.groupdict().items():
                text = text.replace(f"<{name}>", part)
            return text
    return ""


def block_of(tag: str) -> str | None:
    """The block of the network that a tag speaks of, where it is of such a family."""
    if tag in _EXACT:
        return None
    matches = (pattern.fullmatch(tag) for pattern, _ in _FAMILIES)
    return next((match["block"] for match in matches if match and "block" in match.groupdict()), None)
