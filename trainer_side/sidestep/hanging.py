"""Where every thread stands when no step has come for long: looked at from the drain thread, off unless asked for.

A training that hangs cannot say so. The drain thread goes on, and records the Python stacks of all threads as the text
`system/stacks`, once for each hang. A thread that holds the interpreter lock for ever stops this one as well.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidestep.run import Run

logger = logging.getLogger("sidestep")

STACKS_NAME: Final = "system/stacks"
#: A hang is a step that takes so many times the 99th percentile of the steps before it.
HANG_FACTOR: Final = 10.0
_STEPS_KEPT: Final = 512
_CHARACTERS: Final = 100_000
#: The drain thread looks each 0.2 s. A longer pause is one of the whole process, and no hang.
_PAUSE_SECONDS: Final = 5.0


class StackWatch:
    """Looks for a hang of one run.

    Args:
        seconds: no step in less is a hang; 0 never looks.
        clock: seconds that only rise.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._run: Run | None = None
        self._step = -1
        self._stepped = self._looked = clock()
        self._gaps: deque[float] = deque(maxlen=_STEPS_KEPT)
        self._told = False

    def begin(self, run: Run) -> None:
        """Look after a run from now on."""
        self._run = run

    def end(self) -> None:
        """Look no more."""
        self._run = None

    def tick(self) -> None:
        """Look whether it hangs; never raises. Called at every wake-up of the drain thread."""
        run = self._run
        if run is None or self._seconds <= 0:
            return
        now = self._clock()
        pause, self._looked = now - self._looked, now
        if pause > _PAUSE_SECONDS:
            self._stepped += pause
        if run.step != self._step:
            self._note_step(run.step, now, pause)
        elif not self._told and self._gaps and now - self._stepped >= self._seconds:
            self._look(run, now - self._stepped)

    def _note_step(self, step: int, now: float, pause: float) -> None:
        if self._step >= 0:
            self._gaps.append((now - self._stepped) / max(1, step - self._step))
        elif step > 0:
            self._gaps.append(pause / step)  # the first steps came since it looked last
        self._step, self._stepped, self._told = step, now, False

    def _look(self, run: Run, waited: float) -> None:
        ordered = sorted(self._gaps)
        if waited < HANG_FACTOR * ordered[int(0.99 * (len(ordered) - 1))]:
            return
        self._told = True
        try:
            run.text(STACKS_NAME, stacks())
        except Exception as error:  # noqa: BLE001 - the thread that ships records must live
            logger.debug("the stacks could not be recorded: %s: %s", type(error).__name__, error)


def stacks() -> str:
    """The Python stack of every thread but this one, the innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    frames = sys._current_frames()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the one way to see them
    parts = [
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in frames.items()
        if ident != own
    ]
    parts.sort(key=lambda part: not part.startswith("Thread MainThread"))
    return "\n".join(parts)[:_CHARACTERS]
