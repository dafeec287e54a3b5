"""The path of the data through the collector. Read this first.

    receive ─▶ decode ─▶ analyse ─▶ aggregate ─▶ rules ─▶ sinks (TensorBoard, epoch documents, samples)
                                                                  └─▶ store (commit + watermark) ─▶ acknowledge, notify

Two threads carry it. The intake thread owns the sockets: it receives, decodes, aggregates, feeds who watches,
and at each flush analyses what is new, takes what follows from it the same way, and hands a batch over. The commit
thread writes the batch's files, then commits rows, file lengths and watermarks in one transaction; only then are
the streams acknowledged. A batch that cannot be committed (a full disk) is tried again until it can; meanwhile the
intake goes on up to a bound, and then stops reading, so that what is not stored stays in the trainers' journals.

This module alone knows the order of the stages.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from sidestep_collector.aggregate import EpochAggregator, Live, PeriodAggregator, RunHistory
from sidestep_collector.analyse import Analysis, load
from sidestep_collector.blocks import Batch, Event, Finding, Histogram, Item, KeySet, Progress, ScalarBlock, Stream
from sidestep_collector.commit import Committer
from sidestep_collector.config import Config
from sidestep_collector.decode import Decoder
from sidestep_collector.intake import Intake
from sidestep_collector.latents import LATENT_HISTOGRAM
from sidestep_collector.liveness import RUNNING, Vigil
from sidestep_collector.notify import Notifier, message
from sidestep_collector.profiles import Choices, SecondNames
from sidestep_collector.quarantine import Quarantine
from sidestep_collector.receive import Registry, Sockets
from sidestep_collector.rules import Rules
from sidestep_collector.sinks.epoch_json import EpochJsonSink
from sidestep_collector.sinks.epoch_lines import EpochLines
from sidestep_collector.sinks.hparams_file import HparamsFile
from sidestep_collector.sinks.samples import SampleSink
from sidestep_collector.sinks.tensorboard import TensorBoardSink
from sidestep_collector.store import Store
from sidestep_collector.store.past import read_past
from sidestep_collector.store.resume import RunTail, read_starts, read_tails
from sidestep_collector.telemetry import Counters
from sidestep_collector.wishes import Wishes

_IDLE_WAIT_SECONDS: Final = 0.1
#: A batch is closed at this size. Committing 64 MB at once took 1.2 GB of memory and was slower than four of 16 MB.
_BATCH_BYTES: Final = 16 << 20
#: Records of a block that the live feed carries at most; who wants all of them asks the store.
_FEED_RECORDS: Final = 50
_ENDED_RUNS_KEPT: Final = 32

Question = Callable[[dict[str, Any]], Any]


class Pipeline:
    """Everything between the sockets and the store.

    Args:
        root: data folder.
        config: settings.
        store: open store; closed by whoever opened it.
        sockets: bound sockets; likewise.
        answer: answers a question of the control socket.

    Raises:
        ConfigError: an analyser that the settings name cannot be loaded.
    """

    def __init__(self, root: Path, config: Config, store: Store, sockets: Sockets, answer: Question) -> None:
        self.counters = Counters()
        self.registry = Registry()
        self.live = Live()
        self._config = config
        self._store = store
        self._sockets = sockets
        self._answer = answer
        self._decoder = Decoder()
        self._intake = Intake(sockets, self.registry, self._decoder, Quarantine(root / "quarantine"), self.counters)
        self._analysis = Analysis(load(config.analysers, config.analyser_memory), self.counters)
        self.vigil = Vigil(config.silent_seconds, config.hang_seconds, self.live.latest)
        self._epochs = EpochAggregator()
        self._wishes = Wishes()
        self._periods = PeriodAggregator(lambda run: self._wishes.of(run).every_n_epochs)
        self._choices = Choices()
        self._second_names = SecondNames(self._choices)
        self._rules = Rules(self._choices, config.rules)
        self.notifier = Notifier(config.webhook, config.webhook_severity)
        tensorboard = TensorBoardSink(root, store.files(), self._choices)
        self._samples = SampleSink(root)
        documents = EpochJsonSink(root, lambda run: self._wishes.of(run).json_every_n_epochs)
        # A peer on another machine must not name folders of this one.
        is_local = config.address(root).startswith("ipc://")
        self._lines = EpochLines(root, self.counters, takes_folders=is_local)
        files = (documents, self._lines, self._samples, HparamsFile(root))
        self.committer = Committer(store, tensorboard, files, self.counters)
        self._batch = Batch()
        self._sealed: deque[Batch] = deque()
        self._points = 0
        self._urgent = False
        self._ended: dict[str, None] = {}
        self._flushed_at = self.turned_at = time.monotonic()
        self._restore(root)

    def run(self, *, until: Callable[[], bool]) -> None:
        """Carry data until `until()` says so, then drain: everything that was received gets committed."""
        self.committer.start(self._sockets.waker().wake)
        try:
            while not until():
                self._turn()
            self._drain()
        finally:
            self.committer.stop()
            self._settle()
            self.notifier.close()

    def idle_seconds(self) -> float:
        """How long no trainer was connected and nothing came."""
        return 0.0 if self._sockets.listeners else time.monotonic() - self._intake.heard_at

    def pending_bytes(self) -> int:
        """Bytes that are received and not committed."""
        sealed = sum(batch.nbytes for batch in tuple(self._sealed))  # another thread may ask
        return self._batch.nbytes + self._decoder.nbytes + sealed + self.committer.pending_bytes

    @property
    def is_reading(self) -> bool:
        """Whether there is room for more; else what trainers send stays in their journals."""
        return self.pending_bytes() < self._config.pending_bytes

    def _turn(self) -> None:
        self.turned_at = time.monotonic()
        is_reading = self.is_reading
        arrivals = self._sockets.wait(self._patience(), read=is_reading)
        for key in arrivals.greetings:
            self._intake.greet(key)
        for route, question in arrivals.questions:
            self._sockets.answer(route, self._reply(question))
        if arrivals.has_frames:
            self._intake.read()
            self._aggregate()
        self._look_after(is_reading=is_reading)
        self._settle()
        if self._is_due():
            self._seal()
        self._hand_over()

    def _patience(self) -> float:
        if not self._intake.touched or self.committer.pending_bytes:
            return _IDLE_WAIT_SECONDS  # the end of a commit wakes it; asking when is a core spent, and the GIL taken
        due = self._flushed_at + self._config.flush_seconds - time.monotonic()
        return min(max(due, 0.0), _IDLE_WAIT_SECONDS)

    def _aggregate(self) -> None:
        decoded = self._decoder.take()
        if not decoded.blocks and not decoded.items and not decoded.key_sets:
            return
        self._wishes.note(decoded.items)
        self._analysis.add(decoded.blocks, decoded.items)
        self._carry(decoded.blocks, decoded.items)
        self.vigil.add(decoded.blocks, decoded.items)
        for stream, key_set in decoded.key_sets:
            self._second_names.declare(stream, [key_set])
        self._rename(decoded.blocks)
        self.counters.scalars += sum(block.values.size for block in decoded.blocks)
        for item in decoded.items:
            if isinstance(item, Event) and item.event == "end":
                self._end(item)
        self._batch.key_sets += decoded.key_sets
        for stream, key_set in decoded.key_sets:
            self._batch.metrics |= self._choices.declared(stream.run, key_set.names)
        self._batch.nbytes += decoded.nbytes

    def _analyse(self) -> None:
        """Once a flush, so that the price of numpy calls is paid once: what follows from all that came since."""
        blocks, items = self._analysis.take()
        self._carry(blocks, [item for item in items if self._is_wished(item)])
        self._count_derived(blocks)
        self._rename(blocks)

    def _rename(self, blocks: list[ScalarBlock]) -> None:
        """Once more what a run's profile calls otherwise."""
        again = self._second_names.of(blocks)
        if again:
            self._carry(again, [])
            self._count_derived(again)
            self._batch.metrics |= self._second_names.declared(again)

    def _count_derived(self, blocks: list[ScalarBlock]) -> None:
        self.counters.derived_scalars += sum(block.values.size for block in blocks)
        self._batch.nbytes += sum(block.values.nbytes for block in blocks)

    def _is_wished(self, item: Item) -> bool:
        is_of_latents = isinstance(item, Histogram) and item.name.startswith(LATENT_HISTOGRAM)
        return not is_of_latents or self._wishes.of(item.at.stream.run).latent_histograms

    def _carry(self, blocks: list[ScalarBlock], items: list[Item]) -> None:
        """From decoding or analysing on, all goes the same way."""
        self._epochs.add(blocks, items)
        self._rules.add(blocks, items)
        self.live.add(blocks)
        for block in blocks:
            self._points += block.values.size
            if block.stream.run_uid in self._sockets.watched:
                self._feed(block)
        self._batch.blocks += blocks
        self._batch.items += items

    def _look_after(self, *, is_reading: bool) -> None:
        """Streams that fell silent, hang, or are back."""
        news = self.vigil.look(self.registry.states(), is_reading=is_reading)
        if news is None:
            return
        for stream, state in news.states:
            self._store.set_state(stream, state)
            if state != RUNNING:
                self._epochs.end(stream)
                self._rules.end(stream)
        self._batch.items += news.events
        self._urgent = True

    def _end(self, end: Event) -> None:
        state = self.registry.get(end.at.stream.key)
        if state is not None:
            state.ended = True
        post_mortem = self.vigil.end(end)
        if post_mortem is not None:
            self._batch.items.append(post_mortem)
        self._urgent = True  # somebody waits in finish()

    def _feed(self, block: ScalarBlock) -> None:
        names = block.key_set.names
        first = max(0, len(block.seq) - _FEED_RECORDS)
        for row in range(first, len(block.seq)):
            values = [float(value) for value in block.values[row]]
            self._sockets.feed(
                block.stream.run_uid,
                {
                    "rank": block.stream.rank,
                    "attempt": block.stream.attempt,
                    "step": int(block.step[row]),
                    "epoch": float(block.epoch[row]),
                    "t_ns": int(block.t_ns[row]),
                    "values": dict(zip(names, values, strict=True)),
                },
            )

    def _feed_findings(self, findings: list[Finding]) -> None:
        told = [finding for finding in findings if finding.news]
        if told and self._sockets.watched:
            uids = {state.stream.run: state.stream.run_uid for state in self.registry.states()}
            for finding in told:
                if (uid := uids.get(finding.run)) in self._sockets.watched:
                    self._sockets.feed(uid, {"t_ns": finding.last_t_ns, **message(finding)})

    def _is_due(self) -> bool:
        """Whether what is gathered makes a batch: a large one at once, a small one when the committer is free."""
        if self._batch.nbytes >= _BATCH_BYTES:
            return True
        has_news = self._intake.touched or self._batch.items
        if not has_news or self.committer.pending_bytes or self._sealed:
            return False
        waited = time.monotonic() - self._flushed_at
        return self._urgent or self._points >= self._config.flush_points or waited >= self._config.flush_seconds

    def _seal(self) -> None:
        """Close the batch: rows, aggregates and watermarks as they are now belong together."""
        self._analyse()
        self._carry(self._rules.take_counts(), [])
        batch, self._batch = self._batch, Batch()
        batch.gaps, self._intake.gaps = self._intake.gaps, []
        batch.epochs, batch.summaries = self._epochs.take()
        batch.periods = self._periods.add(batch.summaries)
        self._rules.add_epochs(batch.summaries)
        batch.findings = self._rules.take()
        self._feed_findings(batch.findings)
        batch.progress = [
            Progress(state.stream, state.received, state.lost, state.ended) for state in self._intake.touched.values()
        ]
        self._intake.touched = {}
        self._points, self._urgent, self._flushed_at = 0, False, time.monotonic()
        self._sealed.append(batch)

    def _hand_over(self) -> None:
        if self._sealed and not self.committer.pending_bytes:
            self.committer.hand_over(self._sealed.popleft())

    def _settle(self) -> None:
        """Acknowledge what was committed since."""
        for batch in self.committer.committed():
            self.notifier.tell(batch.findings)
            for progress in batch.progress:
                state = self.registry.get(progress.stream.key)
                if state is None:
                    continue
                state.committed = progress.watermark
                self._sockets.acknowledge(progress.stream.key, progress.watermark, state.received, rewind=False)
                if progress.ended:
                    self._decoder.forget(progress.stream)
                    self._analysis.forget(progress.stream)
                    self._second_names.forget(progress.stream)
                    self._retire(progress.stream)

    def _retire(self, stream: Stream) -> None:
        """Keep the last runs that ended in memory, for late ranks and for who looks now; forget older ones."""
        self._ended[stream.run] = None
        while len(self._ended) > _ENDED_RUNS_KEPT:
            run = next(iter(self._ended))
            del self._ended[run]
            if all(state.ended for state in self.registry.states() if state.stream.run == run):
                self._analysis.forget_run(run)
                self._epochs.forget(run)
                self._rules.forget(run)
                self._periods.forget(run)
                self._wishes.forget(run)
                self.live.forget(run)

    def _drain(self) -> None:
        while self._sockets.wait(0, read=True).has_frames and self.pending_bytes() < self._config.pending_bytes:
            self._intake.read()
            self._aggregate()
        if self._intake.touched or self._batch.items:
            self._seal()
        while self._sealed and not self.committer.failing:  # else the disk takes nothing; the journals have it all
            self._hand_over()
            self._sockets.wait(_IDLE_WAIT_SECONDS, read=False)
            self._settle()

    def _reply(self, question: bytes) -> Any:
        try:
            asked = msgspec.json.decode(question, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return {"error": f"no question: {error}"}
        return self._answer(asked)

    def _restore(self, root: Path) -> None:
        known = self._store.known()
        going_on = {one.stream: one.key_sets for one in known if not one.ended}
        for one in known:
            self.registry.restore(one.stream, one.watermark, one.lost, ended=one.ended)
        for stream, key_sets in going_on.items():
            self._decoder.restore(stream, key_sets)
        uids = {stream.run: stream.run_uid for stream in going_on}
        streams = [one.stream for one in known if one.stream.run in uids]  # with earlier attempts, and ranks that ended
        self._wishes.note(read_starts(root, streams))
        tails = read_tails(
            root, streams, lambda run, epochs: min(self._periods.begin(run, epochs), self._rules.begin(epochs))
        )
        events = [event for tail in tails for event in tail.events]
        self._lines.note(events)
        runs = self._store.runs()
        told = self._epochs.restore(
            rows=self._store.epoch_rows({tail.run: tail.since_epoch for tail in tails}),
            runs=[
                RunHistory(tail.run, run.project, run.started_ns, tail.reached, tail.values is not None)
                for tail in tails
                for run in (runs[uids[tail.run]],)
            ],
            events=events,
            values=[values for tail in tails for values in tail.values or ()],
            over={one.stream for one in known if one.ended or one.cause is not None},
        )
        self._periods.add(told)
        said = [event for event in events if event.at.stream in going_on]
        names = [(stream, key_set.names) for stream, key_sets in going_on.items() for key_set in key_sets]
        self._rules.restore(said, self._store.findings(uids), told, names)
        for stream, key_sets in going_on.items():
            self._second_names.declare(stream, key_sets)
        starts = {event.at.stream: event for event in events if event.event == "start"}
        for one in known:
            if not one.ended and (state := self.registry.get(one.stream.key)) is not None:
                self.vigil.restore(state, one.cause, starts.get(one.stream))
        self._restore_analysis(root, going_on, tails)

    def _restore_analysis(self, root: Path, going_on: dict[Stream, tuple[KeySet, ...]], tails: list[RunTail]) -> None:
        wanted = {stream: self._analysis.wants(key_sets) for stream, key_sets in going_on.items()}
        past = read_past(root, wanted, self._analysis.wants_tensor)
        events: dict[Stream, list[Item]] = {}
        for tail in tails:
            for event in tail.events:
                events.setdefault(event.at.stream, []).append(event)
        for stream, key_sets in going_on.items():
            items = [*past[stream].tensors, *events.get(stream, ())]
            self._samples.restore(past[stream].tensors)
            self._analysis.restore(stream, key_sets, past[stream].tails, items)
