"""Generated latents: channel by channel what they are like, and how far from real ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from sidestep_collector.analyse.arrays import floats, histogram
from sidestep_collector.analyse.protocol import Analyser, Floats, Given, Span, Values
from sidestep_collector.blocks import Moment, Tensor

GENERATED: Final = "samples/generated_latents"
REAL: Final = "samples/real_latents"
CHANNELS_MAX: Final = 64
#: Values of a channel that a distance is computed of: evenly spaced ones of more.
VALUES_MAX: Final = 65_536


def wasserstein(one: Floats, other: Floats) -> float:
    """Wasserstein-1 distance of two samples: ∫ |F - G| of their distribution functions (Ramdas et al. 2017, 2.1).

    Args:
        one: shape (n,), finite, not empty.
        other: shape (m,), likewise.
    """
    one, other = np.sort(one), np.sort(other)
    if len(one) == len(other):
        return float(np.abs(one - other).mean())
    both = np.sort(np.concatenate([one, other]))
    f = np.searchsorted(one, both[:-1], side="right") / len(one)
    g = np.searchsorted(other, both[:-1], side="right") / len(other)
    return float(np.abs(f - g) @ np.diff(both))


def distances(generated: Floats, real: Floats) -> dict[str, float]:
    """How far a channel of generated values is from real ones, in standard deviations of those (of the population):
    shift of the mean, ratio of the deviations, Wasserstein-1 distance. NaN where the real ones have no spread.

    Args:
        generated: shape (n,), finite, not empty.
        real: shape (m,), likewise.
    """
    spread = float(real.std()) or np.nan
    return {
        "mean_shift": float(generated.mean() - real.mean()) / spread,
        "std_ratio": float(generated.std()) / spread,
        "distance": wasserstein(_thinned(generated), _thinned(real)) / spread,
    }


class Generated(Analyser):
    """Of tensors (N, C, ...) `samples/generated_latents` and `samples/real_latents`: `generated/mean_ch0`,
    `data/mean_ch0` and so on; and for each generated one its distance from the last real one before it (from the
    first real one, where that came later), `generated/distance_ch0` and so on."""

    name = "generated"
    tensors = (GENERATED, REAL)
    gives = (
        *(f"{of}/{what}_ch<c>" for of in ("generated", "data") for what in ("mean", "std", "min", "max")),
        *(f"generated/{what}_ch<c>" for what in ("mean_shift", "std_ratio", "distance")),
    )
    keeps_tensors = True

    def add(self, span: Span) -> Iterator[Given]:
        """See `Analyser`."""
        last = dict(span.before)
        for tensor in span.tensors:
            known = REAL in last
            last[tensor.name] = tensor
            channels = _channels(tensor)
            yield from _described("generated" if tensor.name == GENERATED else "data", tensor.at, channels)
            if tensor.name == GENERATED and known:
                yield from _compared(tensor.at, channels, _channels(last[REAL]))
            elif tensor.name == REAL and not known and GENERATED in last:
                yield from _compared(tensor.at, _channels(last[GENERATED]), channels)


def _channels(tensor: Tensor) -> list[Floats]:
    """The finite values of each channel."""
    array = floats(tensor)
    if array is None or array.ndim < 2:
        return []
    return [channel[np.isfinite(channel)] for channel in np.moveaxis(array, 1, 0)[:CHANNELS_MAX]]


def _described(of: str, at: Moment, channels: list[Floats]) -> Iterator[Given]:
    found: dict[str, float] = {}
    for number, channel in enumerate(channels):
        if len(channel):
            numbers = (channel.mean(), channel.std(), channel.min(), channel.max())
            for what, value in zip(("mean", "std", "min", "max"), numbers, strict=True):
                found[f"{of}/{what}_ch{number}"] = float(value)
    if found:
        yield Values.at(at, found)
    for number, channel in enumerate(channels if of == "generated" else ()):
        shown = histogram(at, f"histograms/generated_latent_ch{number}", channel)
        if shown is not None:
            yield shown


def _compared(at: Moment, generated: list[Floats], real: list[Floats]) -> Iterator[Given]:
    pairs = enumerate(zip(generated, real, strict=False))
    found = {
        f"generated/{what}_ch{number}": value
        for number, (one, other) in pairs
        if len(one) and len(other)
        for what, value in distances(one, other).items()
    }
    if found:
        yield Values.at(at, found)


def _thinned(values: Floats) -> Floats:
    if len(values) <= VALUES_MAX:
        return values
    return values[np.linspace(0, len(values) - 1, VALUES_MAX).astype(np.int64)]
