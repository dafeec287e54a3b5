"""From what a script hands in to plain values: detached, on the CPU, without waiting for a device.

Knows arrays and tensors by what they can do, so neither numpy nor torch is imported: where an object of theirs
comes in, they are loaded already.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

#: Copies from a device that may be under way at once: those of three samples by some twenty probes. A further one is
#: skipped and counted.
DEVICE_SLOTS: Final = 64
NAME_BYTES_MAX: Final = 1024


class RawTensor(NamedTuple):
    """Elements of a tensor, row-major and little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class DeviceMailbox:
    """Carries numbers from a device to the CPU without the training thread ever waiting for it.

    A copy goes to pinned memory on a side stream, behind the work it reads from; a later call finds its event
    done and delivers it. Used from the training thread alone.

    Attributes:
        skipped: copies that found no free slot, or fell into a graph capture.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._pending: deque[tuple[Any, Any, Callable[[Any], None]]] = deque()
        self._streams: dict[Any, Any] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether a copy is under way or has arrived."""
        return bool(self._pending)

    def post(self, tensor: Any, deliver: Callable[[Any], None]) -> None:
        """Copy a device tensor; `deliver(host tensor)` is called by a later `collect`."""
        torch: Any = sys.modules["torch"]
        if len(self._pending) >= DEVICE_SLOTS or torch.cuda.is_current_stream_capturing():
            self.skipped += 1
            return
        device = tensor.device
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)
            event = torch.cuda.Event()
            event.record(stream)
        self._pending.append((event, host, deliver))

    def collect(self, *, wait: bool = False) -> None:
        """Deliver what has arrived; with `wait`, everything (said only when training is over)."""
        while self._pending and (wait or self._pending[0][0].query()):
            event, host, deliver = self._pending.popleft()
            if wait:
                event.synchronize()
            deliver(host)


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor."""
    return hasattr(value, "detach") and hasattr(value, "device") and hasattr(value, "numel")


def is_on_device(value: Any) -> bool:
    """Whether reading its numbers would wait for a device."""
    return is_tensor(value) and value.device.type != "cpu"


def scalar(value: Any) -> float:
    """A number as a float: Python's, numpy's, or a tensor of one element on the CPU.

    Raises:
        TypeError: it is no number.
        OverflowError: an integer beyond the range of float64.
    """
    if isinstance(value, int | float):
        return float(value)
    if is_tensor(value) or hasattr(value, "item"):
        item = value.detach().item() if is_tensor(value) else value.item()
        if isinstance(item, int | float):
            return float(item)
    elif hasattr(value, "__float__") and not isinstance(value, str | bytes):
        return float(value)
    raise TypeError(f"{type(value).__name__} is no real number")


def sort_out(
    mapping: Mapping[Any, Any], is_name: Callable[[Any], bool], complain: Callable[[str, str, str], None]
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
    """What of a mapping can be recorded, and how: plain numbers, numbers on a device, arrays.

    Args:
        mapping: names to values.
        is_name: whether a key can name a value.
        complain: told kind, subject and message of each entry that is left out.
    """
    plain: dict[str, float] = {}
    device: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for name, value in mapping.items():
        if not is_name(name):
            what = f"{name!r:.80} is no name: names are text of 1 to {NAME_BYTES_MAX} bytes; its value is left out"
            complain("name", repr(name)[:80], what)
        elif is_on_device(value) and value.numel() == 1:
            device[name] = value.detach().reshape(())
        elif dimensions(value) > 0 and element_count(value) != 1:
            arrays[name] = value
        else:
            try:
                plain[name] = scalar(value)
            except (TypeError, ValueError, OverflowError, RuntimeError) as error:
                complain("value", name, f"{name!r} is no number and is left out: {error}")
    return plain, device, arrays


def element_count(value: Any) -> int:
    """Number of elements of an array or tensor; 1 for anything else."""
    if is_tensor(value):
        return int(value.numel())
    size = getattr(value, "size", 1)
    return size if isinstance(size, int) else 1


def dimensions(value: Any) -> int:
    """Number of dimensions of an array or tensor; 0 for anything else."""
    count = getattr(value, "ndim", 0)
    return count if isinstance(count, int) else 0


def raw_tensor(value: Any) -> RawTensor:
    """The elements of an array, or of a tensor on the CPU, bfloat16 included.

    Raises:
        TypeError, ValueError: it is none, or ragged.
    """
    if is_tensor(value):
        torch: Any = sys.modules["torch"]
        host = value.detach().to("cpu").contiguous()
        name = str(host.dtype).removeprefix("torch.")
        raw = host.reshape(-1).view(torch.uint8) if host.numel() else host.to(torch.uint8)
        return RawTensor(name, tuple(host.shape), raw.numpy().tobytes())
    import numpy as np  # noqa: PLC0415 - whoever has an array has numpy

    array = np.ascontiguousarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of {array.dtype} has no numbers that can be stored")
    return RawTensor(
        str(array.dtype), np.shape(value), array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    )


def histogram(values: Any, bins: int | Sequence[float]) -> tuple[bytes, bytes]:
    """Edges and counts (float64, little-endian) of the finite values.

    Raises:
        TypeError, ValueError: no numbers, or bins that make no histogram.
    """
    import numpy as np  # noqa: PLC0415 - needed by this call alone

    host = value_array(values)
    counts, edges = np.histogram(host[np.isfinite(host)], bins=bins)
    return edges.astype("<f8").tobytes(), counts.astype("<f8").tobytes()


def counted_histogram(counts: Any, edges: Any) -> tuple[bytes, bytes]:
    """Edges and counts of a histogram that was counted already.

    Raises:
        ValueError: `edges` must have one element more than `counts`.
    """
    host_counts, host_edges = value_array(counts), value_array(edges)
    if len(host_edges) != len(host_counts) + 1:
        raise ValueError(f"{len(host_counts)} counts need {len(host_counts) + 1} edges, not {len(host_edges)}")
    return host_edges.astype("<f8").tobytes(), host_counts.astype("<f8").tobytes()


def value_array(values: Any) -> Any:
    """Values as a flat float64 numpy array."""
    import numpy as np  # noqa: PLC0415 - needed by few calls

    if is_tensor(values):
        torch: Any = sys.modules["torch"]
        values = values.detach().to("cpu", torch.float64).numpy()
    return np.asarray(values, dtype=np.float64).ravel()


def png(image: Any) -> bytes:
    """An image as PNG.

    Args:
        image: PNG bytes; an object with `save` (Pillow); or an array or tensor of shape (H, W), (H, W, C) or
            (C, H, W) with C of 1, 3 or 4; uint8, or floats from 0 to 1.

    Raises:
        ValueError: a shape or type that is no image.
    """
    if isinstance(image, bytes):
        if not image.startswith(b"\x89PNG"):
            raise ValueError("these bytes are no PNG")
        return image
    if hasattr(image, "save") and hasattr(image, "convert"):
        import io  # noqa: PLC0415 - needed by few calls

        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue()
    return _encode_png(_pixels(image))


def jsonable(value: Any) -> Any:
    """A value that strict JSON can hold: what it cannot becomes text, numbers that are not finite included."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(entry) for entry in value]
    if (
        hasattr(value, "item")
        and not isinstance(value, float)
        and element_count(value) == 1
        and not is_on_device(value)
    ):
        return jsonable(value.item())
    if hasattr(value, "__dict__") and type(value).__module__ == "argparse":
        return jsonable(vars(value))
    return str(value)


def _pixels(image: Any) -> Any:
    import numpy as np  # noqa: PLC0415 - needed by few calls

    array = image.detach().to("cpu").numpy() if is_tensor(image) else np.asarray(image)
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(f"shape {tuple(array.shape)} is no image: (H, W), (H, W, C) or (C, H, W) with C of 1, 3, 4")
    if array.dtype.kind == "f":
        array = np.nan_to_num(np.clip(array, 0, 1)) * 255 + 0.5
    elif array.dtype.kind == "b":
        array = array * 255
    return np.ascontiguousarray(np.clip(array, 0, 255).astype(np.uint8))


def _encode_png(pixels: Any) -> bytes:
    # PNG (ISO/IEC 15948): signature, header, one deflated data chunk of unfiltered rows, end.
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + pixels[row].tobytes() for row in range(height))
    color = {1: 0, 3: 2, 4: 6}[channels]
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 1)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
