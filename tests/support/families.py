"""What an example of a family must leave behind: every quantity of its profile, in the store and in TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sidestep_collector.profiles import builtin
from sidestep_collector.profiles.vocabulary import regex
from support.place import Place

#: Tables that a quantity may lie in.
TABLES = {"points": "metric", "epochs": "metric", "images": "name", "histograms": "name"}


def stored_tags(place: Place, run: str) -> set[str]:
    """Every tag that the store has of a run, as number, epoch's number, image or histogram."""
    return {
        tag
        for table, column in TABLES.items()
        for (tag,) in place.rows(f"select distinct {column} from {table} where run = ?", run)
    }


def shown_tags(place: Place, run: str, *, project: str) -> set[str]:
    """Every tag that TensorBoard shows of a run's first attempt, rank 0."""
    events = EventAccumulator(str(place.tensorboard(run, project=project)), size_guidance={"tensors": 1})
    events.Reload()
    tags = events.Tags()
    return {tag for kind in ("scalars", "images", "histograms", "tensors") for tag in tags[kind]}


def missing_of(profile: str, tags: Iterable[str], *, but: Iterable[str] = ()) -> list[str]:
    """Tags of a profile (families once) that are not among `tags`; `but` names those that are not expected here."""
    seen = list(tags)
    wanted = [tag for tag in builtin(profile).metrics if tag not in set(but)]
    return [tag for tag in wanted if not any(re.fullmatch(regex(tag), one) for one in seen)]
