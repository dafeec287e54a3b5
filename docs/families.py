"""The sections of docs/metrics.md that come from profiles: a family each. Used by generate.py."""  # noqa: INP001

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from sidestep_collector.profiles import COMMON, Profile, RuleSpec, builtin, names
from sidestep_collector.profiles.spec import Judged, Target

Table = Callable[[Sequence[str], Iterable[Sequence[str]]], list[str]]


def sections(table: Table) -> Iterator[str]:
    """Lines of every family: what it measures, what is good, when to worry, and its rules."""
    yield from (
        "",
        "# Families",
        "",
        "A [profile](profiles.md) adds the metrics of a family of trainings, and says what is good and when to worry.",
        "*From* tells who computes it: the training process, the script, or the collector from what was shipped.",
    )
    for name in (COMMON, *names()):
        yield from _family(builtin(name), table)


def _family(profile: Profile, table: Table) -> Iterator[str]:
    yield from ("", f"## {profile.title} (`{profile.name}`)", "", profile.meaning, "")
    if profile.metrics:
        head = ("metric", "unit", "taken", "over ranks", "meaning", "from", "target", "when to worry")
        rows = (
            (f"`{tag}`", _unit(spec.unit), spec.tier, spec.reduction, spec.meaning, spec.source, *_judged(spec))
            for tag, spec in profile.metrics.items()
        )
        yield from (*table(head, rows), "")
    if profile.targets:
        yield "What it says of metrics that are declared elsewhere:"
        yield ""
        rows = ((f"`{tag}`", *_judged(judged)) for tag, judged in profile.targets.items())
        yield from (*table(("metric", "target", "when to worry"), rows), "")
    if profile.rules:
        yield "Rules:"
        yield ""
        rules = (_rule(name, rule) for name, rule in profile.rules.items())
        yield from table(("rule", "severity", "fires", "first advice"), rules)


def _rule(name: str, rule: RuleSpec) -> tuple[str, ...]:
    return f"`{name}`", rule.severity, rule.fires("`"), rule.advice[0]


def _judged(judged: Judged) -> tuple[str, str]:
    return _target(judged.target), judged.worry or ""


def _target(target: Target | None) -> str:
    return target.text if target else ""


def _unit(unit: str) -> str:
    return "" if unit == "1" else unit
