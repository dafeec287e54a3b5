"""Plans: which columns of a key set anybody reads. Made once for a set of names; most have nothing to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sidestep_collector.analyse.protocol import Analyser, is_pattern, matcher
from sidestep_collector.blocks import KeySet
from sidestep_schemas import catalog
from sidestep_schemas.reductions import is_of_part

_PLANS_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read of a key set.

    Attributes:
        names, columns: the tags that are read, and where they stand.
        readers: for each analyser that reads of it, its number and its tags.
        memory: the longest memory among them.
        times: whether one of them asks when epochs end.
        own: tags of the key set that an analyser would give: this stream gives them itself.
    """

    names: tuple[str, ...]
    columns: tuple[int, ...]
    readers: tuple[tuple[int, tuple[str, ...]], ...]
    memory: int
    times: bool
    own: tuple[str, ...]


class Planner:
    """Plans for sets of names."""

    def __init__(self, analysers: Sequence[Analyser]) -> None:
        self._analysers = analysers
        self._readers = [_Reader(analyser) for analyser in analysers]
        self._gives = matcher(tag for analyser in analysers for tag in analyser.gives)
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], Plan | None] = {}

    def plan(self, key_set: KeySet) -> Plan | None:
        """The plan for a key set; None where nobody reads of it.

        What a rank of a sharded model says of its part is read by nobody: of the whole it tells something else.
        """
        key = key_set.names, key_set.reductions
        if key not in self._plans:
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = self._made(*key)
        return self._plans[key]

    def _made(self, names: tuple[str, ...], said: tuple[str, ...]) -> Plan | None:
        partial = {name for name, one in zip(names, said, strict=False) if is_of_part(one)}
        readers = [
            (number, tags)
            for number, reader in enumerate(self._readers)
            if (tags := tuple(name for name in names if name not in partial and reader.reads(name)))
        ]
        own = tuple(name for name in names if self._gives is not None and self._gives.fullmatch(name))
        if not readers and not own:
            return None
        read = {tag for _, tags in readers for tag in tags}
        found = {name: column for column, name in enumerate(names) if name in read}
        members = [self._analysers[number] for number, _ in readers]
        memory = max((analyser.memory for analyser in members), default=0)
        times = any(analyser.when == "epochs" for analyser in members)
        return Plan(tuple(found), tuple(found.values()), tuple(readers), memory, times, own)


class _Reader:
    def __init__(self, analyser: Analyser) -> None:
        self._exact = {tag for tag in analyser.reads if not is_pattern(tag)}
        self._patterns = matcher(tag for tag in analyser.reads if is_pattern(tag))

    def reads(self, tag: str) -> bool:
        if tag in self._exact:
            return True
        if self._patterns is None or not self._patterns.fullmatch(tag):
            return False
        declared = catalog.find(tag)
        return declared is None or declared.tag != tag
