"""A stand-in for a collector: its two sockets in the test's own process, which says what the test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import zmq

from sidestep_schemas.layout import endpoints
from sidestep_schemas.wire import ACK_TOPIC, FRAME_GAP, WIRE_VERSION

PATIENCE_MS = 20_000


class StandIn:
    """Bound at an ipc address; one instance is one start of a collector."""

    def __init__(self, folder: Path, boot: bytes = b"boot-one", receive_high_water: int = 1000) -> None:
        self.address = f"ipc://{folder}/c"
        self.boot = boot
        points = endpoints(self.address)
        self._context: zmq.Context[Any] = zmq.Context()
        self._data = self._context.socket(zmq.PULL)
        self._data.set(zmq.RCVHWM, receive_high_water)
        self._data.bind(points.data)
        self._ack = self._context.socket(zmq.XPUB)
        self._ack.set(zmq.XPUB_VERBOSE, 1)
        self._ack.bind(points.ack)

    def subscription(self) -> bytes:
        """The topic that a trainer listens for, once it does."""
        assert self._ack.poll(PATIENCE_MS), "nobody subscribed"
        return self._ack.recv()

    def frame(self, patience_ms: int = PATIENCE_MS) -> list[Any] | None:
        """The next frame, decoded; None where none comes."""
        return msgpack.unpackb(self._data.recv()) if self._data.poll(patience_ms) else None

    def receive_until(self, seq: int) -> list[list[Any]]:
        """Frames up to the one that ends at `seq`."""
        frames: list[list[Any]] = []
        while not frames or frames[-1][6] + frames[-1][7] < seq:
            frame = self.frame()
            assert frame is not None, f"no frame up to {seq}"
            frames.append(frame)
        return frames

    def acknowledge(
        self, stream: bytes, watermark: int, received: int | None = None, *, rewind: bool = False, message: str = ""
    ) -> None:
        received = watermark if received is None else received
        self.publish(stream, msgpack.packb([WIRE_VERSION, self.boot, watermark, received, rewind, message]))

    def publish(self, stream: bytes, body: bytes) -> None:
        self._ack.send(ACK_TOPIC + stream + body)

    def close(self) -> None:
        self._context.destroy(linger=0)


def until(condition: Callable[[], Any], patience_ms: int = PATIENCE_MS) -> None:
    """Wait for a condition that no socket tells of."""
    pause = threading.Event()
    for _ in range(patience_ms // 5):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("waited in vain")


def seqs(frames: list[list[Any]]) -> list[int]:
    return [seq for frame in frames for seq in range(frame[6], frame[6] + frame[7])]


def gaps(frames: list[list[Any]]) -> list[tuple[int, int, str]]:
    return [(frame[6], frame[7], frame[8].decode()) for frame in frames if frame[1] == FRAME_GAP]
