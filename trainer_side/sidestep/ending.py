"""How this process ends, as far as it can say: the exception with its last lines, the exit code, the signal.

An exception and an exit code go into the run's last record. A signal leaves no time for one: the handler of SIGTERM
and SIGHUP here is C code that writes the stack into a file beside the journal and lets the signal do what it always
did; whoever ships the journal reads the file. Nothing here changes how or when a process ends, what it prints, or its
exit code; a handler of the user's is left alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

#: Last lines of a traceback that are kept, and their characters.
_LINES: Final = 40
_CHARACTERS: Final = 8000
_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_PREFIX: Final = "signal_"


def described(error: BaseException) -> dict[str, Any]:
    """An exception as details of an `end`: error, exception, traceback; of `SystemExit` the exit code."""
    details: dict[str, Any] = {"error": _one_line(error), "exception": type(error).__name__}
    if isinstance(error, SystemExit):
        return details | {"exit_code": exit_code(error.code)}
    with contextlib.suppress(Exception):  # it may hold whatever fails to be shown
        lines = "".join(traceback.format_exception(error)).splitlines()
        details["traceback"] = "\n".join(lines[-_LINES:])[-_CHARACTERS:]
    return details


def exit_code(code: object) -> int:
    """The exit code that a `SystemExit` with such a code gives a process."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _one_line(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:2000]
    except Exception:  # noqa: BLE001 - an exception whose text cannot be made is one all the same
        return type(error).__name__


def notice_exits(note: Callable[[SystemExit], None]) -> None:
    """Be told when `sys.exit` ends this process with a code that is not 0; not when somebody catches it.

    The interpreter tells nobody the code of a `SystemExit`. But it reads the attribute `code` of the one that reached
    it, and only then is there no frame that reads. `raise SystemExit(3)` without `sys.exit` goes unnoticed.
    """
    original = sys.exit
    owner = os.getpid()

    class Exit(SystemExit):
        @property
        def code(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
            code = self.args[0] if len(self.args) == 1 else (self.args or None)
            if not _has_reader() and exit_code(code) and os.getpid() == owner:
                with contextlib.suppress(Exception):
                    note(SystemExit(*self.args))
            return code

    Exit.__name__ = Exit.__qualname__ = "SystemExit"
    Exit.__module__ = "builtins"

    def leave(status: Any = None, /) -> Any:
        """Exit the interpreter by raising SystemExit(status), as ever; sidestep is told the code."""
        if threading.current_thread() is not threading.main_thread():
            original(status)  # ends a thread, quietly, and only if its type is exactly SystemExit
        # The interpreter gives the parts of a tuple to the exception, and nothing where there is no status.
        arguments = () if status is None else status if isinstance(status, tuple) else (status,)
        raise Exit(*arguments)

    leave.__name__ = leave.__qualname__ = "exit"
    leave.__module__ = "sys"
    sys.exit = leave


def _has_reader() -> bool:
    """Whether Python code reads the attribute: the interpreter itself reads it from no frame."""
    try:
        sys._getframe(2)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - it says who reads
    except ValueError:
        return False
    return True


class SignalTraces:
    """Files beside a journal, one for each signal that would end this process: empty until it comes.

    Args:
        folder: folder of the stream.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owner = os.getpid()
        self._files: dict[int, IO[bytes]] = {}

    def begin(self) -> None:
        """Listen for signals that nobody listens for. Where a file cannot be made, nothing is listened for."""
        for number in _SIGNALS:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                if signal.getsignal(number) is not signal.SIG_DFL:
                    continue
                file = (self._folder / f"{_PREFIX}{int(number)}.txt").open("wb", buffering=0)
                self._files[number] = file
                # The stack of one thread: walking those of others while they run is not safe. `chain`: it ends as ever.
                faulthandler.register(number, file, all_threads=False, chain=True)

    def end(self) -> None:
        """Listen no more: said at the end of a run, and in a forked child, whose signals are its own."""
        while self._files:
            number, file = self._files.popitem()
            faulthandler.unregister(number)
            file.close()
        if os.getpid() == self._owner:
            remove_signal_files(self._folder)


def read_signal(folder: Path) -> dict[str, str]:
    """The signal that ended the process of a stream, and where it stood; empty where none left its trace."""
    for number in _SIGNALS:
        with contextlib.suppress(OSError):
            stack = (folder / f"{_PREFIX}{int(number)}.txt").read_bytes().decode("utf-8", "replace").strip()
            if stack:
                return {"signal": number.name, "stack": stack[:_CHARACTERS]}
    return {}


def remove_signal_files(folder: Path) -> None:
    """Remove the files again; what cannot be removed stays."""
    for number in _SIGNALS:
        with contextlib.suppress(OSError):
            (folder / f"{_PREFIX}{int(number)}.txt").unlink()
