"""What a tag means in a run: its profile's declaration, else the common one, else the catalogue's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sidestep_collector.profiles.spec import Judged, Profile
from sidestep_schemas.catalog import METRICS, Metric

_PLACEHOLDER: Final = re.compile(r"<(\w+)>")


@dataclass(frozen=True, slots=True)
class Declared:
    """A declared metric, with what a profile adds to it."""

    metric: Metric
    judged: Judged | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """What a tag falls under. `subject` is what its placeholders stand for, joined by commas; "" without any."""

    declared: Declared
    subject: str


class Vocabulary:
    """All metrics that are declared, by their tags.

    An exact tag goes before a family; of two families the one with more fixed characters.
    """

    def __init__(self, declared: Iterable[Declared]) -> None:
        self.declared = {one.metric.tag: one for one in declared}
        families = [tag for tag in self.declared if "<" in tag]
        families.sort(key=lambda tag: -len(_PLACEHOLDER.sub("", tag)))
        self._families = [(re.compile(regex(tag)), self.declared[tag]) for tag in families]
        self._exact = {tag: one for tag, one in self.declared.items() if "<" not in tag}
        self._find = lru_cache(maxsize=1 << 14)(self._look_up)

    def find(self, tag: str) -> Match | None:
        """What a tag falls under; None for a user's own."""
        return self._find(tag)

    def knows(self, tag: str) -> bool:
        """Whether a tag, or a pattern of tags, is declared."""
        return tag in self.declared or ("<" not in tag and self.find(tag) is not None)

    def _look_up(self, tag: str) -> Match | None:
        exact = self._exact.get(tag)
        if exact is not None:
            return Match(exact, "")
        for pattern, declared in self._families:
            found = pattern.fullmatch(tag)
            if found is not None:
                return Match(declared, ", ".join(found.groups()))
        return None


def regex(tag: str) -> str:
    """A regular expression for a tag whose placeholders each stand for one part, or a piece of one."""
    fixed = _PLACEHOLDER.split(tag)  # text, name, text, name, ..., text
    return "([^/]+)".join(re.escape(text) for text in fixed[::2])


def vocabulary(*profiles: Profile) -> Vocabulary:
    """The catalogue, and over it profiles: a later one replaces what an earlier one says."""
    declared = {metric.tag: Declared(metric) for metric in METRICS}
    for profile in profiles:
        for tag, spec in profile.metrics.items():
            declared[tag] = Declared(spec.metric(tag), spec)
        for tag, judged in profile.targets.items():
            if tag in declared:
                declared[tag] = Declared(declared[tag].metric, judged)
    return Vocabulary(declared.values())
