"""`Run.epoch`: as a call, a context, or an iterator over epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self


class EpochMark:
    """What `Run.epoch` returns: it has begun (for a number), or begins each epoch in turn (for an iterable).

    Args:
        epochs: the number, or the numbers to go through.
        begin, end: called with an epoch.
    """

    def __init__(
        self, epochs: float | Iterable[float], begin: Callable[[float], None], end: Callable[[float], None]
    ) -> None:
        self._epochs: Any = epochs
        self._begin = begin
        self._end = end
        # One epoch is a number of Python, numpy or torch; a tensor of no dimension calls itself iterable.
        self._is_one = not isinstance(epochs, Iterable) or getattr(epochs, "ndim", 1) == 0
        if self._is_one:
            begin(self._epochs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_one:
            self._end(self._epochs)

    def __iter__(self) -> Iterator[float]:
        if self._is_one:
            raise TypeError(f"epoch({self._epochs}) is one epoch; to go through several write epoch(range(1, 11))")
        for epoch in self._epochs:
            self._begin(epoch)
            yield epoch
            self._end(epoch)
