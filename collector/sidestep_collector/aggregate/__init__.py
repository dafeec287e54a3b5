"""Aggregate: from records to what they say together, by epoch, by period, and now.

`moments` and `columns` are the arithmetic, `clock` knows which epochs of a stream are open, `epochs` makes the
rows to store and the summaries of epochs, `periodic` those of many epochs, `live` remembers the last values.
The room works on arrays in memory; it opens nothing and never averages a value that is not finite.
"""

from __future__ import annotations

from sidestep_collector.aggregate.epochs import EpochAggregator, RunHistory
from sidestep_collector.aggregate.live import Latest, Live
from sidestep_collector.aggregate.periodic import PeriodAggregator

__all__ = ["EpochAggregator", "Latest", "Live", "PeriodAggregator", "RunHistory"]
