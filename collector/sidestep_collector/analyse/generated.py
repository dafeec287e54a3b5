"""Generated latents: channel by channel what they are like, and how far from real ones."""

from __future__ import annotations

from collections.abc import Iterator

from sidestep_collector.analyse.arrays import histogram
from sidestep_collector.analyse.protocol import Analyser, Floats, Given, Span, Values
from sidestep_collector.blocks import Moment, Tensor
from sidestep_collector.latents import GENERATED, LATENT_HISTOGRAM, REAL, channels, described, distances, floats, pairs


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
        for tensor in span.tensors:
            yield from _described("generated" if tensor.name == GENERATED else "data", tensor)
        for pair in pairs(span.tensors, span.before):
            if pair.real is not None:
                yield from _compared(pair.at, channels(floats(pair.generated)), channels(floats(pair.real)))


def _described(of: str, tensor: Tensor) -> Iterator[Given]:
    known = {number: channel for number, channel in enumerate(channels(floats(tensor))) if len(channel)}
    found = {
        f"{of}/{what}_ch{number}": value
        for number, channel in known.items()
        for what, value in described(channel).items()
    }
    if found:
        yield Values.at(tensor.at, found)
    for number, channel in known.items() if of == "generated" else ():
        shown = histogram(tensor.at, f"{LATENT_HISTOGRAM}{number}", channel)
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
