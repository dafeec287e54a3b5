# ruff: noqa: INP001 - a folder on the path, and no package
"""What every Python below `sidestep run` reads when it starts: this folder is first on its PYTHONPATH.

Waits for torch. A process that never imports it pays a look into a table of two for each module it imports; nothing
of sidestep is loaded there, nor anything of the standard library that is not loaded anyway (`typing` alone takes
some milliseconds). A `sitecustomize` of the user's, which this one hides, is run as if this one were not there.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import FrameType
    from typing import Any

#: Callers of `parse_args` among which the main script is looked for: it may call a function of another file.
_CALLERS = 6
_PARSED_MAX = 4


class AfterImport:
    """A finder that finds nothing by itself: it does something right after certain modules have been imported.

    Attributes:
        parsed: what the main script's calls of `ArgumentParser.parse_args` gave.
    """

    def __init__(self) -> None:
        self.parsed: list[Any] = []
        self._after: dict[str, Callable[[Any], None]] = {"torch": self._capture, "argparse": self._note_arguments}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec that another finder has for a module of the table, extended; None for all others."""
        after = self._after.pop(name, None)
        if after is None:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    _extend(spec.loader, after)
                    return spec
        return None

    def _capture(self, _torch: Any) -> None:
        from sidestep.auto.capture import install  # noqa: PLC0415 - torch is here, so milliseconds do not count

        install(self.parsed)

    def _note_arguments(self, argparse: Any) -> None:
        # A class is patched because the script's own parser cannot be known before it parses.
        parse_args = argparse.ArgumentParser.parse_args
        parsed = self.parsed

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            namespace = parse_args(*args, **kwargs)
            if len(parsed) < _PARSED_MAX and _is_below_main(sys._getframe(1)):  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - `inspect` takes milliseconds to load
                parsed.append(namespace)
            return namespace

        wrapper.__name__, wrapper.__qualname__ = parse_args.__name__, parse_args.__qualname__
        wrapper.__doc__, wrapper.__module__ = parse_args.__doc__, parse_args.__module__
        wrapper.__wrapped__ = parse_args  # type: ignore[attr-defined]
        argparse.ArgumentParser.parse_args = wrapper


def _extend(loader: Any, after: Callable[[Any], None]) -> None:
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        del loader.exec_module  # from now on the loader is as it was
        execute(module)
        try:
            after(module)
        except Exception as error:
            if os.environ.get("SIDESTEP_STRICT", "0") not in {"", "0"}:
                raise
            print(f"sidestep: this script is not captured: {error!r}", file=sys.stderr)  # noqa: T201 - no logger here

    loader.exec_module = exec_module


def _is_below_main(frame: FrameType | None) -> bool:
    for _ in range(_CALLERS):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == "__main__":
            return True
        frame = frame.f_back
    return False


def _run_hidden() -> None:
    """Import the `sitecustomize` that would have been found without this folder, which leaves the path."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib takes milliseconds to load
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]  # noqa: PTH100
    this = sys.modules.pop(__name__)
    try:
        import sitecustomize  # noqa: F401, PLC0415  # pyright: ignore - another one of this name
    except ModuleNotFoundError as error:
        if error.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, this)


if os.environ.get("SIDESTEP_AUTO", "0") not in {"", "0"}:
    sys.meta_path.insert(0, AfterImport())
_run_hidden()
