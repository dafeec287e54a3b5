"""Which run goes by which profile.

Written by the thread that takes data in, read by the one that commits: each run's entry is replaced as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import structlog

from sidestep_collector.profiles.load import COMMON, builtin, names, parse
from sidestep_collector.profiles.spec import Profile
from sidestep_collector.profiles.vocabulary import Vocabulary, regex, vocabulary
from sidestep_schemas.catalog import Metric
from sidestep_schemas.errors import ProfileError

log: Any = structlog.get_logger()

#: Runs whose choice is remembered; of an older one that speaks again the start is read once more at a restart.
_RUNS_KEPT: Final = 4096
#: Texts that are longer are no profile.
_TEXT_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run goes by: the common profile, and over it its own, where it has one."""

    profiles: tuple[Profile, ...]
    vocabulary: Vocabulary

    @property
    def own(self) -> Profile | None:
        """The run's own profile."""
        return self.profiles[-1] if len(self.profiles) > 1 else None


@cache
def _common() -> Choice:
    return Choice((builtin(COMMON),), vocabulary(builtin(COMMON)))


class Choices:
    """The profiles of runs."""

    def __init__(self) -> None:
        self._chosen: dict[str, Choice] = {}
        self._by_text: dict[tuple[str, str], Choice] = {}

    def of(self, run: str) -> Choice:
        """What a run goes by."""
        return self._chosen.get(run) or _common()

    def note(self, run: str, said: Mapping[str, Any]) -> None:
        """Take what a start says: `profile`, a name, and `profile_text` where it is a file of the user's."""
        name, text = said.get("profile"), said.get("profile_text")
        if not isinstance(name, str) or not name:
            return
        key = (name, text if isinstance(text, str) else "")
        if key not in self._by_text:
            self._by_text[key] = _choice(run, *key)
        self._chosen.pop(run, None)
        self._chosen[run] = self._by_text[key]
        while len(self._chosen) > _RUNS_KEPT:
            del self._chosen[next(iter(self._chosen))]

    def declared(self, run: str, tags: Iterable[str]) -> dict[str, Metric]:
        """What the profile of a run declares of tags; nothing where it has none, for the catalogue says the rest."""
        choice = self.of(run)
        if choice.own is None:
            return {}
        words = choice.vocabulary
        return {tag: match.declared.metric for tag in tags if (match := words.find(tag)) is not None}

    def forget(self, run: str) -> None:
        """Drop a run that has ended."""
        self._chosen.pop(run, None)


def _choice(run: str, name: str, text: str) -> Choice:
    try:
        own = _profile(name, text)
    except ProfileError as error:
        log.warning("a profile that cannot be used; the common part applies", run=run, profile=name, why=str(error))
        return _common()
    if own.name == COMMON:
        return _common()
    return Choice((builtin(COMMON), own), vocabulary(builtin(COMMON), own))


def _profile(name: str, text: str) -> Profile:
    if len(text) > _TEXT_MAX:
        raise ProfileError(f"a profile of {len(text)} characters; {_TEXT_MAX} are taken")
    return parse(text, f"{name}.yaml") if text else builtin(name)


def suggested(tags: Iterable[str]) -> list[str]:
    """The profiles that fit the tags of a run: those whose `suggest` they match, the best first.

    The more patterns match the better; of two the one whose patterns say more.
    """
    seen = list(tags)
    fits: dict[str, tuple[int, int]] = {}
    for name, patterns in _suggests():
        matched = [pattern.pattern for pattern in patterns if any(map(pattern.fullmatch, seen))]
        if matched:
            fits[name] = (len(matched), sum(map(len, matched)))
    return sorted(fits, key=lambda name: fits[name], reverse=True)


@cache
def _suggests() -> list[tuple[str, list[re.Pattern[str]]]]:
    return [(name, [re.compile(regex(tag)) for tag in builtin(name).suggest]) for name in names()]
