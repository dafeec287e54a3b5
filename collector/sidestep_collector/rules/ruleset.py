"""The rules of a run: those of its profiles as they are set, and which columns of a record each of them reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import ValidationError

from sidestep_collector.profiles import Profile, RuleSpec, Vocabulary
from sidestep_collector.profiles.choices import Choice
from sidestep_collector.profiles.spec import PREVIOUS, Override
from sidestep_schemas.wire import TIER_PERIODIC

log: Any = structlog.get_logger()

#: Steps and epochs that are not judged at the beginning, where a rule does not say otherwise.
WARMUP_STEPS: Final = 20
#: Sets of names whose plan is remembered.
_PLANS_KEPT: Final = 4096
_PLACEHOLDER: Final = re.compile(r"<\w+>")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it is set for a run."""

    name: str
    profile: str
    spec: RuleSpec

    @property
    def held(self) -> tuple[int, int]:
        """So many of the last so many observations."""
        return (self.spec.held.count, self.spec.held.window) if self.spec.held else (1, 1)

    @property
    def warmup(self) -> int:
        """Steps, or epochs, that are not judged at the beginning."""
        if self.spec.warmup is not None:
            return self.spec.warmup
        return WARMUP_STEPS if self.spec.over == "step" and self.spec.form != "nonfinite" else 0


@dataclass(frozen=True, slots=True)
class Part:
    """What a rule reads of a record: columns of its metric, and for each the tags of what it is compared with.

    Columns side by side are a slice, which costs no copy.
    """

    rule: Rule
    columns: NDArray[np.intp] | slice
    tags: tuple[str, ...]
    subjects: tuple[str, ...]
    to: tuple[str, ...] | None
    also: tuple[tuple[str, ...], ...]

    def singly(self) -> Iterator[Part]:
        """The same for each column alone."""
        for at in range(len(self.tags)):
            one = slice(at, at + 1)
            to = None if self.to is None else self.to[one]
            also = tuple(tags[one] for tags in self.also)
            yield Part(self.rule, one, self.tags[one], self.subjects[one], to, also)


class RuleSet:
    """The rules that a run is judged by."""

    def __init__(self, rules: Sequence[Rule], vocabulary: Vocabulary) -> None:
        self.rules = tuple(rules)
        self.has_epoch_rules = any(rule.spec.over == "epoch" for rule in rules)
        self._vocabulary = vocabulary
        self._plans: dict[tuple[str, tuple[str, ...]], list[Part]] = {}
        self._compared = {tag for rule in rules if rule.spec.over == "step" for tag in rule.spec.reads[1:]}
        self._columns: dict[tuple[str, ...], list[int]] = {}

    def plan(self, names: tuple[str, ...], over: str = "step") -> list[Part]:
        """What rules read of a record with these names."""
        key = (over, names)
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            rules = (rule for rule in self.rules if rule.spec.over == over)
            found = self._plans[key] = [part for rule in rules if (part := self._part(rule, names)) is not None]
        return found

    def compared(self, names: tuple[str, ...]) -> list[int]:
        """Columns of a record that rules compare others with."""
        if not self._compared:
            return []
        found = self._columns.get(names)
        if found is None:
            if len(self._columns) >= _PLANS_KEPT:
                self._columns.clear()
            found = [at for at, tag in enumerate(names) if self._is_compared(tag)]
            self._columns[names] = found
        return found

    def blind(self, profile: str, seen: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Rules of a profile that have nothing to judge, with the metrics that they lack.

        Args:
            profile: whose rules.
            seen: tags that there are values of.
        """
        known = {name for tag in seen for name in (tag, self._declared(tag))}
        lacking = {rule.name: tuple(tag for tag in rule.spec.reads if tag not in known) for rule in self.rules}
        return {rule.name: lacking[rule.name] for rule in self.rules if rule.profile == profile and lacking[rule.name]}

    def is_periodic(self, tag: str) -> bool:
        """Whether a metric is taken more seldom than each epoch."""
        match = self._vocabulary.declared.get(tag)
        return match is not None and match.metric.tier == TIER_PERIODIC

    def _declared(self, tag: str) -> str:
        """The tag, or the pattern of tags, that a tag is declared by."""
        match = self._vocabulary.find(tag)
        return tag if match is None else match.declared.metric.tag

    def _is_compared(self, tag: str) -> bool:
        return tag in self._compared or self._declared(tag) in self._compared

    def _part(self, rule: Rule, names: tuple[str, ...]) -> Part | None:
        columns: list[int] = []
        subjects: list[str] = []
        for column, tag in enumerate(names):
            match = self._vocabulary.find(tag)
            if rule.spec.metric == tag or (match is not None and match.declared.metric.tag == rule.spec.metric):
                columns.append(column)
                subjects.append("" if match is None else match.subject)
        if not columns:
            return None
        spec = rule.spec
        to = None if spec.to in (None, PREVIOUS) else tuple(_filled(str(spec.to), subject) for subject in subjects)
        also = tuple(tuple(_filled(one.metric, subject) for subject in subjects) for one in spec.also)
        tags = tuple(names[column] for column in columns)
        return Part(rule, _index(columns), tags, tuple(subjects), to, also)


def _index(columns: list[int]) -> NDArray[np.intp] | slice:
    first, end = columns[0], columns[-1] + 1
    return slice(first, end) if end - first == len(columns) else np.array(columns)


def _filled(pattern: str, subject: str) -> str:
    """A tag of another metric of the same subject: its placeholders are those of the first, in order."""
    parts = iter(subject.split(", "))
    return _PLACEHOLDER.sub(lambda _: next(parts, ""), pattern)


class RuleSets:
    """Rule sets by what they follow from; runs that are judged alike share one.

    Args:
        settings: what the collector's settings say of rules, by name.
    """

    def __init__(self, settings: Mapping[str, Override]) -> None:
        self._settings = settings
        self._known: dict[tuple[tuple[int, ...], str], RuleSet] = {}

    def of(self, run: str, choice: Choice, said: Mapping[str, Any]) -> RuleSet:
        """The rules of a run: what `init(rules=...)` said goes over the settings, and those over the profiles."""
        key = (tuple(map(id, choice.profiles)), json.dumps(said, sort_keys=True, default=str))
        if key not in self._known:
            rules = self._settled(run, choice.profiles, said)
            self._known[key] = RuleSet([rule for rule in rules if rule.spec.enabled], choice.vocabulary)
        return self._known[key]

    def _settled(self, run: str, profiles: Sequence[Profile], said: Mapping[str, Any]) -> list[Rule]:
        rules = {name: Rule(name, profile.name, spec) for profile in profiles for name, spec in profile.rules.items()}
        for source, overrides in (("the collector's settings", self._settings), ("init(rules=...)", said)):
            for name, override in overrides.items():
                if name in rules:
                    rules[name] = _overridden(run, rules[name], override, source)
                elif overrides is said:
                    log.warning("a rule that there is not", run=run, rule=name, there_are=", ".join(sorted(rules)))
        return list(rules.values())


def _overridden(run: str, rule: Rule, said: Any, source: str) -> Rule:
    try:
        override = said if isinstance(said, Override) else Override.model_validate(said)
        return Rule(rule.name, rule.profile, override.applied(rule.spec))
    except ValidationError as error:
        why = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        log.warning("a rule cannot be set so; it stays as it was", run=run, rule=rule.name, by=source, why=why)
        return rule
