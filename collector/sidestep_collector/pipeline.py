"""The path of the data through the collector. Read this first.

    receive ─▶ decode ─▶ aggregate ─▶ sinks (TensorBoard, epoch documents) ─▶ store (commit + watermark) ─▶ acknowledge

Two threads carry it. The intake thread owns the sockets: it receives, decodes, aggregates, feeds the live view
and hands a batch over at each flush. The commit thread writes the batch's files, then commits rows, file lengths
and watermarks in one transaction; only then are the streams acknowledged. A batch that cannot be committed (a
full disk) is tried again until it can; meanwhile the intake goes on up to a bound, and then stops reading, so
that what is not stored stays in the trainers' journals.

This module alone knows the order of the stages.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from sidestep_collector.aggregate import EpochAggregator, Live, PeriodAggregator, RunHistory
from sidestep_collector.blocks import Batch, Event, Gap, Progress, ScalarBlock, Stream
from sidestep_collector.config import Config
from sidestep_collector.decode import Decoder, Frame, NewerVersionError, decode_frame
from sidestep_collector.decode.records import decode_record
from sidestep_collector.quarantine import Quarantine
from sidestep_collector.receive import Registry, Sockets, StreamState
from sidestep_collector.sinks.epoch_json import EpochJsonSink
from sidestep_collector.sinks.tensorboard import TensorBoardSink
from sidestep_collector.store import Store
from sidestep_collector.store.resume import read_tails
from sidestep_collector.telemetry import CommitTimes, Counters
from sidestep_schemas.errors import VersionError, WireError
from sidestep_schemas.wire import FRAME_GAP, RECORD_PREFIX

log: Any = structlog.get_logger()

#: What one turn of the intake reads at most, so that acknowledgements and questions get their turn.
_TURN_BYTES: Final = 8 << 20
_TURN_FRAMES: Final = 2000
_IDLE_WAIT_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = (0.5, 10.0)
_COMPACT_SECONDS: Final = 1.0
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
    """

    def __init__(self, root: Path, config: Config, store: Store, sockets: Sockets, answer: Question) -> None:
        self.counters = Counters()
        self.commit_times = CommitTimes()
        self.registry = Registry()
        self.live = Live()
        self.failing = ""
        self._config = config
        self._store = store
        self._sockets = sockets
        self._answer = answer
        self._decoder = Decoder()
        self._epochs = EpochAggregator()
        self._periods = PeriodAggregator()
        self._quarantine = Quarantine(root / "quarantine")
        self._tensorboard = TensorBoardSink(root, store.files())
        self._documents = EpochJsonSink(root)
        self._batch = Batch()
        self._points = 0
        self._touched: dict[bytes, StreamState] = {}
        self._urgent = False
        self._ended: dict[str, None] = {}
        self._flushed_at = time.monotonic()
        self._handed: queue.Queue[Batch | None] = queue.Queue(maxsize=1)
        self._done: queue.Queue[Batch] = queue.Queue()
        self._committing_bytes = 0
        self._stop = threading.Event()
        self._heard_at = time.monotonic()
        self._restore(root)

    # --- intake thread -----------------------------------------------------------------------------------

    def run(self, *, until: Callable[[], bool]) -> None:
        """Carry data until `until()` says so, then drain: everything that was received gets committed."""
        waker = self._sockets.waker()
        threads = [
            threading.Thread(target=self._commit_all, args=(waker.wake,), name="commit"),
            threading.Thread(target=self._compact_all, name="compact", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            while not until():
                self._turn()
            self._drain()
        finally:
            self._stop.set()
            self._handed.put(None)
            threads[0].join()
            self._settle()
            threads[1].join()
            self._tensorboard.close()

    def idle_seconds(self) -> float:
        """How long no trainer was connected and nothing came."""
        return 0.0 if self._sockets.listeners else time.monotonic() - self._heard_at

    def pending_bytes(self) -> int:
        """Bytes that are received and not committed."""
        return self._batch.nbytes + self._decoder.nbytes + self._committing_bytes

    def _turn(self) -> None:
        arrivals = self._sockets.wait(self._patience(), read=self.pending_bytes() < self._config.pending_bytes)
        for key in arrivals.greetings:
            self._greet(key)
        for route, question in arrivals.questions:
            self._sockets.answer(route, self._reply(question))
        if arrivals.has_frames:
            self._read()
        self._settle()
        if self._is_due():
            self._hand_over()

    def _patience(self) -> float:
        if not self._touched:
            return _IDLE_WAIT_SECONDS
        due = self._flushed_at + self._config.flush_seconds - time.monotonic()
        return min(max(due, 0.0), _IDLE_WAIT_SECONDS) if not self._handed.full() else _IDLE_WAIT_SECONDS

    def _read(self) -> None:
        read = frames = 0
        self._heard_at = time.monotonic()
        while read < _TURN_BYTES and frames < _TURN_FRAMES:
            data = self._sockets.frame()
            if data is None:
                break
            read, frames = read + len(data), frames + 1
            self._take(data)
        self.counters.frames += frames
        self.counters.bytes += read
        self._aggregate()

    def _take(self, data: bytes) -> None:
        try:
            frame = decode_frame(data)
        except NewerVersionError as error:
            self.counters.refused_versions += 1
            self._sockets.acknowledge(error.stream, 0, 0, rewind=False, message=str(error))
            return
        except (WireError, VersionError) as error:
            self._reject(data, error)
            return
        state = self.registry.get(frame.stream) or self._meet(frame)
        if state is None:
            return
        state.seen = self._heard_at
        self._accept(state, frame)

    def _accept(self, state: StreamState, frame: Frame) -> None:
        following = frame.first_seq + frame.count
        if frame.first_seq > state.received:
            self._ask_again(frame.stream, state)
            return
        skip = state.received - frame.first_seq
        self.counters.duplicate_records += min(skip, frame.count)
        if following <= state.received:
            if following <= state.committed and state.may_ask(self._heard_at):  # the word that it is stored got lost
                self._sockets.acknowledge(frame.stream, state.committed, state.received, rewind=False)
            return
        self._touched[frame.stream] = state
        if frame.kind == FRAME_GAP:
            self._lose(state, following, bytes(frame.body).decode("utf-8", "replace")[:500])
            return
        try:
            self._decoder.add(state.stream, frame.body, frame.first_seq, frame.count, skip=skip)
        except WireError as error:
            self.counters.undecodable_records += following - state.received
            self._quarantine.keep(bytes(frame.body))
            self._lose(state, following, f"the collector could not decode them: {error}")
            return
        self.counters.records += following - state.received
        state.received = following

    def _lose(self, state: StreamState, following: int, reason: str) -> None:
        records = following - state.received
        self._batch.gaps.append(Gap(state.stream, state.received, records, reason))
        state.lost += records
        self.counters.lost_records += records
        state.received = following
        log.warning("records lost", run=state.stream.run, rank=state.stream.rank, records=records, reason=reason)

    def _meet(self, frame: Frame) -> StreamState | None:
        """Take up a stream whose first frame this is; ask for its beginning where it is not."""
        if frame.first_seq > 0:
            self._sockets.acknowledge(frame.stream, 0, 0, rewind=True)
            self.counters.rewinds_asked += 1
            return None
        details: Any = {}
        if frame.kind != FRAME_GAP:
            try:
                details = _start_details(frame)
            except WireError as error:
                self._reject(bytes(frame.body), error)
                return None
        state = self.registry.register(frame.stream, frame.run, frame.rank, frame.attempt, details)
        log.info("stream", run=state.stream.run, rank=state.stream.rank, attempt=state.stream.attempt)
        return state

    def _reject(self, data: bytes, error: Exception) -> None:
        self.counters.rejected_frames += 1
        if self._quarantine.keep(data):
            log.warning("not a frame of ours, put aside", bytes=len(data), why=str(error))

    def _ask_again(self, key: bytes, state: StreamState) -> None:
        if state.may_ask(self._heard_at):
            self.counters.rewinds_asked += 1
            self._sockets.acknowledge(key, state.committed, state.received, rewind=True)

    def _greet(self, key: bytes) -> None:
        state = self.registry.get(key)
        committed, received = (state.committed, state.received) if state else (0, 0)
        self._sockets.acknowledge(key, committed, received, rewind=True)

    def _aggregate(self) -> None:
        decoded = self._decoder.take()
        if not decoded.blocks and not decoded.items and not decoded.key_sets:
            return
        self._epochs.add(decoded.blocks, decoded.items)
        self.live.add(decoded.blocks)
        for block in decoded.blocks:
            self._points += block.values.size
            self.counters.scalars += block.values.size
            if block.stream.run_uid in self._sockets.watched:
                self._feed(block)
        for item in decoded.items:
            if isinstance(item, Event) and item.event == "end":
                self._end(item.at.stream)
        batch = self._batch
        batch.blocks += decoded.blocks
        batch.items += decoded.items
        batch.key_sets += decoded.key_sets
        batch.nbytes += decoded.nbytes

    def _end(self, stream: Stream) -> None:
        state = self.registry.get(stream.key)
        if state is not None:
            state.ended = True
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

    def _is_due(self) -> bool:
        if not self._touched or self._handed.full() or self._committing_bytes:
            return False
        waited = time.monotonic() - self._flushed_at
        return self._urgent or self._points >= self._config.flush_points or waited >= self._config.flush_seconds

    def _hand_over(self) -> None:
        batch, self._batch = self._batch, Batch()
        batch.epochs, batch.summaries = self._epochs.take()
        batch.periods = self._periods.add(batch.summaries)
        batch.progress = [
            Progress(state.stream, state.received, state.lost, state.ended) for state in self._touched.values()
        ]
        self._touched = {}
        self._points, self._urgent, self._flushed_at = 0, False, time.monotonic()
        self._committing_bytes = max(1, batch.nbytes)
        self._handed.put(batch)

    def _settle(self) -> None:
        """Acknowledge what was committed since."""
        while True:
            try:
                batch = self._done.get_nowait()
            except queue.Empty:
                return
            self._committing_bytes = 0
            for progress in batch.progress:
                state = self.registry.get(progress.stream.key)
                if state is None:
                    continue
                state.committed = progress.watermark
                self._sockets.acknowledge(progress.stream.key, progress.watermark, state.received, rewind=False)
                if progress.ended:
                    self._decoder.forget(progress.stream)
                    self._retire(progress.stream)

    def _retire(self, stream: Stream) -> None:
        """Keep the last runs that ended in memory, for late ranks and for who looks now; forget older ones."""
        self._ended[stream.run] = None
        while len(self._ended) > _ENDED_RUNS_KEPT:
            run = next(iter(self._ended))
            del self._ended[run]
            if all(state.ended for state in self.registry.states() if state.stream.run == run):
                self._epochs.forget(run)
                self._periods.forget(run)
                self.live.forget(run)

    def _drain(self) -> None:
        while self._sockets.wait(0, read=True).has_frames and self.pending_bytes() < self._config.pending_bytes:
            self._read()
        if not self._touched:
            return
        while self._committing_bytes and not self.failing:
            self._sockets.wait(_IDLE_WAIT_SECONDS, read=False)
            self._settle()
        if not self._committing_bytes:  # else the disk takes nothing; what is not stored is in the journals
            self._hand_over()

    def _reply(self, question: bytes) -> Any:
        import msgspec  # noqa: PLC0415 - questions are rare

        try:
            asked = msgspec.json.decode(question, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return {"error": f"no question: {error}"}
        return self._answer(asked)

    # --- commit thread -----------------------------------------------------------------------------------

    def _commit_all(self, wake: Callable[[], None]) -> None:
        while True:
            batch = self._handed.get()
            if batch is None:
                return
            if self._commit_until_done(batch):
                self._done.put(batch)
                wake()

    def _commit_until_done(self, batch: Batch) -> bool:
        wait, longest = _RETRY_SECONDS
        while True:
            started = time.monotonic()
            try:
                self._commit(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the batch stays and is tried again
                self.counters.failed_commits += 1
                if str(error) != self.failing:
                    self.failing = str(error)
                    log.error("commit failed; nothing is acknowledged until it works", why=self.failing)  # noqa: TRY400
                if self._stop.wait(wait):
                    return False
                wait = min(2 * wait, longest)
            else:
                if self.failing:
                    log.info("commits work again")
                self.failing = ""
                self.counters.commits += 1
                self.commit_times.add(time.monotonic() - started)
                return True

    def _commit(self, batch: Batch) -> None:
        try:
            lengths = self._tensorboard.write(batch)
            self._documents.write(batch)
        except OSError:
            self._tensorboard.discard()
            raise
        except Exception:
            # A defect in a view of the data must not keep the data itself out of the store.
            self.counters.sink_failures += 1
            log.exception("TensorBoard or epoch documents could not be written; the rows are stored")
            self._tensorboard.discard()
            lengths = {}
        try:
            self._store.commit(batch, lengths)
        except BaseException:
            self._tensorboard.discard()
            raise

    def _compact_all(self) -> None:
        while not self._stop.wait(_COMPACT_SECONDS):
            try:
                while self._store.compact() and not self._stop.is_set():
                    pass
            except Exception:
                log.exception("compaction failed; the parts stand as they were")
                if self._stop.wait(_RETRY_SECONDS[1]):
                    return

    # --- start -------------------------------------------------------------------------------------------

    def _restore(self, root: Path) -> None:
        going_on: list[Stream] = []
        for known in self._store.known():
            self.registry.restore(known.stream, known.watermark, known.lost, ended=known.ended)
            if not known.ended:
                self._decoder.restore(known.stream, known.key_sets)
                going_on.append(known.stream)
        runs = self._store.runs()
        tails = read_tails(root, going_on)
        uids = {stream.run: stream.run_uid for stream in going_on}
        self._epochs.restore(
            rows=[row for tail in tails for row in self._store.epoch_rows(tail.run, tail.since_epoch)],
            runs=[
                RunHistory(tail.run, known.project, known.started_ns, tail.reached)
                for tail in tails
                for known in (runs[uids[tail.run]],)
            ],
            events=[event for tail in tails for event in tail.events],
        )


def _start_details(frame: Frame) -> Any:
    """Details of the start event that opens a stream; empty where its first record is something else."""
    if len(frame.body) < RECORD_PREFIX.size:
        raise WireError("a frame of records without a record")
    length, _ = RECORD_PREFIX.unpack_from(frame.body)
    nobody = Stream(frame.stream, frame.run, "", "", frame.rank, frame.attempt)
    first = decode_record(nobody, frame.body[RECORD_PREFIX.size : RECORD_PREFIX.size + length], 0)
    return first.details if isinstance(first, Event) else {}
