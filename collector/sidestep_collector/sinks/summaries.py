"""Events other than blocks of scalars, each a function from data to the bytes of one record."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from sidestep_collector.blocks import Finding, Histogram, Image, Moment, Text
from sidestep_collector.profiles import Declared
from sidestep_collector.sinks.protos import protos
from sidestep_collector.sinks.records import frame

NS_PER_SECOND: Final = 1e9

# Numbers of enumerations in tensorflow/core/framework/{types,summary}.proto.
_DT_FLOAT: Final = 1
_DT_STRING: Final = 7
_CLASS_TENSOR: Final = 2

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
#: PNG colour type to channels, which is what `colorspace` of an image summary means.
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


def step_of(at: Moment) -> int:
    """The step of a record; its seq where it has none."""
    return at.seq if at.step == -1 else at.step


def file_version(wall_time: float) -> bytes:
    """The record that a file begins with."""
    return frame(protos().Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())


def event(wall_time: float, step: int, values: Iterable[Any]) -> bytes:
    """A record with summary values."""
    summary = protos().Summary(value=values)
    return frame(protos().Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())


def scalar(tag: str, value: float, described: Declared | None = None) -> Any:
    """A scalar; with `described`, what is declared of the tag is said, which a viewer needs once."""
    if described is None:
        return protos().Summary.Value(tag=tag, simple_value=value)
    metadata = protos().SummaryMetadata(summary_description=_description(described))
    return protos().Summary.Value(tag=tag, simple_value=value, metadata=metadata)


def _description(declared: Declared) -> str:
    metric, judged = declared.metric, declared.judged
    said = [metric.meaning, f"Unit: {metric.unit}." if metric.unit else ""]
    if judged is not None:
        said += [
            f"Target: {judged.target.text}." if judged.target else "",
            f"Worry: {judged.worry}." if judged.worry else "",
        ]
    return " ".join(part for part in said if part)


def image(item: Image) -> Any | None:
    """An image; None where it is no PNG."""
    if len(item.png) < 26 or not item.png.startswith(_PNG_SIGNATURE):
        return None
    # Signature (8), length and type of the first chunk (8), then its width, height, bit depth, colour type.
    width, height, _, colour = struct.unpack_from(">IIBB", item.png, 16)
    picture = protos().Summary.Image(
        height=height, width=width, colorspace=_PNG_CHANNELS.get(colour, 3), encoded_image_string=item.png
    )
    return protos().Summary.Value(tag=item.name, image=picture)


def histogram(item: Histogram) -> Any | None:
    """A histogram; None where edges and counts do not belong together or are no numbers.

    Sums are those of the middles of the buckets. Empty buckets at both ends are left out: a reader takes
    `min` as the left edge of the first bucket that is not empty. A bucket without an end is drawn as one
    without width, at its finite edge.
    """
    edges, counts = item.edges, item.counts
    finite = edges[np.isfinite(edges)]
    if len(edges) != len(counts) + 1 or not finite.size or np.isnan(edges).any() or not np.isfinite(counts).all():
        return None
    edges = np.clip(edges, finite.min(), finite.max())
    filled = np.flatnonzero(counts > 0)
    first, end = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)
    edges, counts = edges[first : end + 1], counts[first:end]
    middles = edges[:-1] / 2 + edges[1:] / 2
    with np.errstate(over="ignore", invalid="ignore"):
        sums = float((counts * middles).sum()), float((counts * middles**2).sum())
    figure = protos().HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=float(counts.sum()),
        sum=sums[0],
        sum_squares=sums[1],
        bucket_limit=edges[1:].tolist(),
        bucket=counts.tolist(),
    )
    return protos().Summary.Value(tag=item.name, histo=figure)


def text(item: Text) -> Any:
    """A text; JSON is shown as a block of code, indented."""
    shown = item.text
    if item.what in {"config", "tags", "summary"}:
        try:
            shown = f"```json\n{msgspec.json.format(item.text, indent=2)}\n```"
        except msgspec.DecodeError:
            shown = item.text
    return with_metadata(item.name or item.what, "text", b"", strings([shown], [1]))


def finding(found: Finding) -> Any:
    """A finding as text, in Markdown: what it is, since when, and what to do."""
    advice = "".join(f"\n- {one}" for one in found.advice)
    said = (
        f"**{found.severity}, {found.state}**: {found.message}\n\n"
        f"`{found.metric}` from step {found.first_step}, {found.count} times; last {found.value:.6g}\n{advice}"
    )
    return with_metadata(f"findings/{found.rule}", "text", b"", strings([said], [1]))


def strings(values: Sequence[str | bytes], shape: Sequence[int]) -> Any:
    """A tensor of strings."""
    tensor = protos().TensorProto(dtype=_DT_STRING)
    tensor.string_val.extend(value.encode("utf-8", "replace") if isinstance(value, str) else value for value in values)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def nothing() -> Any:
    """An empty tensor, for a value whose metadata says everything."""
    tensor = protos().TensorProto(dtype=_DT_FLOAT)
    tensor.tensor_shape.dim.add(size=0)
    return tensor


def with_metadata(tag: str, plugin: str, content: bytes, tensor: Any) -> Any:
    """A tensor for a plugin of TensorBoard. Empty `content` is version 0 of what a plugin has there."""
    metadata = protos().SummaryMetadata(data_class=_CLASS_TENSOR)
    metadata.plugin_data.plugin_name = plugin
    metadata.plugin_data.content = content
    return protos().Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
