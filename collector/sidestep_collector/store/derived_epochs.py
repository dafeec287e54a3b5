"""Metrics of an epoch that follow from others, one value each, as SQL.

They are asked for and not stored: a late record changes them. What a run has logged under such a name itself stands
as it is. The same formulas make the epoch documents (`aggregate.summary`).
"""

from __future__ import annotations

from typing import Final

from sidestep_collector.store.text import quoted

_LOSSES: Final = ("train/loss_total", "train/loss")
_VAL_LOSSES: Final = ("val/loss_total", "val/loss")
#: Of clipping at every step it clips; of the optimizer's step at sampled ones.
_NORMS: Final = ("train/gradient/global_norm_before_clip", "train/gradients/global_norm")
_CLIPPED: Final = "train/gradient/clipped"
_UPDATE: Final = "train/updates/relative_update_norm"


def _first_of(tags: tuple[str, ...], expression: str) -> str:
    """An expression over the row of the first of some tags for which it is not null."""
    each = (f"any_value({expression}) filter (metric = {quoted(tag)})" for tag in tags)
    return f"coalesce({', '.join(each)})"


_STD: Final = "sqrt(m2 / nullif(n - 1, 0))"
#: A script that logs one number an epoch does not tell of its batches.
_BATCHES: Final = "case when n + n_nonfinite > 1 then (n + n_nonfinite)::DOUBLE end"
_FORMULAS: Final = {
    "train/loss_std": _first_of(_LOSSES, _STD),
    "train/gradients/clip_fraction": _first_of((_CLIPPED,), "mean"),
    "train/gradient/clipping_percentage": _first_of((_CLIPPED,), "100 * mean"),
    "train/mean_grad_norm": _first_of(_NORMS, "mean"),
    "train/min_grad_norm": _first_of(_NORMS, "vmin"),
    "train/max_grad_norm": _first_of(_NORMS, "vmax"),
    "train/weight_change": _first_of((_UPDATE,), "mean"),
    "train/num_batches": _first_of(_LOSSES, _BATCHES),
    "val/num_batches": _first_of(_VAL_LOSSES, _BATCHES),
}
_READ: Final = ", ".join(quoted(tag) for tag in (*_LOSSES, *_VAL_LOSSES, *_NORMS, _CLIPPED, _UPDATE, *_FORMULAS))
_VALUES: Final = ", ".join(f"struct_pack(metric := {quoted(tag)}, x := {value})" for tag, value in _FORMULAS.items())

# One pass in groups by the keys that people ask by, so that a condition on the run reaches the parts.
_QUERY: Final = f"""
with found as (
    select run, rank, attempt, epoch, [{_VALUES}] as made, list(metric) as logged,
        min(first_seq) as first_seq, max(last_seq) as last_seq
    from ({{merged}}) where metric in ({_READ}) group by run, rank, attempt, epoch
), each as (
    select run, rank, attempt, epoch, unnest(made) as one, logged, first_seq, last_seq from found
)
select {{columns}} from ({{merged}})
union all by name
select run, one.metric as metric, rank, attempt, epoch, 1::BIGINT as n, 0::BIGINT as n_nonfinite, one.x as vmin,
    one.x as vmax, one.x as mean, 0::DOUBLE as m2, one.x as vfirst, one.x as vlast, first_seq, last_seq
from each where isfinite(one.x) and not list_contains(logged, one.metric)"""  # noqa: S608 - no value of a user's in it


def with_derived(merged: str, columns: str) -> str:
    """A query of the rows of epochs and of what follows from them.

    Args:
        merged: query of one row for each metric and epoch of a stream.
        columns: names of the columns of the table.
    """
    return _QUERY.format(merged=merged, columns=columns)
