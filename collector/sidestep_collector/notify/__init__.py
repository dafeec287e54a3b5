"""Notify: who is told of findings, once they are stored.

`notifier` says each on the log and hands it to the webhook, where one is set; `webhook` posts it from a thread of its
own. The room never makes anybody wait: what cannot be delivered is counted and dropped.
"""

from __future__ import annotations

from sidestep_collector.notify.notifier import Notifier, message

__all__ = ["Notifier", "message"]
