"""The sink that writes an epoch a line: `diagnostics/train_diagnostics.jsonl` and `diagnostics/val_diagnostics.jsonl`.

A line has the fields of `FIELDS`; what was not measured, or is not finite, is null. A file is written anew from all of
its lines, so an epoch that changes late, or is trained again, stands in it once.

A run may name a further folder for both files (`DIAGNOSTICS_DIR` in its environment). It is honoured where the
collector is told to trust who names it, and what goes wrong there keeps nothing out of the store.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from sidestep_collector.blocks import Batch, EpochSummary, Event, Item
from sidestep_collector.sinks.replacing import replace
from sidestep_collector.telemetry import Counters
from sidestep_schemas import layout

log: Any = structlog.get_logger()

FIELDS: Final = (
    "epoch", "loss", "accuracy", "learning_rate", "mean_grad_norm", "min_grad_norm", "max_grad_norm", "weight_change",
    "num_batches",
)  # fmt: skip
SPLITS: Final = ("train", "val")

_FOLDER: Final = "diagnostics"
_PATH_MAX: Final = 4096
#: Of a field the tags it is read from, the first that the epoch has, and by which statistic. The rate of a
#: validation is the one that its weights were trained with; gradients and updates belong to training alone.
_SOURCES: Final = {
    "train": {
        "loss": (("train/loss_total", "train/loss"), "mean"),
        "accuracy": (("train/acc",), "mean"),
        "learning_rate": (("train/lr",), "last"),
        "mean_grad_norm": (("train/mean_grad_norm",), "mean"),
        "min_grad_norm": (("train/min_grad_norm",), "mean"),
        "max_grad_norm": (("train/max_grad_norm",), "mean"),
        "weight_change": (("train/weight_change",), "mean"),
        "num_batches": (("train/num_batches",), "mean"),
    },
    "val": {
        "loss": (("val/loss_total", "val/loss"), "mean"),
        "accuracy": (("val/acc",), "mean"),
        "learning_rate": (("train/lr",), "last"),
        "num_batches": (("val/num_batches",), "mean"),
    },
}
#: Without one of these there is no line.
_WORTH: Final = ("loss", "accuracy", "mean_grad_norm")


class EpochLines:
    """Writes the lines of epochs that have ended.

    Args:
        root: the data folder.
        counters: what could not be written into a folder that a run named is counted there.
        takes_folders: whether runs may name folders: only those of this user on this machine may.
    """

    def __init__(self, root: Path, counters: Counters, *, takes_folders: bool) -> None:
        self._root = root
        self._counters = counters
        self._takes_folders = takes_folders
        self._named: dict[str, Path] = {}
        self._said: set[str] = set()

    def note(self, items: Iterable[Item]) -> None:
        """Take the folders that starts name."""
        for item in items:
            if isinstance(item, Event) and item.event == "start" and item.details.get("diagnostics_dir"):
                self._name(item.at.stream.run, item.details["diagnostics_dir"])

    def write(self, batch: Batch) -> None:
        """See `FileSink`."""
        self.note(batch.items)
        runs: dict[tuple[str, str], list[EpochSummary]] = {}
        for summary in batch.summaries:
            runs.setdefault((summary.project, summary.run), []).append(summary)
        for (project, run), summaries in runs.items():
            for split in SPLITS:
                self._write(project, run, split, {one.epoch: line for one in summaries if (line := _line(one, split))})

    def _write(self, project: str, run: str, split: str, lines: Mapping[int, bytes]) -> None:
        if not lines:
            return
        name = f"{split}_diagnostics.jsonl"
        file = layout.run_dir(self._root, project, run) / _FOLDER / name
        known = {**_read(file), **lines}
        content = b"".join(known[epoch] + b"\n" for epoch in sorted(known))
        replace(file, content)
        folder = self._named.get(run)
        if folder is None:
            return
        try:
            _write_outside(folder, name, content)
        except OSError as error:
            self._counters.named_folder_failures += 1
            self._say(f"{folder}: {error.strerror}", "a run's DIAGNOSTICS_DIR cannot be written", run)

    def _name(self, run: str, given: object) -> None:
        is_path = isinstance(given, str) and len(given) < _PATH_MAX and "\0" not in given
        if not isinstance(given, str) or not is_path or not Path(given).is_absolute():
            return
        if self._takes_folders:
            self._named[run] = Path(given)
        else:
            self._say(given, "a run names a folder, and is not heard: this collector listens to other machines", run)

    def _say(self, what: str, message: str, run: str) -> None:
        if what not in self._said and len(self._said) < _PATH_MAX:
            self._said.add(what)
            log.warning(message, run=run, folder=what)


def _line(summary: EpochSummary, split: str) -> bytes | None:
    found: dict[str, Any] = {name: _value(summary, *source) for name, source in _SOURCES[split].items()}
    if all(found.get(name) is None for name in _WORTH):
        return None
    if found["num_batches"] is not None:
        found["num_batches"] = round(found["num_batches"])
    return msgspec.json.encode({name: found.get(name) for name in FIELDS} | {"epoch": summary.epoch})


def _value(summary: EpochSummary, tags: tuple[str, ...], statistic: str) -> float | None:
    statistics = next((summary.statistics[tag] for tag in tags if tag in summary.statistics), {})
    value = statistics.get(statistic)
    return float(value) if value is not None and math.isfinite(value) else None


class _Head(msgspec.Struct):
    epoch: int


def _read(file: Path) -> dict[int, bytes]:
    """Lines by epoch; one that was damaged is left out."""
    found: dict[int, bytes] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in file.read_bytes().splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                found[msgspec.json.decode(line, type=_Head).epoch] = line
    return found


def _write_outside(folder: Path, name: str, content: bytes) -> None:
    """Like `replace`, where others may write too: nothing that lies there already is written through."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{secrets.token_hex(8)}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
