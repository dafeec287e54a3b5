"""Second names: where a profile calls a metric otherwise (`same_as`), its values are there under both tags.

So a family keeps the tags that its people know, and no training records a number twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.blocks import KeySet, ScalarBlock, Stream
from sidestep_collector.profiles.choices import Choices
from sidestep_schemas import catalog
from sidestep_schemas.catalog import Metric

#: Numbers of key sets on the wire, and of those that analysers make, are below it.
FIRST_KEY_SET: Final = 1 << 33


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which columns of a key set have a second name, and what that makes."""

    columns: NDArray[np.intp]
    key_set: KeySet


@dataclass(slots=True)
class _Known:
    """What a stream logs itself, and what is planned for its key sets."""

    own: set[str] = field(default_factory=set[str])
    plans: dict[int, _Plan | None] = field(default_factory=dict[int, _Plan | None])


class SecondNames:
    """Gives values their second names.

    Args:
        choices: which run goes by which profile.
    """

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._streams: dict[bytes, _Known] = {}
        self._key_sets: dict[tuple[str, int, tuple[str, ...], tuple[str, ...]], KeySet] = {}

    def declare(self, stream: Stream, key_sets: Iterable[KeySet]) -> None:
        """Learn what a stream logs: a tag that it logs itself is no second name of another."""
        if self._of_run(stream.run):
            known = self._known(stream)
            known.own.update(name for key_set in key_sets for name in key_set.names)
            known.plans.clear()

    def of(self, blocks: Iterable[ScalarBlock]) -> list[ScalarBlock]:
        """The values of blocks that have a second name, under that."""
        found: list[ScalarBlock] = []
        for block in blocks:
            names = self._of_run(block.stream.run)
            if not names:
                continue
            known = self._known(block.stream)
            number = block.key_set.id
            if number not in known.plans:
                known.plans[number] = self._planned(block.key_set, names, known.own)
            plan = known.plans[number]
            if plan is not None:
                values = block.values[:, plan.columns]
                found.append(
                    ScalarBlock(block.stream, plan.key_set, block.seq, block.t_ns, block.step, block.epoch, values)
                )
        return found

    def declared(self, blocks: Iterable[ScalarBlock]) -> dict[str, Metric]:
        """What the profiles of their runs say of the tags of blocks."""
        found: dict[str, Metric] = {}
        for block in blocks:
            found |= self._choices.declared(block.stream.run, block.key_set.names)
        return found

    def forget(self, stream: Stream) -> None:
        """Drop a stream that has ended."""
        self._streams.pop(stream.key, None)

    def _of_run(self, run: str) -> Mapping[str, str]:
        own = self._choices.of(run).own
        return {} if own is None else own.second_names

    def _known(self, stream: Stream) -> _Known:
        return self._streams.setdefault(stream.key, _Known())

    def _planned(self, key_set: KeySet, names: Mapping[str, str], own: set[str]) -> _Plan | None:
        columns = [at for at, name in enumerate(key_set.names) if name in names and names[name] not in own]
        if not columns:
            return None
        tags = tuple(names[key_set.names[at]] for at in columns)
        said = key_set.reductions or ("",) * len(key_set.names)
        # Ranks become one as they do under the first name.
        reductions = tuple(said[at] or catalog.reduction_of(key_set.names[at]) for at in columns)
        return _Plan(np.array(columns), self._key_set((key_set.tier, key_set.dtype, tags, reductions)))

    def _key_set(self, key: tuple[str, int, tuple[str, ...], tuple[str, ...]]) -> KeySet:
        if key not in self._key_sets:
            tier, dtype, tags, reductions = key
            number = FIRST_KEY_SET + len(self._key_sets)
            self._key_sets[key] = KeySet(number, dtype, tier, tags, reductions, derived=True)
        return self._key_sets[key]
