"""The analysers that come with sidestep, those of installed packages, and those that the settings name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

import structlog

from sidestep_collector.analyse.protocol import Analyser
from sidestep_schemas.errors import ConfigError

log: Any = structlog.get_logger()

#: Name to module and class; loaded when a collector starts.
BUILT_IN: Final = {
    "units": ("sidestep_collector.analyse.units", "Units"),
    "shares": ("sidestep_collector.analyse.shares", "Shares"),
    "stability": ("sidestep_collector.analyse.stability", "Stability"),
    "noise": ("sidestep_collector.analyse.noise", "Noise"),
    "flow": ("sidestep_collector.analyse.flow", "Flow"),
    "features": ("sidestep_collector.analyse.features", "Features"),
    "sketches": ("sidestep_collector.analyse.sketches", "Sketches"),
    "generated": ("sidestep_collector.analyse.generated", "Generated"),
    "grids": ("sidestep_collector.analyse.grids", "Grids"),
    "sampling": ("sidestep_collector.analyse.sampling", "Sampling"),
}
GROUP: Final = "sidestep.analysers"


def load(named: Sequence[str] = (), memory: Mapping[str, int] | None = None) -> list[Analyser]:
    """All analysers of a collector: built-in ones, those of installed packages, and `named` ones.

    Args:
        named: "module:Class" each.
        memory: how many values some are to look at, by their names.

    Raises:
        ConfigError: a named one cannot be loaded, or has no memory that can be set; all that cannot are told at once.
    """
    found = [_made(getattr(import_module(module), kind)) for module, kind in BUILT_IN.values()]
    found += [*_installed(), *_named(named)]
    settable = {analyser.name: analyser for analyser in found if analyser.has_settable_memory}
    fixed = sorted(set(memory or {}) - set(settable))
    if fixed:
        raise ConfigError(f"analyser_memory: {', '.join(fixed)}: it can be set of {', '.join(sorted(settable))} alone")
    for name, count in (memory or {}).items():
        settable[name].memory = count
    return found


def _installed() -> Iterable[Analyser]:
    for entry in entry_points(group=GROUP):
        try:
            yield _made(entry.load())
        except Exception as error:  # noqa: BLE001 - whatever a package of somebody else's raises
            log.error("an installed analyser cannot be loaded; it is left out", analyser=entry.name, why=str(error))  # noqa: TRY400


def _named(named: Sequence[str]) -> list[Analyser]:
    made: list[Analyser] = []
    problems: list[str] = []
    for name in named:
        module, _, kind = name.partition(":")
        try:
            made.append(_made(getattr(import_module(module), kind)))
        except Exception as error:  # noqa: BLE001 - whatever a user's module raises
            problems.append(f"{name} ({type(error).__name__}: {error})")
    if problems:
        raise ConfigError(
            f"analysers that cannot be loaded: {'; '.join(problems)}; "
            "each is named as module:Class, of a class derived from sidestep_collector.analyse.protocol.Analyser"
        )
    return made


def _made(kind: Any) -> Analyser:
    made = kind()
    if not isinstance(made, Analyser):
        raise TypeError(f"{kind!r} is not derived from Analyser")
    return made
