"""Profiles from text: everything that is wrong with one is told at once, each with its line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, cast

from pydantic import ValidationError

from sidestep_collector.profiles import places
from sidestep_collector.profiles.spec import PREVIOUS, Profile, RuleSpec
from sidestep_collector.profiles.vocabulary import Vocabulary, vocabulary
from sidestep_schemas.errors import ProfileError

#: The profile that every run goes by, whatever other it has.
COMMON: Final = "common"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a profile."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


def names() -> list[str]:
    """The profiles that come with sidestep, without the common one."""
    found = {file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml")}
    return sorted(found - {COMMON})


@cache
def builtin(name: str) -> Profile:
    """A profile that comes with sidestep, or the common one.

    Raises:
        ProfileError: there is none of that name.
    """
    if name not in (*names(), COMMON):
        raise ProfileError(f"there is no profile {name!r}; there are {', '.join(names())}, or a YAML file of your own")
    return parse((_folder() / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")


def parse(text: str, file: str) -> Profile:
    """A profile from its text.

    Raises:
        ProfileError: it cannot be used; all that is wrong with it, a line each.
    """
    profile, problems = check(text, file)
    if profile is None or problems:
        raise ProfileError("a profile that cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))
    return profile


def check(text: str, file: str) -> tuple[Profile | None, list[Problem]]:
    """A profile, where it can be read as one, and all that is wrong with it, by line."""
    document = places.read(text)
    problems = [Problem(file, line, what) for line, what in document.faults]
    profile: Profile | None = None
    if not isinstance(document.data, dict):
        if not problems:
            problems.append(Problem(file, 1, "a profile is a mapping: name, title, meaning, metrics ..."))
        return None, problems
    try:
        profile = Profile.model_validate(document.data)
    except ValidationError as error:
        problems += [Problem(file, document.line(path), what) for path, what in map(_told, error.errors())]
    references = list(_references(cast("dict[str, Any]", document.data)))
    known = _known(profile, document.data)
    problems += [
        Problem(file, document.line(path), f"{_where(path)}: nobody declares a metric {tag!r}: add it to `metrics`")
        for path, tag in references
        if not known.knows(tag)
    ]
    return profile, sorted(problems, key=lambda problem: problem.line)


def _known(profile: Profile | None, data: dict[str, Any]) -> Vocabulary:
    """All tags that are declared; those of a profile that cannot be read, too, or its rules would all be blamed."""
    common = () if data.get("name") == COMMON else (builtin(COMMON),)
    if profile is not None:
        return vocabulary(*common, profile)
    metrics = data.get("metrics")
    tags = cast("dict[str, Any]", metrics) if isinstance(metrics, dict) else {}
    filler = {"name": "?", "unit": "1", "tier": "step", "meaning": "?", "source": "?"}
    stand_in = Profile.model_validate(
        {"name": "x", "title": "?", "meaning": "?", "metrics": dict.fromkeys(tags, filler)}
    )
    return vocabulary(*common, stand_in)


def _references(data: dict[str, Any]) -> Iterator[tuple[places.Path, str]]:
    """Every tag that a profile mentions without declaring it."""
    for tag, metric in _mapping(data.get("metrics")).items():
        yield from ((("metrics", tag, "same_as"), source) for source in _strings([_mapping(metric).get("same_as")]))
    yield from ((("targets", tag), tag) for tag in _mapping(data.get("targets")))
    yield from ((("suggest", at), tag) for at, tag in enumerate(_strings(data.get("suggest"))))
    for name, rule in _mapping(data.get("rules")).items():
        for key in ("metric", "to"):
            tag = _mapping(rule).get(key)
            if isinstance(tag, str) and tag != PREVIOUS:
                yield ("rules", name, key), tag
        for at, condition in enumerate(_list(_mapping(rule).get("also"))):
            yield from (
                (("rules", name, "also", at, "metric"), tag) for tag in _strings([_mapping(condition).get("metric")])
            )
    for title, charts in _mapping(data.get("panels")).items():
        for at, chart in enumerate(_list(charts)):
            tags = [
                *_list(_mapping(chart).get("tags")),
                *(_mapping(chart).get(key) for key in ("value", "lower", "upper")),
            ]
            yield from ((("panels", title, at), tag) for tag in _strings(tags))
    for name, playbook in _mapping(data.get("playbooks")).items():
        for at, step in enumerate(_list(_mapping(playbook).get("steps"))):
            yield from (
                (("playbooks", name, "steps", at, "look"), tag) for tag in _strings([_mapping(step).get("look")])
            )


def _told(error: Any) -> tuple[places.Path, str]:
    path: places.Path = tuple(part for part in error["loc"] if part != "[key]")
    what = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        what = f"unknown key; known here: {', '.join(_keys_at(path[:-1]))}"
    elif error["type"] == "missing":
        what = "is missing" + (': write unit: "1" where it has none' if path[-1] == "unit" else "")
    elif path and path[-1] == "unit":
        what += ': write unit: "1" where it has none'
    return path, f"{_where(path)}: {what}"


def _keys_at(path: places.Path) -> list[str]:
    """The keys that may stand at a path."""
    at: Any = Profile
    for part in path:
        fields = getattr(at, "model_fields", {})
        by_alias = {field.alias or name: field for name, field in fields.items()}
        at = _model_of(by_alias[part].annotation) if part in by_alias else at
    return [field.alias or name for name, field in getattr(at, "model_fields", {}).items()]


def _model_of(annotation: Any) -> Any:
    if hasattr(annotation, "model_fields"):
        return annotation
    inner = (_model_of(argument) for argument in getattr(annotation, "__args__", ()))
    return next((model for model in inner if model is not None), None)


def _where(path: places.Path) -> str:
    return " ▸ ".join(map(str, path)) or "the profile"


def _mapping(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _strings(value: Any) -> list[str]:
    return [one for one in _list(value) if isinstance(one, str)]


def _folder() -> Any:
    return resources.files("sidestep_schemas") / "profiles"


__all__ = ["COMMON", "Problem", "RuleSpec", "builtin", "check", "names", "parse"]
