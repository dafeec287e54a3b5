"""The sink that writes latents as files, each time a run has generated some.

    <run>/samples/epoch_025/grid_axial.png grid_coronal.png grid_sagittal.png     samples as rows, channels as columns
    <run>/samples/epoch_025/latent_stats.json                                     channel by channel, and distances
    <run>/samples/epoch_025/latents/generated.npy real.npy                        as they were shipped

Latents outside epochs lie in `step_000123`, those of other ranks than the first in `epoch_025_rank_1`. Real latents
are the last ones before the generated ones, or the first ones where those came later.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from sidestep_collector.blocks import Batch, Event, Moment, Stream, Tensor
from sidestep_collector.latents import (
    GENERATED,
    REAL,
    Floats,
    Pair,
    array,
    channels,
    described,
    distances,
    floats,
    grid,
    pairs,
    planes,
    png,
)
from sidestep_collector.sinks.replacing import replace
from sidestep_schemas import layout

_FOLDER: Final = "samples"
_STATISTICS: Final = "latent_stats.json"

#: The last latents of a stream, by name.
_Known = dict[str, Tensor]


class SampleSink:
    """Writes generated latents and the real ones that they are compared with.

    Args:
        root: the data folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[Stream, tuple[_Known, _Known]] = {}
        self._ended: set[Stream] = set()

    def restore(self, tensors: Iterable[Tensor]) -> None:
        """Learn the last latents of streams that go on, before anything is written."""
        for tensor in tensors:
            if tensor.name in {GENERATED, REAL}:
                _, last = self._known.setdefault(tensor.at.stream, ({}, {}))
                last[tensor.name] = tensor

    def write(self, batch: Batch) -> None:
        """See `FileSink`."""
        ended = {item.at.stream for item in batch.items if isinstance(item, Event) and item.event == "end"}
        for stream in self._ended - ended:  # of those that ended now, the batch may be written again
            self._known.pop(stream, None)
        self._ended = ended
        new: dict[Stream, list[Tensor]] = {}
        for item in batch.items:
            if isinstance(item, Tensor) and item.name in {GENERATED, REAL}:
                new.setdefault(item.at.stream, []).append(item)
        for stream, tensors in new.items():
            before = self._before(stream, tensors[0].at.seq)
            for pair in pairs(tensors, before):
                self._write(pair)
            self._known[stream] = before, before | {tensor.name: tensor for tensor in tensors}

    def _before(self, stream: Stream, seq: int) -> _Known:
        """The last latents before a record; those before the last batch, where that one is written again."""
        earlier, last = self._known.get(stream, ({}, {}))
        return last if all(tensor.at.seq < seq for tensor in last.values()) else earlier

    def _write(self, pair: Pair) -> None:
        at = pair.generated.at
        folder = layout.run_dir(self._root, at.stream.project, at.stream.run) / _FOLDER / _name(at)
        for name, content in _files(pair):
            replace(folder / name, content)


def _name(at: Moment) -> str:
    rank = f"_rank_{at.stream.rank}" if at.stream.rank else ""
    if math.isfinite(at.epoch):
        return f"epoch_{math.floor(at.epoch):03d}{rank}"
    return f"step_{max(at.step, 0):06d}{rank}"


def _files(pair: Pair) -> Iterator[tuple[str, bytes]]:
    generated = floats(pair.generated)
    if generated is None:
        return
    for plane in planes(generated):
        yield f"grid_{plane}.png", png(grid(generated, plane))
    yield "latents/generated.npy", _npy(pair.generated)
    if pair.real is not None:
        yield "latents/real.npy", _npy(pair.real)
    yield _STATISTICS, msgspec.json.format(msgspec.json.encode(_statistics(pair, generated)), indent=2) + b"\n"


def _npy(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    found = array(tensor)
    np.save(buffer, np.empty(0) if found is None else found, allow_pickle=False)
    return buffer.getvalue()


def _statistics(pair: Pair, generated: Floats) -> dict[str, Any]:
    at = pair.generated.at
    ours = channels(generated)
    said: dict[str, Any] = {
        "epoch": at.epoch if math.isfinite(at.epoch) else None,
        "step": at.step,
        "shape": list(pair.generated.shape),
        "generated": [_described(channel) for channel in ours],
    }
    if pair.real is not None:
        theirs = channels(floats(pair.real))
        said["real"] = [_described(channel) for channel in theirs]
        said["distances"] = [
            _finite(distances(one, other)) if len(one) and len(other) else {}
            for one, other in zip(ours, theirs, strict=False)
        ]
    return said


def _described(channel: Floats) -> dict[str, float | None]:
    return _finite(described(channel)) if len(channel) else {}


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
