"""How functions of torch are wrapped, and what becomes of a fault on our side of the wrapping.

A wrapper calls what it wraps outside of any `try` of ours, with the arguments as they came. What capture does
before or after runs under `Faults.guard`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from sidestep.config import STRICT_VARIABLE

#: Faults after which capture gives up: something is wrong for good, and the script should not pay for it.
FAULTS_MAX: Final = 100

#: Folders of code that may stand between a script and a function that it calls.
_FOLDERS: Final = tuple(
    os.path.join(os.path.dirname(os.path.dirname(__file__)), room, "")  # noqa: PTH118, PTH120 - compared with code file names
    for room in ("auto", "probes")
)


class Faults:
    """Counts what goes wrong in capture, and says each kind once; in strict mode it is raised.

    Attributes:
        count: how often.
        complain: says a fault, by kind, subject and message; the run's once there is one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.complain: Callable[[str, str, str], None] = _say
        self._is_strict = os.environ.get(STRICT_VARIABLE, "") not in {"", "0"}
        self._said: set[str] = set()

    def guard(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call something of ours that must not reach the script."""
        try:
            call(*arguments)
        except Exception as error:
            if self._is_strict:
                raise
            self.count += 1
            kind = f"{type(error).__name__} in {getattr(call, '__qualname__', call)}"
            if kind not in self._said:
                self._said.add(kind)
                self.complain("capture", kind, f"something is not captured: {kind}: {error}")


def wrap(owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function by one that wraps it; what is not there is left out.

    Args:
        owner: module or class that has it.
        name: its name there.
        around: makes the wrapper from the function.
    """
    original = getattr(owner, name, None)
    if original is None or hasattr(original, "__sidestep__"):
        return
    wrapper: Any = functools.wraps(original)(around(original))
    wrapper.__sidestep__ = True
    # `torch.jit.script` compiles a function from its source and what it refers to: have it take the original.
    wrapper.__dict__ |= {"__script_if_tracing_wrapper": True, "__original_fn": original}
    setattr(owner, name, wrapper)


def argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, whether it was given by place or by name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def hide_wrappers() -> None:
    """Have tracebacks of uncaught exceptions look as if nothing were wrapped."""
    previous = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        seen: set[int] = set()
        inner: BaseException | None = error
        while inner is not None and id(inner) not in seen:
            seen.add(id(inner))
            inner.__traceback__ = _without_ours(inner.__traceback__)
            inner = inner.__cause__ or inner.__context__
        previous(kind, error, _without_ours(trace))

    sys.excepthook = show


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    first = trace
    while first is not None and _is_ours(first):
        first = first.tb_next
    entry = first
    while entry is not None:
        while entry.tb_next is not None and _is_ours(entry.tb_next):
            entry.tb_next = entry.tb_next.tb_next
        entry = entry.tb_next
    return first


def _is_ours(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith(_FOLDERS)


def _say(kind: str, subject: str, message: str) -> None:
    del kind, subject
    sys.stderr.write(f"sidestep: {message}\n")  # there is no run yet that could count it
