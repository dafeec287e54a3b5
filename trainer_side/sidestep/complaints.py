"""What could not be recorded: counted always, said once for each cause, raised only when asked to be strict."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from typing import Final

from sidestep.errors import SidestepWarning, UsageError

logger = logging.getLogger("sidestep")

_PACKAGE_FOLDER: Final = os.path.join(os.path.dirname(__file__), "")  # noqa: PTH118, PTH120 - compared with code file names
#: Causes that are remembered as said; beyond it they are only counted.
_SAID_MAX: Final = 1000


class Complaints:
    """Counts and says what went wrong.

    Args:
        strict: raise instead of saying.

    Attributes:
        counts: how often, by kind.
    """

    def __init__(self, *, strict: bool) -> None:
        self.counts: dict[str, int] = {}
        self._strict = strict
        self._said: set[tuple[str, str]] = set()

    def add(self, kind: str, subject: str, message: str) -> None:
        """Count one of `kind`; say `message` and where the call came from, once for each kind and subject.

        Raises:
            UsageError: in strict mode.
        """
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self._strict:
            raise UsageError(message)
        if (kind, subject) in self._said or len(self._said) >= _SAID_MAX:
            return
        self._said.add((kind, subject))
        file, line = call_site()
        text = f"sidestep: {message} ({file}:{line}); it is counted, and said only once"
        try:
            warnings.warn_explicit(text, SidestepWarning, file, line)
        except Exception:  # noqa: BLE001 - a filter that turns warnings into errors must not end the training
            logger.warning("%s", text)


def call_site() -> tuple[str, int]:
    """File and line of the nearest caller outside of this package."""
    frame = inspect.currentframe()
    if frame is None:
        return "<unknown>", 0
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE_FOLDER):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
