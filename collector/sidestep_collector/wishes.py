"""What runs wish of the collector: the settings of diagnostics that they ship with their start.

Written by the thread that takes data in, read by the one that commits: each run's entry is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import structlog

from sidestep_collector.blocks import Event, Item
from sidestep_schemas.diagnostics import Diagnostics
from sidestep_schemas.errors import ConfigError

log: Any = structlog.get_logger()

#: Of an older run that speaks again the start is read once more at a restart.
_RUNS_KEPT: Final = 4096
_DEFAULT: Final = Diagnostics()


class Wishes:
    """The settings of runs."""

    def __init__(self) -> None:
        self._said: dict[str, Diagnostics] = {}

    def of(self, run: str) -> Diagnostics:
        """What holds for a run."""
        return self._said.get(run, _DEFAULT)

    def note(self, items: Iterable[Item]) -> None:
        """Take what starts say; one that cannot be meant is said, and what holds otherwise holds."""
        for item in items:
            if isinstance(item, Event) and item.event == "start":
                self._note(item.at.stream.run, item.details.get("diagnostics"))

    def forget(self, run: str) -> None:
        """Drop a run that has ended."""
        self._said.pop(run, None)

    def _note(self, run: str, said: object) -> None:
        try:
            found = Diagnostics.read(said)
        except ConfigError as error:
            log.warning("settings of a run that cannot be meant; those of all runs hold", run=run, why=str(error))
            found = _DEFAULT
        self._said.pop(run, None)
        self._said[run] = found
        while len(self._said) > _RUNS_KEPT:
            del self._said[next(iter(self._said))]
