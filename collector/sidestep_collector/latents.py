"""Latents: tensors (N, C, spatial...) as arrays, what their channels are like, and pictures of their middle slices.

Shared by the analysers, which derive numbers and images from latents, and by the sink that writes their files: so both
say the same. Pure numpy, but for the encoding of PNG.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from sidestep_collector.blocks import Moment, Tensor

Floats = NDArray[np.float64]

#: Tensors that are latents: drawn from the model, and of the data.
GENERATED: Final = "samples/generated_latents"
REAL: Final = "samples/real_latents"
#: Histograms that follow from generated ones; behind it stands the number of a channel.
LATENT_HISTOGRAM: Final = "histograms/generated_latent_ch"

CHANNELS_MAX: Final = 64
#: Values of a channel that a distance is computed of: evenly spaced ones of more.
VALUES_MAX: Final = 65_536
#: Samples and channels of a picture; a page of more is no picture any more.
SAMPLES_SHOWN: Final = 8
CHANNELS_SHOWN: Final = 4
#: Middle slices of a volume (D, H, W): at D // 2, at H // 2, at W // 2. An image (H, W) has the first alone.
PLANES: Final = ("axial", "coronal", "sagittal")
#: Pixels that the shorter side of a slice has at least: smaller ones are enlarged by a whole factor.
TILE_PIXELS: Final = 32
#: Pixels that its longer side has at most: of more, every so manieth is drawn. A row of 4 million is no page.
TILE_PIXELS_MAX: Final = 256
#: Pixels of a grid: of more samples or channels the first ones are drawn.
PAGE_PIXELS: Final = 1 << 22
_GAP: Final = 2
#: Percentiles between which the grey scale runs: a few outliers must not make all else grey.
_SCALE: Final = (1.0, 99.0)
_WHITE: Final = 255

#: Little-endian, as they travel. bfloat16 is the upper half of a float32.
_DTYPES: Final = {
    **{name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")},
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bool": "?",
}


class Limits(NamedTuple):
    """What is black and what is white."""

    low: float
    high: float


class Pair(NamedTuple):
    """Generated latents and the real ones that they are compared with; `at` is the moment of the later of both.

    `real` is None where none are known yet.
    """

    at: Moment
    generated: Tensor
    real: Tensor | None


def pairs(tensors: Iterable[Tensor], before: Mapping[str, Tensor]) -> Iterator[Pair]:
    """Each generated tensor with the last real one before it; and once more where the first real one comes after it.

    Args:
        tensors: of one stream, in the order of their seq; others than latents are passed over.
        before: the last of each name before them.
    """
    last = dict(before)
    for tensor in tensors:
        known = last.get(REAL)
        last[tensor.name] = tensor
        if tensor.name == GENERATED:
            yield Pair(tensor.at, tensor, known)
        elif tensor.name == REAL and known is None and GENERATED in last:
            yield Pair(tensor.at, last[GENERATED], tensor)


# --- arrays ----------------------------------------------------------------------------------------------


def array(tensor: Tensor) -> NDArray[Any] | None:
    """A tensor in its shape and type (bfloat16 as float32); None where its type is none of numbers."""
    if tensor.dtype == "bfloat16":
        flat: NDArray[Any] = (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).view("<f4")
    elif tensor.dtype in _DTYPES:
        flat = np.frombuffer(tensor.data, np.dtype(_DTYPES[tensor.dtype]).newbyteorder("<"))
    else:
        return None
    return flat.reshape(tensor.shape)


def floats(tensor: Tensor) -> Floats | None:
    """A tensor's elements as float64 in its shape; None where its type is none of numbers."""
    found = array(tensor)
    return None if found is None else found.astype(np.float64)


def channels(latents: Floats | None) -> list[Floats]:
    """The finite values of each channel of latents (N, C, ...); none for what has no channels."""
    if latents is None or latents.ndim < 2:
        return []
    return [channel[np.isfinite(channel)] for channel in np.moveaxis(latents, 1, 0)[:CHANNELS_MAX]]


# --- numbers ---------------------------------------------------------------------------------------------


def described(values: Floats) -> dict[str, float]:
    """Mean, standard deviation (of the population), least and greatest; shape (n,), finite, n >= 1."""
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }


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


def _thinned(values: Floats) -> Floats:
    if len(values) <= VALUES_MAX:
        return values
    return values[np.linspace(0, len(values) - 1, VALUES_MAX).astype(np.int64)]


# --- pictures --------------------------------------------------------------------------------------------


def planes(latents: Floats) -> tuple[str, ...]:
    """The planes that latents have a middle slice in: three for (N, C, D, H, W), the axial for (N, C, H, W), else
    none."""
    if latents.size == 0:
        return ()
    return {5: PLANES, 4: PLANES[:1]}.get(latents.ndim, ())


def middle(latents: Floats, plane: str) -> Floats:
    """The middle slices in a plane, shape (N, C, rows, columns); `plane` is one of `planes`."""
    if latents.ndim == 4:
        return latents
    axis = 2 + PLANES.index(plane)
    return np.take(latents, latents.shape[axis] // 2, axis=axis)


def limits(*of: Floats) -> Limits:
    """A grey scale for all of some latents: from the 1st to the 99th percentile of their finite values."""
    values = np.concatenate([latents.ravel() for latents in of])
    values = values[np.isfinite(values)]
    if not len(values):
        return Limits(0.0, 1.0)
    low, high = np.percentile(values, _SCALE).tolist()
    return Limits(low, high) if high > low else Limits(low - 0.5, low + 0.5)


def grid(latents: Floats, plane: str) -> NDArray[np.uint8]:
    """Samples as rows, channels as columns: the middle slices in one plane, on one grey scale."""
    scale, slices = limits(latents), middle(latents, plane)
    room = max(1, PAGE_PIXELS // grey(slices[0, 0], scale).size)
    columns = min(slices.shape[1], CHANNELS_MAX, room)
    return tiled([[grey(tile, scale) for tile in sample[:columns]] for sample in slices[: max(1, room // columns)]])


def overview(latents: Floats) -> NDArray[np.uint8]:
    """Samples as rows, their middle slices as columns: in each plane those of the first channels."""
    scale = limits(latents)
    return tiled(_rows(latents, scale))


def compared(real: Floats, generated: Floats) -> NDArray[np.uint8]:
    """Axial middle slices, real above generated, on one grey scale: samples as columns, channels as rows."""
    scale = limits(real, generated)
    bands = [_channel_rows(real, scale), _channel_rows(generated, scale)]
    height = max(_GAP * 2, _pixels(bands[0][0][0]) // 4)
    width = max(len(row) for band in bands for row in band)
    blank = [np.full((height, 1), _WHITE, np.uint8)] * width
    return tiled([*bands[0], blank, *bands[1]])


def grey(tile: Floats, scale: Limits) -> NDArray[np.uint8]:
    """A slice as grey values, enlarged so that its shorter side has 32 pixels or more as long as the longer one has no
    more than 256; what is not finite is black."""
    stride = -(-max(tile.shape) // TILE_PIXELS_MAX)
    tile = tile[::stride, ::stride]
    share = (np.nan_to_num(tile, nan=scale.low) - scale.low) / (scale.high - scale.low)
    values = np.rint(np.clip(share, 0.0, 1.0) * 255).astype(np.uint8)
    factor = max(1, min(-(-TILE_PIXELS // min(tile.shape)), TILE_PIXELS_MAX // max(tile.shape)))
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def tiled(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Tiles side by side on white, two pixels apart; a row is as high as its highest tile, a column as wide as its
    widest."""
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    columns = max(len(row) for row in rows)
    widths = [max(row[column].shape[1] for row in rows if column < len(row)) for column in range(columns)]
    page = np.full((sum(heights) + _GAP * (len(rows) + 1), sum(widths) + _GAP * (columns + 1)), _WHITE, np.uint8)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for tile, width in zip(row, widths, strict=False):
            page[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
            left += width + _GAP
        top += height + _GAP
    return page


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture (rows, columns) of grey values as PNG."""
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _rows(latents: Floats, scale: Limits) -> list[list[NDArray[np.uint8]]]:
    slices = [middle(latents, plane)[:SAMPLES_SHOWN, :CHANNELS_SHOWN] for plane in planes(latents)]
    return [[grey(tile, scale) for in_plane in slices for tile in in_plane[sample]] for sample in range(len(slices[0]))]


def _channel_rows(latents: Floats, scale: Limits) -> list[list[NDArray[np.uint8]]]:
    slices = middle(latents, PLANES[0])[:SAMPLES_SHOWN, :CHANNELS_SHOWN]
    return [[grey(tile, scale) for tile in of_channel] for of_channel in np.moveaxis(slices, 1, 0)]


def _pixels(tile: NDArray[np.uint8]) -> int:
    return tile.shape[0]
