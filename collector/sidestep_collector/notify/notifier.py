"""Telling of findings: a line on the log each, and a message to the webhook."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import structlog

from sidestep_collector.blocks import Finding
from sidestep_collector.notify.webhook import Webhook
from sidestep_collector.profiles.spec import SEVERITIES, Severity

log: Any = structlog.get_logger()

_LOG: Final = {"info": "info", "warning": "warning", "critical": "error"}


class Notifier:
    """Tells of findings.

    Args:
        url: where messages are posted; "" for nowhere.
        least: severity from which on they are posted.
    """

    def __init__(self, url: str = "", least: Severity = "warning") -> None:
        self._webhook = Webhook(url) if url else None
        self._least = SEVERITIES.index(least)

    def tell(self, findings: Iterable[Finding]) -> None:
        """Tell of those that have news. Never waits."""
        for finding in findings:
            if not finding.news:
                continue
            level = "info" if finding.state == "resolved" else _LOG[finding.severity]
            where = {"run": f"{finding.project}/{finding.run}", "step": finding.first_step, "state": finding.state}
            getattr(log, level)(f"{finding.rule}: {finding.message}", **where)
            if self._webhook is not None and SEVERITIES.index(finding.severity) >= self._least:  # type: ignore[arg-type]
                self._webhook.post(message(finding))

    def as_dict(self) -> dict[str, int]:
        """What the webhook took, and what was dropped."""
        hook = self._webhook
        return {"sent": hook.sent if hook else 0, "dropped": hook.dropped if hook else 0}

    def close(self) -> None:
        """Deliver what waits, for a short while."""
        if self._webhook is not None:
            self._webhook.close()


def message(finding: Finding) -> dict[str, Any]:
    """A finding as JSON can hold it; `text` is a line for a chat."""
    return {
        "text": f"[{finding.severity}] {finding.project}/{finding.run}: {finding.rule}: {finding.message}",
        "news": finding.news,
        "project": finding.project,
        "run": finding.run,
        "finding": finding.finding,
        "rule": finding.rule,
        "profile": finding.profile,
        "subject": finding.subject,
        "metric": finding.metric,
        "rank": finding.rank,
        "severity": finding.severity,
        "state": finding.state,
        "first_step": finding.first_step,
        "last_step": finding.last_step,
        "count": finding.count,
        "value": _number(finding.value),
        "threshold": _number(finding.threshold),
        "message": finding.message,
        "advice": list(finding.advice),
    }


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
