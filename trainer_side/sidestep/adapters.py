"""What the adapters of frameworks share: names to tags, positions to epochs, and who ends the run.

Imports no framework. An adapter translates calls; whatever it has to say about a training is in `run` and `watch`.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sidestep
from sidestep.errors import UsageError
from sidestep.run import Run
from sidestep.start import active_run, init

#: Beginnings of names that say which split they are of.
PREFIXES: Final[Mapping[str, str]] = {
    "train_": "train",
    "val_": "val",
    "valid_": "val",
    "validation_": "val",
    "eval_": "val",
    "test_": "test",
}


@dataclass(frozen=True, slots=True)
class Held:
    """A run that an adapter records into.

    Attributes:
        run: the run.
        is_ours: whether the adapter began it; one that the script began is ended by the script.
    """

    run: Run
    is_ours: bool

    def finish(self, error: BaseException | None = None) -> None:
        """End the run if it was begun here; with an error it has failed."""
        if error is not None:
            self.run.note_failure(error)
        if self.is_ours:
            self.run.finish()


def hold(begin: Callable[[], Run]) -> Held:
    """Begin a run, or take the one of this process."""
    present = active_run()
    is_ours = present is None or not present.is_live
    return Held(begin(), is_ours)


def checked(keywords: Mapping[str, Any], owner: str, *, watches: bool) -> dict[str, Any]:
    """Keywords for `sidestep.init`, or `sidestep.watch`.

    Raises:
        UsageError: one that they do not take.
    """
    known = set(inspect.signature(init).parameters)
    if watches:
        known |= inspect.signature(sidestep.watch).parameters.keys() - {"model", "optimizer", "init_arguments"}
    for keyword in keywords:
        if keyword not in known:
            raise UsageError(f"{owner}() takes no {keyword!r}; it takes {', '.join(sorted(known))}")
    return dict(keywords)


def tagged(values: Mapping[Any, Any], split: str, prefixes: Mapping[str, str] = PREFIXES) -> dict[Any, Any]:
    """Values by tag. A name with `/` is one already; "val_loss" is `val/loss`; any other goes under `split/`.

    Where two names give one tag ("loss" and "train_loss"), the later keeps its whole name.
    """
    tags: dict[Any, Any] = {}
    for name, value in values.items():
        tag = _tag(name, split, prefixes) if isinstance(name, str) else name  # which `log` says is none
        tags[f"{split}/{name}" if tag in tags else tag] = value
    return tags


def epoch_at(position: float) -> float:
    """The epoch, from 1, `position` epochs into a training: at an epoch's end its number, inside with its share done.

    After a quarter of the first epoch 1.25; at its end 1; so that all that belongs to an epoch has its whole part.
    """
    return position if position > 0 and position == int(position) else position + 1


def catch_up(run: Run, steps: int) -> None:
    """Have a run that goes on from a checkpoint count from the steps that were taken before."""
    while run.step < steps - 1 and not run.is_off:
        run.next_step()


def mark_checkpoint(run: Run, path: str | os.PathLike[str], epoch: float | None = None) -> None:
    """Record that a checkpoint, a file or a folder, was written, its size and, where it was seen, its time."""
    saves = _saves()
    if saves is not None and saves.listener is not None and saves.seconds is None:
        return  # the probe has recorded it as it was written
    place = Path(path)
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    size_mb = sum(file.stat().st_size for file in files) / 1e6
    run.mark("checkpoint", path=str(place), size_mb=size_mb)
    values = {"checkpoint_size_mb": size_mb}
    seconds = 0.0 if saves is None else saves.take_seconds()
    if seconds > 0:
        values["perf/checkpoint_time_sec"] = seconds
    run.log(values, step=run.step, split=None, epoch=epoch)


def tell_of_checkpoints() -> None:
    """Say that checkpoints of the run are marked from now on: what the probe sees written is added up for the mark
    instead of recorded file by file."""
    saves = _saves()
    if saves is not None and saves.listener is not None:
        saves.take_seconds()


def _saves() -> Any:
    # Where it is not loaded, no run listens; and not every framework has torch.
    return getattr(sys.modules.get("sidestep.probes.checkpoints"), "SAVES", None)


def _tag(name: str, split: str, prefixes: Mapping[str, str]) -> str:
    # Lightning puts this behind a name where there are several loaders; it is no folder of the user's.
    name, loader, number = name.partition("/dataloader_idx_")
    if "/" not in name:
        start = next((start for start in prefixes if name.startswith(start) and name != start), "")
        name = f"{prefixes.get(start, split)}/{name.removeprefix(start)}"
    return name + loader + number
