"""Checkpoints: what `torch.save` writes, how large it is and how long it took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

import torch

from sidestep.auto.patching import Faults, wrap
from sidestep.run import Run

TAGS: Final = ("checkpoint_size_mb", "perf/checkpoint_time_sec")


class Saving:
    """Sees calls of `torch.save` while there is a run.

    Args:
        faults: guards what is done here.
        run: the run that is captured, once there is one.
    """

    def __init__(self, faults: Faults, run: Callable[[], Run | None]) -> None:
        self._faults = faults
        self._run = run

    def install(self) -> None:
        """See `torch.save` under both of its names."""
        wrap(torch, "save", self._around)
        torch.serialization.save = torch.save

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def save(*args: Any, **kwargs: Any) -> Any:
            run = self._run()
            if run is None:
                return original(*args, **kwargs)
            target = args[1] if len(args) > 1 else kwargs.get("f")
            before = _position(target)
            began = time.perf_counter()
            result = original(*args, **kwargs)
            self._faults.guard(self._record, run, target, before, time.perf_counter() - began)
            return result

        return save

    def _record(self, run: Run, target: Any, before: int | None, seconds: float) -> None:
        path = _path(target)
        if path is not None:
            size = os.path.getsize(path)  # noqa: PTH202 - bytes are a path too
        else:
            after = _position(target)
            if before is None or after is None:
                return
            size = after - before
            path = getattr(target, "name", None)
        where = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes) else None  # noqa: PTH100
        run.mark("checkpoint", path=where, size_mb=size / 1e6, seconds=seconds)
        run.record(TAGS, (size / 1e6, seconds))


def _path(target: Any) -> str | bytes | None:
    return os.fspath(target) if isinstance(target, str | bytes | os.PathLike) else None


def _position(target: Any) -> int | None:
    try:
        return int(target.tell())
    except Exception:  # noqa: BLE001 - a path, or a stream without positions
        return None
