"""What `Run.finish` returns and `Run.config` holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from sidestep.journal import Journal
from sidestep.push import Pusher

logger = logging.getLogger("sidestep")


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What became of the records of this process.

    Attributes:
        sent: records that were logged, those that were lost included.
        committed: records that the collector has stored.
        pending: records that wait in the journal; `sidestep sync` ships them.
        lost: records that nobody can deliver any more.
        reasons: lost records by reason.
        refused: values or calls that were not recorded, by reason.
        journal: folder where pending records lie; None where none do.
        seconds: how long `finish` took.
        refusal: why the collector takes nothing of this process; empty where it does.
    """

    sent: int
    committed: int
    pending: int
    lost: int
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])
    refused: Mapping[str, int] = field(default_factory=dict[str, int])
    journal: str | None = None
    seconds: float = 0.0
    refusal: str = ""

    @property
    def complete(self) -> bool:
        """Whether everything that was logged is stored."""
        return self.pending == 0 and self.lost == 0

    def __str__(self) -> str:
        text = f"sent {self.sent:,}, committed {self.committed:,}, lost {self.lost:,}"
        if self.pending:
            text += f", {self.pending:,} wait in {self.journal}: `sidestep up` or `sidestep sync` delivers them"
        if self.refusal:
            text += f"; {self.refusal}"
        if self.reasons:
            text += f" ({', '.join(f'{count:,}: {reason}' for reason, count in self.reasons.items())})"
        return text


def deliver(
    journal: Journal, pusher: Pusher, timeout: float, started: float, refused: Mapping[str, int]
) -> DeliveryReport:
    """Wait until a journal is stored, at most until `timeout` seconds after `started`, and let go of it.

    Args:
        journal: takes no more records from here on.
        pusher: ships it; its thread ends here.
        timeout: seconds.
        started: monotonic time from which they count.
        refused: what was not recorded, by kind.
    """
    delivered = pusher.wait(journal.end(), timeout)
    if pusher.stop(max(0.2, timeout - (time.monotonic() - started))):
        journal.close(delivered=delivered, timeout=max(0.2, timeout - (time.monotonic() - started)))
    fate = journal.fate(pusher.delivery.committed)
    report = DeliveryReport(
        *fate[:3],
        lost=sum(fate.lost.values()),
        reasons=fate.lost,
        refused=dict(refused),
        journal=str(journal.folder) if fate.pending else None,
        seconds=time.monotonic() - started,
        refusal=pusher.delivery.refused,
    )
    if report.lost:
        logger.warning("records of this run are lost: %s", report)
    return report


class LoggedConfig(dict[str, Any]):
    """A dict whose changes are recorded.

    Args:
        initial: first content, not recorded here.
        record: called with the whole content after a change.
    """

    def __init__(self, initial: Mapping[str, Any], record: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__(initial)
        self._record = record

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._record(self)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._record(self)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Change several entries and record them once."""
        super().update(*args, **kwargs)
        self._record(self)

    def __ior__(self, other: Any) -> Self:  # type: ignore[override]
        self.update(other)
        return self

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The entry; where there is none, `default` from now on."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, *args: Any) -> Any:
        """Take an entry away."""
        value = super().pop(*args)
        self._record(self)
        return value

    def popitem(self) -> tuple[str, Any]:
        """Take the last entry away."""
        item = super().popitem()
        self._record(self)
        return item

    def clear(self) -> None:
        """Take all entries away."""
        super().clear()
        self._record(self)
