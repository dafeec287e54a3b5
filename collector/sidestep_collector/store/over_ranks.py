"""Values of several ranks as one: what is stored of how they combine, and the view that does it.

How a metric combines is the catalogue's word (`metrics.reduction`), unless a stream says otherwise of its key sets:
then it stands in the table `reductions`, one row a metric of a stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sidestep_collector.blocks import KeySet, Stream
from sidestep_collector.store.records import Row
from sidestep_collector.store.text import clean
from sidestep_schemas.reductions import parsed


def rows(key_sets: Iterable[tuple[Stream, KeySet]]) -> list[Row]:
    """Rows of the table `reductions` in the order of its sort: what was declared otherwise than by the catalogue."""
    found: dict[tuple[str, str, int, int], Row] = {}
    for stream, key_set in key_sets:
        if not any(key_set.reductions):
            continue
        for name, said in zip(key_set.names, key_set.reductions, strict=True):
            if said:
                rule, weight = parsed(said)
                key = stream.run, clean(name), stream.rank, stream.attempt
                found[key] = {
                    **dict(zip(("run", "metric", "rank", "attempt"), key, strict=True)),
                    "reduction": rule,
                    "weight": clean(weight) or None,
                }
    return [found[key] for key in sorted(found)]


#: What is added up or counted over the ranks of a step: finite values for means and extremes. A norm or a sum of which
#: a part is not finite is not finite itself.
_COMBINED: Final = """
    count(distinct rank) as ranks, max(reduction) as reduction,
    case max(reduction)
        when 'sum' then sum(value)
        when 'max' then coalesce(max(value) filter (where isfinite(value)), any_value(value))
        when 'l2' then sqrt(sum(value * value))
        when 'rms'
            then sqrt(coalesce(sum(pow(weight * value, 2)) / nullif(sum(weight * weight), 0), max(value * value)))
        else case when count(weight) > 0
            then coalesce(sum(weight * value) filter (where isfinite(value)), any_value(value))
                / coalesce(nullif(sum(weight) filter (where isfinite(value)), 0), 1)
            else coalesce(avg(value) filter (where isfinite(value)), any_value(value)) end
    end as value,
    min(value) filter (where isfinite(value)) as vmin, max(value) filter (where isfinite(value)) as vmax,
    arg_min(rank, value) filter (where isfinite(value)) as rank_min,
    arg_max(rank, value) filter (where isfinite(value)) as rank_max,
    count(*) filter (where not isfinite(value)) as n_nonfinite
"""

# Binding a view at every publish costs what the views in it cost: this one asks the points themselves, once for the
# values and once for what weighs them (of few metrics), where points_current would ask four times.
POINTS_OVER_RANKS: Final = f"""
with said as (select distinct run, metric, rank, attempt, reduction, weight from reductions), latest as (
    select run, metric, step, rank, max(attempt) as attempt, arg_max(value, attempt) as value
    from points group by run, metric, step, rank
), weighed as (
    select p.run, p.metric, p.step, p.rank, p.value, w.value as weight,
        coalesce(s.reduction, m.reduction, 'mean') as reduction
    from latest p left join metrics m on m.metric = p.metric
    left join said s on s.run = p.run and s.metric = p.metric and s.rank = p.rank and s.attempt = p.attempt
    left join points w on w.run = p.run and w.metric = s.weight and w.rank = p.rank and w.attempt = p.attempt
        and w.step = p.step and w.metric in (select weight from said)
)
select run, metric, step, {_COMBINED} from weighed group by run, metric, step"""  # noqa: S608 - no value of a user's in it
