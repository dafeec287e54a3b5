"""The sink that writes epoch documents: `diagnostics/epoch_001/summary.json` and `training_summary.json`; and,
for each period of epochs, `diagnostics/periods/epochs_001-025.json`.

Files are replaced by rename, so a reader sees the old one or the new one. What is written depends on the
epoch alone: writing it again changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from sidestep_collector.blocks import Batch, EpochSummary, PeriodSummary
from sidestep_collector.sinks.replacing import replace
from sidestep_schemas import layout
from sidestep_schemas.epoch import STATISTICS, Statistic, epoch_document

_FOLDER: Final = "diagnostics"
_DOCUMENT: Final = "summary.json"
_ALL: Final = "training_summary.json"


class _Head(msgspec.Struct):
    """As much of a document as its place in the array needs."""

    epoch: int


class EpochJsonSink:
    """Writes an epoch's document when the epoch has ended.

    Args:
        root: the data folder.
        every: of a run, epochs that are whole multiples of it have a document; default all.
    """

    def __init__(self, root: Path, every: Callable[[str], int] | None = None) -> None:
        self._root = root
        self._every = every
        self._compared: set[Path] = set()

    def write(self, batch: Batch) -> None:
        """Writes the documents of a batch, then the array of each run that has one.

        Raises:
            OSError: a file cannot be written. Call again with the same batch.
        """
        runs: dict[Path, dict[int, bytes]] = {}
        for summary in batch.summaries:
            if self._every is not None and summary.epoch % self._every(summary.run):
                continue
            folder = layout.run_dir(self._root, summary.project, summary.run) / _FOLDER
            runs.setdefault(folder, {})[summary.epoch] = msgspec.json.encode(_document(summary))
        for folder, documents in runs.items():
            for epoch, document in documents.items():
                replace(_epoch_file(folder, epoch), msgspec.json.format(document, indent=2) + b"\n")
            replace(folder / _ALL, _array({**self._existing(folder), **documents}))
        for period in batch.periods:
            folder = layout.run_dir(self._root, period.project, period.run) / _FOLDER / "periods"
            name = f"epochs_{period.first_epoch:03d}-{period.last_epoch:03d}.json"
            replace(folder / name, msgspec.json.format(msgspec.json.encode(_period(period)), indent=2) + b"\n")

    def _existing(self, folder: Path) -> dict[int, bytes]:
        """The documents of a run on disk, by epoch.

        On first touch the array is compared with the files of the epochs: it may be damaged, or lack the
        last epoch where a collector died between the two.
        """
        documents = _read_array(folder / _ALL)
        if not documents or folder not in self._compared:
            missing = (file for file in folder.glob(f"epoch_*/{_DOCUMENT}") if _epoch_of(file) not in documents)
            documents |= _by_epoch(_readable(missing))
            self._compared.add(folder)
        return documents


def _document(summary: EpochSummary) -> dict[str, Any]:
    aggregates = {tag: _statistics(statistics) for tag, statistics in summary.statistics.items()}
    seconds = summary.wall_time_sec if math.isfinite(summary.wall_time_sec) else 0.0
    # A clock that was set back gives a time before the start; the document's times begin at 0.
    return epoch_document(summary.epoch, max(summary.global_step, -1), max(float(seconds), 0.0), aggregates)


def _period(period: PeriodSummary) -> dict[str, Any]:
    metrics = {tag: _statistics(statistics) for tag, statistics in sorted(period.statistics.items())}
    return {"first_epoch": period.first_epoch, "last_epoch": period.last_epoch, "metrics": metrics}


def _statistics(given: Mapping[str, float | int | None]) -> dict[Statistic, float | int | None]:
    return {name: _count(given.get(name)) if name.startswith("n") else _finite(given.get(name)) for name in STATISTICS}


def _count(value: float | None) -> int:
    return 0 if value is None else int(value)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _epoch_file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch_{epoch:03d}" / _DOCUMENT


def _array(documents: Mapping[int, bytes]) -> bytes:
    return b"[\n" + b",\n".join(documents[epoch] for epoch in sorted(documents)) + b"\n]\n"


def _epoch_of(file: Path) -> int | None:
    number = file.parent.name.removeprefix("epoch_")
    return int(number) if number.removeprefix("-").isdecimal() else None


def _read_array(file: Path) -> dict[int, bytes]:
    try:
        return _by_epoch(bytes(document) for document in msgspec.json.decode(file.read_bytes(), type=list[msgspec.Raw]))
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _by_epoch(documents: Iterable[bytes]) -> dict[int, bytes]:
    return {msgspec.json.decode(document, type=_Head).epoch: document for document in documents}


def _readable(files: Iterable[Path]) -> Iterable[bytes]:
    for file in files:
        document = file.read_bytes()
        try:
            msgspec.json.decode(document, type=_Head)
        except msgspec.DecodeError:
            continue  # cut off by a power failure; the others still count
        yield msgspec.json.format(document, indent=-1)
