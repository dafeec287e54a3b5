"""The report on a run, finished or not: what its curves say, what is wrong with it, what to change.

`curves` reads facts out of a run's epochs, `diagnosis` judges them, `document` puts a report together, and `text`,
`markdown` and `page` write it down.
"""

from __future__ import annotations

from sidestep_collector.query.report.document import Report, make_report

__all__ = ["Report", "make_report"]
