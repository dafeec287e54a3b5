"""Rules: from numbers to findings, by the thresholds of the run's profile.

`ruleset` says which rule reads which tag, `judge` turns values into hits, `track` holds how long they lasted,
`past` is what they remember of epochs,
`incident` is the life of a finding, `stage` puts them together. The room works on arrays in memory; it opens nothing
and tells nobody: findings leave with the batch that their rows are stored with.
"""

from __future__ import annotations

from sidestep_collector.rules.stage import Rules

__all__ = ["Rules"]
