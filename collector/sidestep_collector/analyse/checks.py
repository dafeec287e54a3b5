"""What is given is looked at before it goes on: a row that the store refuses would be refused for ever, and all that
comes after it would wait."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from sidestep_collector.analyse.protocol import Analyser, Values, matcher
from sidestep_collector.blocks import Event, Histogram, Image, Stream, Text


class Checks:
    """Checks what one analyser gives."""

    def __init__(self, analyser: Analyser) -> None:
        self._gives: re.Pattern[str] | None = matcher(analyser.gives)
        self._seen: set[tuple[str, ...]] = set()

    def check(self, given: object, stream: Stream) -> None:
        """See that something can be stored.

        Raises:
            TypeError, ValueError: it cannot, or its tag is not among those that the analyser declares.
        """
        if isinstance(given, Values):
            self._values(given)
        elif isinstance(given, (Histogram, Image, Text, Event)):
            if given.at.stream != stream:
                raise ValueError("an item of another stream")
            _item(given)
        else:
            raise TypeError(f"{type(given).__name__} is none of Values, Histogram, Image, Text, Event")

    def _values(self, given: Values) -> None:
        tags: tuple[Any, ...] = given.tags
        if tags not in self._seen:
            for tag in tags:
                if not isinstance(tag, str) or self._gives is None or not self._gives.fullmatch(tag):
                    raise ValueError(f"{tag!r} is not among the tags that it says it gives")
            if not tags or len(set(tags)) < len(tags):
                raise ValueError(f"tags {tags}: one at least, each once")
            self._seen.add(tags)
        rows = len(given.seq)
        for name, kind in (("seq", "i"), ("t_ns", "i"), ("step", "i"), ("epoch", "f")):
            column = getattr(given, name)
            if column.shape != (rows,) or column.dtype.kind != kind:
                raise ValueError(f"{name} is {column.dtype} of shape {column.shape}, not one number for {rows} rows")
        if given.values.shape != (rows, len(given.tags)) or given.values.dtype.kind not in "fiub":
            raise ValueError(f"values of shape {given.values.shape} for {rows} rows and {len(given.tags)} tags")
        if rows > 1 and (np.diff(given.seq) <= 0).any():
            raise ValueError("seq does not ascend")


def _item(given: Histogram | Image | Text | Event) -> None:
    if isinstance(given, Histogram):
        edges, counts = np.asarray(given.edges), np.asarray(given.counts)
        if edges.dtype.kind != "f" or counts.dtype.kind != "f" or edges.shape != (counts.size + 1,) or counts.ndim != 1:
            raise ValueError(f"a histogram with edges of shape {edges.shape} and counts of shape {counts.shape}")
        words: tuple[Any, ...] = (given.name,)
    elif isinstance(given, Image):
        if not isinstance(given.png, bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's
            raise TypeError("an image is PNG as bytes")
        words = (given.name,)
    elif isinstance(given, Text):
        words = given.what, given.name, given.text
    else:
        words = (given.event,)
        if not isinstance(given.details, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's
            raise TypeError("details of an event are a mapping")
        msgspec.json.encode(given.details)
    if not all(isinstance(word, str) for word in words):
        raise TypeError(f"names and texts are str: {words}")
