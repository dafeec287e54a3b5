"""From values to records of the journal: key sets are declared once, then referred to by number.

Knows the journal and the wire, not what the values mean or where they come from.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import count
from typing import Any, Final, NamedTuple

from sidestep.encode import packed
from sidestep.errors import UsageError
from sidestep.journal import Journal
from sidestep.records import KeySetLayout
from sidestep.snapshot import NAME_BYTES_MAX
from sidestep_schemas.wire import KIND_SCHEMA

#: Key sets that are remembered; a script that logs ever new names makes records of a new set each time.
_LAYOUTS_MAX: Final = 4096
_NAMES_MAX: Final = 10_000

#: When (nanoseconds), at which step and in which epoch a record was taken.
At = tuple[int, int, float]


class KeySetKey(NamedTuple):
    """What makes a key set: the split that names get, the cadence, the type of the values, and the names."""

    split: str | None
    tier: str
    dtype: int
    names: tuple[str, ...]


class Recorder:
    """Appends records to a journal; may be called by several threads.

    Args:
        journal: where they go; None records nothing.

    Attributes:
        layouts: key sets that were declared. A plain tuple of the same content finds them too.
    """

    def __init__(self, journal: Journal | None) -> None:
        self.layouts: dict[tuple[str | None, str, int, tuple[str, ...]], KeySetLayout] = {}
        self._journal = journal
        self._key_sets = count()  # one step for the interpreter: two threads never get the same number

    def scalars(self, at: At, key: KeySetKey, values: Iterable[float], reductions: tuple[str, ...] = ()) -> None:
        """Append a record of scalars, and the declaration of its key set before the first.

        Args:
            at: when it was taken.
            key: names its key set.
            values: one a name.
            reductions: how the values of several ranks become one, by name; the same for a key set each time.

        Raises:
            UsageError: the names make no key set.
            struct.error, TypeError, ValueError: a value is no number.
        """
        journal = self._journal
        if journal is None:
            return
        layout = self.layouts.get(key)
        if layout is None:
            layout = self._declare(journal, at, key, reductions)
        journal.append_scalars(*at, layout, values)

    def item(self, kind: int, at: At, *fields: Any) -> None:
        """Append a record of another kind."""
        if self._journal is not None:
            self._journal.append(lambda seq: packed(kind, seq, *at, *fields))

    def close(self) -> None:
        """Record nothing from here on."""
        self._journal = None

    def _declare(self, journal: Journal, at: At, key: KeySetKey, reductions: tuple[str, ...]) -> KeySetLayout:
        tags = tuple(tag_of(name, key.split) for name in key.names)
        if len(tags) > _NAMES_MAX:
            raise UsageError(f"{len(tags)} names in one call; at most {_NAMES_MAX} are recorded at once")
        if len(set(tags)) != len(tags):
            double = next(tag for tag in tags if tags.count(tag) > 1)
            raise UsageError(f"two names of one call give the same tag {double!r}")
        layout = KeySetLayout(next(self._key_sets), len(tags), key.dtype)
        now = (time.time_ns(), *at[1:])
        journal.append(lambda seq: packed(KIND_SCHEMA, seq, *now, layout.id, key.dtype, key.tier, tags, reductions))
        if len(self.layouts) >= _LAYOUTS_MAX:
            self.layouts.clear()
        self.layouts[key] = layout
        return layout


def is_name(name: Any, split: str | None) -> bool:
    """Whether it can name a value."""
    return (
        isinstance(name, str) and name != "" and len(tag_of(name, split).encode("utf-8", "replace")) <= NAME_BYTES_MAX
    )


def tag_of(name: str, split: str | None) -> str:
    """The tag of a name: the split goes before a name that has no `/`."""
    return name if split is None or "/" in name else f"{split}/{name}"
