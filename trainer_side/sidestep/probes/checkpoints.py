"""Checkpoints: size and time of what `torch.save`, safetensors and `torch.distributed.checkpoint` write.

The writers are wrapped while a run listens and put back when it ends; what else is written stays what it was. There
is one wrapper and one listener in a process, whether a script watches its training or is captured by `sidestep run`,
so that nothing is counted twice. A writer that uses another, as `torch.distributed.checkpoint` does, counts once.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from sidestep.probes.protocol import Probe, Watched
from sidestep.run import Run
from sidestep.wrapping import Wrappings

TAGS: Final = ("checkpoint_size_mb", "perf/checkpoint_time_sec")


class Writer(NamedTuple):
    """A function that writes a checkpoint.

    Attributes:
        module: where it is; wrapped once that is loaded.
        name: its name there.
        others: modules that have it under the same name.
        place: position of the argument that says where to.
        keyword: name of that argument.
    """

    module: str
    name: str
    others: tuple[str, ...]
    place: int
    keyword: str


#: Of safetensors the function that all of its others end in, under whatever name a script has imported them.
WRITERS: Final = (
    Writer("torch.serialization", "save", ("torch",), 1, "f"),
    Writer("safetensors.torch", "serialize_file", (), 1, "filename"),
    Writer(
        "torch.distributed.checkpoint.state_dict_saver", "save", ("torch.distributed.checkpoint",), 99, "checkpoint_id"
    ),
)


class Saves:
    """Wraps the writers, and tells one listener of what they write.

    Attributes:
        listener: told target, position before (of a stream) and seconds; None while nobody listens.
        seconds: of what was written, added up instead of told, where an adapter tells of checkpoints itself; else None.
    """

    def __init__(self) -> None:
        self.listener: Callable[[Any, int | None, float], None] | None = None
        self.seconds: float | None = None
        self._wrappings = Wrappings()
        self._stays = False
        self._within = threading.local()
        self._folders = 0

    def install(self, *, stays: bool = False) -> None:
        """Wrap the writers whose modules are loaded, if they are not; `stays` keeps them wrapped for good."""
        self._stays = self._stays or stays
        for writer in WRITERS:
            places = [sys.modules[name] for name in (writer.module, *writer.others) if name in sys.modules]
            self._wrappings.wrap(places, writer.name, functools.partial(self._around, writer))

    def remove(self) -> None:
        """Put the writers back, unless they are to stay, or were wrapped anew by somebody else."""
        if not self._stays:
            self._wrappings.remove()

    def take_seconds(self) -> float:
        """What was added up since the last call."""
        seconds, self.seconds = self.seconds or 0.0, 0.0
        return seconds

    def _tell(self, target: Any, before: int | None, seconds: float) -> None:
        if self.seconds is not None:
            self.seconds += seconds
        elif self.listener is not None:
            self.listener(target, before, seconds)

    def _around(self, writer: Writer, original: Callable[..., Any]) -> Callable[..., Any]:
        is_folder = writer.keyword == "checkpoint_id"

        def save(*args: Any, **kwargs: Any) -> Any:
            if self.listener is None or self._folders or getattr(self._within, "yes", False):
                return original(*args, **kwargs)
            target = _target(writer, args, kwargs)
            before = position(target)
            began = time.perf_counter()
            self._within.yes = True
            self._folders += is_folder  # it writes from threads of its own
            try:
                result = original(*args, **kwargs)
            finally:
                self._within.yes = False
                self._folders -= is_folder
            self._tell(target, before, time.perf_counter() - began)
            return result

        return save


def _target(writer: Writer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = args[writer.place] if len(args) > writer.place else kwargs.get(writer.keyword)
    return getattr(kwargs.get("storage_writer"), "path", None) if given is None else given


#: Those of this process.
SAVES: Final = Saves()


class CheckpointProbe(Probe):
    """Size and time of each checkpoint, and an event with its path. Not sampled: each that is written."""

    name: ClassVar[str] = "checkpoints"
    cost: ClassVar[int] = 0
    tags: ClassVar[tuple[str, ...]] = TAGS

    def __init__(self) -> None:
        super().__init__()

    def attach(self, watched: Watched) -> None:
        """Listen to the writers."""
        super().attach(watched)
        SAVES.listener = self._listen
        SAVES.install()

    def report(self, step: int) -> None:  # noqa: ARG002
        """Look for writers that were loaded since."""
        SAVES.install()

    def detach(self) -> None:
        """Put the writers back, unless another run listens."""
        if SAVES.listener == self._listen:
            SAVES.listener = SAVES.seconds = None
            SAVES.remove()

    def _listen(self, target: Any, before: int | None, seconds: float) -> None:
        self.run.guard(lambda: record(self.run, target, before, seconds))


def record(run: Run, target: Any, before: int | None, seconds: float) -> None:
    """Record a checkpoint.

    Args:
        run: where to.
        target: path of a file or folder, or a stream.
        before: position of a stream before it was written to.
        seconds: what writing took.
    """
    if isinstance(target, str) and "://" in target:
        return  # on no disk of this machine
    path = os.fspath(target) if isinstance(target, str | bytes | os.PathLike) else None
    if path is not None:
        size = bytes_on_disk(Path(os.fsdecode(path)))
    else:
        after = position(target)
        if before is None or after is None:
            return
        size = after - before
        path = getattr(target, "name", None)
    where = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes) else None  # noqa: PTH100
    run.mark("checkpoint", path=where, size_mb=size / 1e6, seconds=seconds)
    run.record(TAGS, (size / 1e6, seconds))


def bytes_on_disk(place: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [place] if not place.is_dir() else [file for file in place.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def position(target: Any) -> int | None:
    """Where a stream is; None for a path, and for a stream without positions."""
    try:
        return int(target.tell())
    except Exception:  # noqa: BLE001 - streams are anybody's
        return None
