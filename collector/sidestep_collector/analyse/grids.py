"""Grids: pictures of generated latents, alone and below real ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sidestep_collector.analyse.protocol import Analyser, Given, Span
from sidestep_collector.blocks import Image, Moment
from sidestep_collector.latents import GENERATED, REAL, Floats, compared, floats, overview, pairs, planes, png

GRID: Final = "samples/generated_grid"
COMPARED: Final = "samples/real_vs_generated"


class Grids(Analyser):
    """Of tensors (N, C, D, H, W) or (N, C, H, W) `samples/generated_latents`: the image `samples/generated_grid`, with
    samples as rows and middle slices (axial, coronal, sagittal) as columns; and with the `samples/real_latents` before
    them (or the first ones, where those came later) `samples/real_vs_generated`."""

    name = "grids"
    tensors = (GENERATED, REAL)
    gives = (GRID, COMPARED)
    keeps_tensors = True

    def add(self, span: Span) -> Iterator[Given]:
        """See `Analyser`."""
        for pair in pairs(span.tensors, span.before):
            generated = floats(pair.generated)
            if generated is None or not planes(generated):
                continue
            if pair.at == pair.generated.at:
                yield _image(pair.at, GRID, overview(generated))
            real = None if pair.real is None else floats(pair.real)
            if real is not None and _are_alike(real, generated):
                yield _image(pair.at, COMPARED, compared(real, generated))


def _are_alike(real: Floats, generated: Floats) -> bool:
    return bool(planes(real)) and real.shape[1:] == generated.shape[1:]


def _image(at: Moment, name: str, picture: NDArray[np.uint8]) -> Image:
    return Image(at, name, png(picture))
