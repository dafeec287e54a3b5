"""The collector's figures for Prometheus: a scrape turns the document of `sidestep status` into samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

_PREFIX: Final = "sidestep_"
#: Of `telemetry.Counters` the name here without `_total`, and what it counts; others go by their own name.
COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "frames": ("chunks", "chunks received, those refused included"),
    "bytes": ("received_bytes", "bytes received"),
    "records": ("records", "records taken"),
    "scalars": ("rows", "values taken, each a row"),
    "rejected_frames": ("rejected_chunks", "chunks that were none of ours, put aside"),
    "refused_versions": ("refused_versions", "chunks of a newer wire version, refused"),
    "undecodable_records": ("undecodable_records", "records that could not be decoded, declared lost"),
    "duplicate_records": ("duplicate_records", "records that came again and were left out"),
    "lost_records": ("lost_records", "records that nobody can deliver any more"),
    "rewinds_asked": ("rewinds_asked", "times that a stream was asked to send again"),
    "heartbeats": ("heartbeats", "signs of life of trainers that had nothing to send"),
    "commits": ("commits", "commits of the store"),
    "failed_commits": ("failed_commits", "commits that failed and are tried again"),
    "sink_failures": ("sink_failures", "TensorBoard files or documents that could not be written"),
    "derived_scalars": ("derived_rows", "values that were derived here"),
    "analyser_failures": ("analyser_failures", "analysers that failed"),
}
_STREAM: Final = ("project", "run", "rank", "attempt")


class Figures(Collector):
    """Samples of a collector.

    Args:
        status: gives the document.
    """

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """All families, as they are now."""
        document = self._status()
        yield InfoMetricFamily(f"{_PREFIX}build", "version of the collector", {"version": str(document["version"])})
        for field, count in document["counters"].items():
            name, meaning = COUNTERS.get(field, (field, field.replace("_", " ")))
            yield CounterMetricFamily(_PREFIX + name, meaning, count)
        yield _gauge("ready", "1 where what is received gets stored", 0.0 if document["not_ready"] else 1.0)
        yield _gauge("pending_bytes", "bytes received and not committed", document["pending_bytes"])
        yield _gauge("journal_bytes", "bytes of journals on this host", document["journal_bytes"])
        yield _gauge("disk_free_bytes", "bytes left on the disk of the data folder", document["disk_free_bytes"])
        yield from _commit_times(document["commit"])
        yield from _streams([stream for stream in document["streams"] if not stream["ended"]])


def _gauge(name: str, meaning: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(_PREFIX + name, meaning)
    if value is not None:
        family.add_metric([], value)
    return family


def _commit_times(times: Mapping[str, float | None]) -> Iterator[Metric]:
    family = GaugeMetricFamily(f"{_PREFIX}commit_seconds", "time of the last commits", labels=["quantile"])
    for quantile, name in (("0.5", "p50_ms"), ("0.99", "p99_ms")):
        milliseconds = times[name]
        if milliseconds is not None:
            family.add_metric([quantile], milliseconds / 1e3)
    yield family


def _streams(streams: list[Mapping[str, Any]]) -> Iterator[Metric]:
    """Of streams that go on alone: what ended would be a series for ever."""
    count = GaugeMetricFamily(f"{_PREFIX}streams", "streams that have not ended, by how they stand", labels=["state"])
    for state, number in sorted(Counter(stream["state"] for stream in streams).items()):
        count.add_metric([state], number)
    yield count
    for name, meaning, field in (
        ("stream_lag_records", "records received and not committed", "lag"),
        ("stream_lost_records", "records of the stream that were declared lost", "lost"),
        ("stream_seen_seconds", "seconds since the stream was last heard of", "seen_seconds_ago"),
    ):
        family = GaugeMetricFamily(_PREFIX + name, meaning, labels=_STREAM)
        for stream in streams:
            family.add_metric([str(stream[label]) for label in _STREAM], stream[field])
        yield family
