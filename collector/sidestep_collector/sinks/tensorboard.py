"""The sink that writes TensorBoard event files: one sub-run for each attempt and rank.

    <run>/tensorboard/attempt_0/events.out.tfevents.0.sidestep            rank 0
    <run>/tensorboard/attempt_0_rank_1/events.out.tfevents.0.sidestep     other ranks

A stream's file keeps its name for good, so a collector that starts again goes on in it, from the length
that was committed with the store. Rank 0 also carries what belongs to the run: settings, aggregates of
epochs (`epoch/<tag>`), findings (`findings/<rule>`) and the layout of charts. Tensors stay in the store alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from sidestep_collector.blocks import (
    Batch,
    EpochSummary,
    Event,
    Finding,
    Histogram,
    Image,
    Item,
    ScalarBlock,
    Stream,
    Text,
)
from sidestep_collector.profiles import Choices, Profile, Vocabulary
from sidestep_collector.sinks import chart_layout, hparams, summaries
from sidestep_collector.sinks.event_file import Chunk, EventFiles
from sidestep_collector.sinks.protos import protos
from sidestep_collector.sinks.scalar_template import ScalarTemplate, templates
from sidestep_collector.sinks.summaries import NS_PER_SECOND
from sidestep_schemas import layout

#: TensorBoard takes files whose name has "tfevents"; others read a time behind it, hence the 0.
FILE_NAME: Final = "events.out.tfevents.0.sidestep"
_FOLDER: Final = "tensorboard"
_ATTEMPT: Final = re.compile(r"attempt_(\d+)")
#: How much of an existing file is read to learn its groups of tags.
_LEADING_BYTES: Final = 1 << 18


@dataclass(slots=True)
class _Work:
    """What a batch has for one file."""

    run: str
    rank: int
    blocks: list[ScalarBlock] = field(default_factory=list[ScalarBlock])
    items: list[Item] = field(default_factory=list[Item])
    summaries: list[EpochSummary] = field(default_factory=list[EpochSummary])
    findings: list[Finding] = field(default_factory=list[Finding])

    def wall_time(self) -> float:
        """When its first record was taken."""
        times = [int(block.t_ns[0]) for block in self.blocks if len(block.t_ns)]
        times += [item.at.t_ns for item in self.items] + [finding.last_t_ns for finding in self.findings]
        return min(times or [summary.last_t_ns for summary in self.summaries], default=0) / NS_PER_SECOND

    def ended(self) -> bool:
        """Whether the stream says that it ends."""
        return any(isinstance(item, Event) and item.event == "end" for item in self.items)


@dataclass(slots=True)
class _State:
    """What is known of a file: by which profiles its run goes, its groups of tags and charts, how many of both the
    last layout had, what was described."""

    profiles: tuple[Profile, ...]
    vocabulary: Vocabulary
    charts_of: chart_layout.Charts
    groups: dict[str, None] = field(default_factory=dict[str, None])
    charts: dict[tuple[str, str], None] = field(default_factory=dict[tuple[str, str], None])
    laid_out: int = 0
    described: set[int] = field(default_factory=set[int])
    configured: bool = False

    def saw(self, tags: Collection[str]) -> None:
        """Take note of tags that were not there before."""
        self.groups.update(dict.fromkeys(chart_layout.groups_of(tags)))
        self.charts.update(dict.fromkeys(self.charts_of.of(tags)))

    def size(self) -> int:
        """Charts that a layout would have now."""
        return len(self.groups) + len(self.charts)


class TensorBoardSink:
    """Writes batches as event files.

    Args:
        root: the data folder.
        files: lengths of event files as committed with the store: path relative to `root` -> bytes.
        choices: by which profile a run goes; default by the common one.
    """

    def __init__(self, root: Path, files: Mapping[str, int], choices: Choices | None = None) -> None:
        self._choices = choices or Choices()
        self._files = EventFiles(root, files)
        self._known = tuple(files)
        self._states: dict[str, _State] = {}
        self._attempts: dict[tuple[str, str], int] = {}

    def write(self, batch: Batch) -> dict[str, int]:
        """Appends everything of a batch that TensorBoard shows, as far as the operating system.

        Returns:
            The lengths to commit: path relative to the root -> bytes, for each file that grew.

        Raises:
            OSError: a file cannot be written; `discard` takes the batch back.
        """
        self._files.begin()
        for path, work in self._by_file(batch).items():
            self._write_file(path, work)
        return self._files.finish()

    def discard(self) -> None:
        """Takes the last batch back: it could not be committed.

        Raises:
            OSError: a file cannot be cut back; call again.
        """
        for path in self._files.touched():
            self._states.pop(path, None)
        self._files.discard()

    def close(self) -> None:
        """Closes all files."""
        self._files.close()

    def _by_file(self, batch: Batch) -> dict[str, _Work]:
        found: dict[str, _Work] = {}
        for block in batch.blocks:
            self._work(found, block.stream).blocks.append(block)
        for item in batch.items:
            if _is_shown(item):
                self._work(found, item.at.stream).items.append(item)
        for summary in batch.summaries:
            path = _path(summary.project, summary.run, self._attempt(summary), 0)
            found.setdefault(path, _Work(summary.run, 0)).summaries.append(summary)
        for finding in batch.findings:
            if finding.news:
                path = _path(finding.project, finding.run, self._attempt(finding), 0)
                found.setdefault(path, _Work(finding.run, 0)).findings.append(finding)
        return found

    def _work(self, found: dict[str, _Work], stream: Stream) -> _Work:
        if stream.rank == 0:
            run = stream.project, stream.run
            self._attempts[run] = max(stream.attempt, self._attempts.get(run, 0))
        return found.setdefault(
            _path(stream.project, stream.run, stream.attempt, stream.rank), _Work(stream.run, stream.rank)
        )

    def _attempt(self, summary: EpochSummary | Finding) -> int:
        """The latest attempt of rank 0, from the files where it has not spoken since this sink began."""
        run = summary.project, summary.run
        if run not in self._attempts:
            folder = Path(_path(*run, 0, 0)).parent.parent
            names = (Path(path).parent.name for path in self._known if Path(path).parent.parent == folder)
            self._attempts[run] = max((int(match[1]) for match in map(_ATTEMPT.fullmatch, names) if match), default=0)
        return self._attempts[run]

    def _write_file(self, path: str, work: _Work) -> None:
        is_new = self._files.length(path) == 0
        state = self._states.get(path)
        if state is None or is_new:
            state = self._states[path] = self._read_state(path, work.run)
        if is_new:
            self._files.append(path, [summaries.file_version(work.wall_time())])
        self._files.append(path, _chunks(work, state))
        if work.ended():
            del self._states[path]

    def _read_state(self, path: str, run: str) -> _State:
        choice = self._choices.of(run)
        charts = chart_layout.Charts(choice.profiles, choice.vocabulary)
        state = _State(choice.profiles, choice.vocabulary, charts)
        tags: dict[str, None] = {}
        for data in self._files.leading(path, _LEADING_BYTES):
            values = protos().Event.FromString(data).summary.value
            tags.update((value.tag, None) for value in values if value.HasField("simple_value"))
        state.saw(tags)
        state.laid_out = state.size()
        return state


def _is_shown(item: Item) -> bool:
    return isinstance(item, Image | Histogram | Text) or (isinstance(item, Event) and item.event in {"start", "end"})


@lru_cache(maxsize=4096)
def _path(project: str, run: str, attempt: int, rank: int) -> str:
    folder = f"attempt_{attempt}" if rank == 0 else f"attempt_{attempt}_rank_{rank}"
    return (layout.run_dir(Path(), project, run) / _FOLDER / folder / FILE_NAME).as_posix()


@lru_cache(maxsize=1024)
def _plan(names: tuple[str, ...]) -> list[tuple[slice, ScalarTemplate]]:
    return templates(names)


def _chunks(work: _Work, state: _State) -> Iterator[Chunk]:
    for block in work.blocks:
        yield from _block(block, state)
    for item in work.items:
        values = [value for value in _values(item, work.rank, state) if value is not None]
        if values:
            yield summaries.event(item.at.t_ns / NS_PER_SECOND, summaries.step_of(item.at), values)
    for summary in work.summaries:
        yield from _epoch(summary, state)
    for finding in work.findings:
        wall_time, step = finding.last_t_ns / NS_PER_SECOND, max(finding.last_step, 0)
        yield summaries.event(wall_time, step, [summaries.finding(finding)])
    size = state.size()
    is_due = size >= max(1, 2 * state.laid_out) or (work.ended() and size > state.laid_out)
    if work.rank == 0 and is_due:
        state.laid_out = size
        yield summaries.event(work.wall_time(), 0, [chart_layout.layout(state.profiles, state.charts, state.groups)])


def _block(block: ScalarBlock, state: _State) -> Iterator[Chunk]:
    if not len(block.seq):
        return
    names = block.key_set.names
    parts = _plan(names)
    step = np.where(block.step == -1, block.seq, block.step)
    wall_time = block.t_ns / NS_PER_SECOND
    start = 0
    if block.key_set.id not in state.described:
        # The first record says what its tags mean; all others come from the template.
        state.described.add(block.key_set.id)
        state.saw(names)
        first = block.values[0].astype(np.float32).tolist()
        values = [_described(name, value, state) for name, value in zip(names, first, strict=True)]
        yield summaries.event(float(wall_time[0]), int(step[0]), values)
        start = 1
    for columns, template in parts:
        filled = template.fill(wall_time[start:], step[start:], block.values[start:, columns])
        yield from (rows.data for rows in filled)


def _described(tag: str, value: float, state: _State) -> Any:
    match = state.vocabulary.find(tag)
    return summaries.scalar(tag, value, None if match is None else match.declared)


def _values(item: Item, rank: int, state: _State) -> Iterator[Any]:
    if isinstance(item, Image):
        yield summaries.image(item)
    elif isinstance(item, Histogram):
        yield summaries.histogram(item)
    elif isinstance(item, Text):
        yield summaries.text(item)
        if item.what == "config" and rank == 0:
            yield _session_start(item, hparams.parsed(item.text), state)
    elif isinstance(item, Event) and rank == 0:
        yield _lifecycle(item, state)


def _lifecycle(item: Event, state: _State) -> Any | None:
    if item.event == "end":
        return hparams.session_end(item.details.get("status"), item.at.t_ns / NS_PER_SECOND)
    config = item.details.get("config")
    if isinstance(config, str):
        config = hparams.parsed(config)
    return _session_start(item, config, state)


def _session_start(item: Text | Event, config: Any, state: _State) -> Any | None:
    # A viewer takes the first one of a session, so an empty one would hide what comes later.
    if state.configured or not isinstance(config, Mapping) or not config:
        return None
    state.configured = True
    return hparams.session_start(item.at.stream.run, config, item.at.t_ns / NS_PER_SECOND)


def _epoch(summary: EpochSummary, state: _State) -> Iterator[Chunk]:
    """What follows from an epoch: at its last step the metrics that nobody logged, and by epoch its means."""
    derived = _means(summary, lambda tag, _: tag in summary.derived)
    means = _means(summary, lambda tag, n: n > 1 and tag not in summary.derived)
    epoch_means = {f"epoch/{tag}": mean for tag, mean in means.items()}
    for step, tags in ((summary.global_step, derived), (summary.epoch, epoch_means)):
        if tags:
            state.saw(tags)
            values = [summaries.scalar(tag, mean) for tag, mean in tags.items()]
            yield summaries.event(summary.last_t_ns / NS_PER_SECOND, max(step, 0), values)


def _means(summary: EpochSummary, wanted: Callable[[str, float], bool]) -> dict[str, float]:
    return {
        tag: float(mean)
        for tag, statistics in summary.statistics.items()
        if (mean := statistics.get("mean")) is not None and wanted(tag, statistics.get("n") or 0)
    }
