"""The object a script holds: what it logs goes into the journal, and the calling thread goes on.

This module knows the order of the trainer side: snapshot, journal, push. After `init` nothing here raises into
the training loop: what cannot be recorded is counted and said once (`SIDESTEP_STRICT=1` raises instead).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, cast

from sidestep import features, snapshot
from sidestep.complaints import Complaints
from sidestep.config import RunConfig
from sidestep.ending import described
from sidestep.epochs import EpochMark
from sidestep.errors import UsageError
from sidestep.journal import Journal
from sidestep.machine import Machine
from sidestep.push import Pusher
from sidestep.recorder import KeySetKey, Recorder, is_name, tag_of
from sidestep.report import DeliveryReport, LoggedConfig, deliver
from sidestep_schemas.diagnostics import Diagnostics
from sidestep_schemas.wire import (
    DTYPE_FLOAT32,
    DTYPE_FLOAT64,
    KIND_FIGURE,
    KIND_LIFECYCLE,
    KIND_TENSOR,
    KIND_TEXT,
    NO_EPOCH,
    TIER_EPOCH,
    TIER_STEP,
)

_PLAIN: Final = (float, int)


class Run:
    """A run of one process (one rank). Made by `sidestep.init` and `sidestep.watch`.

    Args:
        settings: what the run is.
        journal: where records go; None for a run that is off.
        pusher: ships the journal.
        config: the script's own configuration.
        machine: what samples the machine for it.

    Attributes:
        machine: likewise.
    """

    def __init__(
        self,
        settings: RunConfig,
        journal: Journal | None,
        pusher: Pusher | None,
        config: Mapping[str, Any] | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.machine = machine
        self._settings = settings
        self._journal = journal
        self._pusher = pusher
        self._step = -1
        self._epoch = NO_EPOCH
        self._counts_own_steps = True
        self._recorder = Recorder(journal)
        self._layouts = self._recorder.layouts
        self._mailbox = snapshot.DeviceMailbox()
        self._complaints = Complaints(strict=settings.strict)
        self._report: DeliveryReport | None = None
        self._finish_lock = threading.RLock()
        self._is_finishing = False
        self._failure: dict[str, Any] = {}
        self._at_finish: list[Callable[[], None]] = []
        self._at_batch: list[Callable[[Any, Any, str], None]] = []
        self._config = LoggedConfig(_initial(config), self._log_config)

    # --- what it is --------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Id of the run: the same id again is a new attempt of the same run."""
        return self._settings.id

    @property
    def project(self) -> str:
        """Project of the run."""
        return self._settings.project

    @property
    def name(self) -> str:
        """Name for people."""
        return self._settings.name

    @property
    def profile(self) -> str:
        """Name of the family of metrics that it goes by; "" for none."""
        return self._settings.profile

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return self._settings.rank

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self._settings.world_size

    @property
    def config(self) -> LoggedConfig:
        """The script's configuration; a change to it is recorded."""
        return self._config

    @property
    def diagnostics(self) -> Diagnostics:
        """Which diagnostics are wanted and how often, for what a script logs itself to go by."""
        return self._settings.diagnostics

    @property
    def is_live(self) -> bool:
        """Whether it has not been finished."""
        return self._report is None

    @property
    def is_off(self) -> bool:
        """Whether its calls do nothing."""
        return self._journal is None

    @property
    def step(self) -> int:
        """Last step: counted by the watched optimizer, else given, else counted by calls; -1 before the first."""
        return self._step

    @property
    def current_epoch(self) -> float:
        """The epoch that was begun and has not ended; NaN outside of epochs."""
        return self._epoch

    @property
    def stats(self) -> dict[str, Any]:
        """What this process did so far: records by their fate, refused values by kind, where the journal is."""
        journal, pusher = self._journal, self._pusher
        return {
            "records": journal.seq if journal else 0,
            "shipped": pusher.delivery.shipped if pusher else 0,
            "committed": pusher.delivery.committed if pusher else 0,
            "resent": pusher.delivery.resent if pusher else 0,
            "dropped": dict(journal.dropped) if journal else {},
            "refused": dict(self._complaints.counts),
            "skipped_device_copies": self._mailbox.skipped,
            "machine_failures": dict(self.machine.failures) if self.machine else {},
            "journal": str(journal.folder) if journal and journal.folder else None,
            "pending_bytes": journal.pending_bytes() if journal else 0,
            "degraded": journal.degraded if journal else "",
        }

    # --- numbers -----------------------------------------------------------------------------------------

    def log(
        self,
        mapping: Mapping[str, Any],
        *,
        step: int | None = None,
        split: str | None = "train",
        epoch: float | None = None,
    ) -> None:
        """Record named numbers.

        Args:
            mapping: names to floats, integers, numpy scalars, tensors of one element (one on a device is copied
                without waiting for it), or small arrays, which are kept as tensors. A name without `/` gets
                `split/` before it.
            step: the step they belong to; default the watched optimizer's, else one more than at the last call.
            split: "train", "val" or another; None keeps names as they are.
            epoch: the epoch they belong to (fractions allowed); default the one that was begun. Giving it says
                that these are numbers of an epoch, not of a step.
        """
        journal = self._journal
        if journal is None:
            return
        if step is None:
            if self._counts_own_steps and epoch is None:
                self._step += 1
            step = self._step
        elif type(step) is not int:  # a numpy integer, or a mistake
            self._guarded(lambda: self.log(mapping, step=int(step), split=split, epoch=epoch))
            return
        elif self._counts_own_steps:
            self._step = step
        tier = TIER_STEP
        if epoch is None:
            epoch = self._epoch
        else:
            tier = TIER_EPOCH
        try:
            values = mapping.values()
            # The sum tells in 0.5 us for 100 values whether all are plain numbers: a tensor, an array, text or
            # anything else that would be slow or wrong to convert gives another type, or raises.
            if type(sum(values)) in _PLAIN:
                layout = self._layouts.get((split, tier, DTYPE_FLOAT64, tuple(mapping)))
                if layout is not None:
                    journal.append_scalars(time.time_ns(), step, epoch, layout, values)
                    return
        except Exception:  # noqa: BLE001, S110 - whatever it was, the careful way finds it and names it
            pass
        self._guarded(lambda: self._log_carefully(mapping, step, epoch, tier, split))

    def record(
        self,
        names: tuple[str, ...],
        values: Any,
        *,
        step: int | None = None,
        epoch: float | None = None,
        tier: str = TIER_STEP,
        t_ns: int | None = None,
        reductions: tuple[str, ...] = (),
    ) -> None:
        """Record numbers whose names are fixed: what probes use. Names are whole tags.

        Args:
            names: tags; hand in the same tuple each time.
            values: as many floats, or a float32 tensor of shape (len(names),), on a device or not.
            step: default the current one.
            epoch: default the current one.
            tier: cadence of these numbers: "step", "epoch" or "periodic".
            t_ns: when they were taken; default now.
            reductions: how the values of several ranks become one, one a name (`sidestep_schemas.reductions`; "" is as
                the catalogue says); empty where that holds for all. The same for the same names each time.
        """
        if self._journal is None:
            return
        at = (
            time.time_ns() if t_ns is None else t_ns,
            self._step if step is None else step,
            self._epoch if epoch is None else epoch,
        )
        scalars = self._recorder.scalars
        if not snapshot.is_tensor(values):
            self._guarded(lambda: scalars(at, KeySetKey(None, tier, DTYPE_FLOAT64, names), values, reductions))
            return
        key = KeySetKey(None, tier, DTYPE_FLOAT32, names)
        if snapshot.is_on_device(values):
            self._mailbox.post(values, lambda host: scalars(at, key, host.tolist(), reductions))
        else:
            self._guarded(lambda: scalars(at, key, values.tolist(), reductions))

    def collect(self) -> None:
        """Record what has arrived from a device since; never waits. Called by the watched optimizer's hook."""
        if self._mailbox.is_waiting:
            self._guarded(self._mailbox.collect)

    def receive(self, tensor: Any, deliver: Callable[[Any], None]) -> None:
        """Copy a device tensor without waiting; `deliver(host tensor)` is called by a later `collect`, or the end."""
        self._guarded(lambda: self._mailbox.post(tensor, deliver))

    def guard(self, call: Callable[[], None]) -> None:
        """Call something that must not raise into the training loop: what it raises is counted and said once."""
        self._guarded(call)

    def complain(self, kind: str, subject: str, message: str) -> None:
        """Count something that cannot be done, and say it once; raises in strict mode."""
        self._complaints.add(kind, subject, message)

    def batch(self, inputs: Any = None, labels: Any = None, *, split: str = "train") -> None:
        """Show the probes `data` and `logits` a batch where they cannot see it themselves; otherwise does nothing.

        They see what the model is called with, and labels in calls of `F.cross_entropy` and `F.nll_loss`. Not seen
        are the labels of a loss of one's own and what is compiled, and samples before they were augmented.

        Args:
            inputs: tensor of shape (samples, ...).
            labels: integer tensor, one or more for each sample.
            split: "train" or "val".
        """
        for look in self._at_batch:
            self._guarded(lambda look=look: look(inputs, labels, split))

    # --- other things ------------------------------------------------------------------------------------

    def image(self, name: str, image: Any, *, step: int | None = None, split: str | None = None) -> None:
        """Record an image: PNG bytes, a Pillow image, or an array or tensor of shape (H, W), (H, W, C) or (C, H, W) of
        uint8 or floats from 0 to 1. It is encoded here, in the calling thread: milliseconds, not microseconds."""
        self._guarded(
            lambda: self._append_item(KIND_FIGURE, step, "image", tag_of(name, split), snapshot.png(image), b"")
        )

    def histogram(
        self,
        name: str,
        values: Any = None,
        *,
        bins: int | Sequence[float] = 64,
        counts: Any = None,
        edges: Any = None,
        step: int | None = None,
        epoch: float | None = None,
        split: str | None = None,
    ) -> None:
        """Record a histogram: of `values`, or one that was counted already (`counts`, `edges`)."""

        def append() -> None:
            if (values is None) == (counts is None):
                raise UsageError("histogram() takes either values, or counts with edges")
            pair = snapshot.counted_histogram(counts, edges) if values is None else snapshot.histogram(values, bins)
            self._append_item(KIND_FIGURE, step, "histogram", tag_of(name, split), *pair, epoch=epoch)

        self._guarded(append)

    def tensor(
        self, name: str, value: Any, *, step: int | None = None, epoch: float | None = None, split: str | None = None
    ) -> None:
        """Record a small array or tensor with its type and shape; at most about 16 MB."""
        step = self._step if step is None else step  # on a device it arrives later

        def append(host: Any) -> None:
            raw = snapshot.raw_tensor(host)
            self._append_item(KIND_TENSOR, step, tag_of(name, split), raw.dtype, raw.shape, raw.data, epoch=epoch)

        if self._journal is not None and snapshot.is_on_device(value):
            self._guarded(lambda: self._mailbox.post(value.detach(), append))
            return
        self._guarded(lambda: append(value))

    def features(self, name: str, rows: Any, *, step: int | None = None, split: str | None = None) -> None:
        """Record a sample of a matrix of features, shape (N, d) or (N, ..., d), as the tensor `<name>_features`.

        At most 256 rows are taken, evenly spread, and shipped as float16 (float32 where their range or their spread
        asks for it). The collector derives `<name>_mean_std_per_dim`, `<name>_min_std_per_dim`,
        `<name>_effective_rank` (`..._share` of the dimensions) and `<name>_mean_similarity` from them.
        """
        step = self._step if step is None else step  # from a device it arrives later

        def ship(host: Any) -> None:
            self.tensor(f"{name}_features", features.compact(host), step=step, split=split)

        def take() -> None:
            taken = features.sampled(rows)
            if snapshot.is_on_device(taken):
                self._mailbox.post(taken, ship)
            else:
                ship(taken)

        self._guarded(take)

    def text(self, name: str, text: str, *, step: int | None = None, split: str | None = None) -> None:
        """Record a text."""
        self._guarded(lambda: self._append_item(KIND_TEXT, step, "text", tag_of(name, split), str(text)))

    def mark(self, event: str, /, *, step: int | None = None, **details: Any) -> None:
        """Record that something happened: `run.mark("checkpoint", path=..., size_mb=...)`."""
        self._guarded(lambda: self._event(str(event), details, step))

    def epoch(self, epochs: float | Iterable[float]) -> EpochMark:
        """Say which epoch it is: `run.epoch(3)`, `with run.epoch(3): ...`, `for epoch in run.epoch(range(1, 11)): ...`.

        What is logged from then on belongs to it. A following epoch, or the end of the run, ends it.
        """
        return EpochMark(epochs, self._begin_epoch, self._end_epoch)

    # --- end ---------------------------------------------------------------------------------------------

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything logged so far is stored, at most `timeout` seconds; whether it is."""
        journal, pusher = self._journal, self._pusher
        if journal is None or pusher is None:
            return journal is None
        return pusher.wait(journal.seq, timeout)

    def finish(self, status: str | None = None, timeout: float = 2.0) -> DeliveryReport:
        """End the run: record its end and wait until it is stored, at most `timeout` seconds.

        Args:
            status: "finished" or "failed"; default what is known ("failed" after an uncaught exception).
            timeout: bound in seconds on waiting; what is not stored by then stays in the journal.

        Returns:
            What became of each record. The same report when called again.
        """
        with self._finish_lock:
            if self._report is not None:
                return self._report
            if self._is_finishing:  # a signal handler interrupted it
                return DeliveryReport(0, 0, 0, 0)
            self._is_finishing = True
            try:
                self._report = self._finish(status, timeout)
            finally:
                self._is_finishing = False
            return self._report

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not (isinstance(error, SystemExit) and not error.code):
            self.note_failure(error)
        self.finish()

    def note_failure(self, error: BaseException) -> None:
        """Remember the exception that ends the script, or a `SystemExit` with its code; its end will say so."""
        self._failure = described(error)

    def at_finish(self, call: Callable[[], None]) -> None:
        """Have something called before the run ends: removing hooks, say."""
        self._at_finish.append(call)

    def at_batch(self, call: Callable[[Any, Any, str], None]) -> None:
        """Have something called with the inputs, labels and split of each batch that a script shows."""
        self._at_batch.append(call)

    def turn_off(self) -> None:
        """Make every further call do nothing: said in a forked child, whose journal belongs to its parent."""
        self._journal = None
        self._recorder.close()
        self._pusher = None
        self._report = DeliveryReport(0, 0, 0, 0)

    def count_steps_by_optimizer(self) -> None:
        """From now on steps are counted by `next_step`, not by calls of `log`."""
        self._counts_own_steps = False

    def next_step(self) -> int:
        """Count one optimizer step; returns its number."""
        self._step += 1
        return self._step

    # --- inside ------------------------------------------------------------------------------------------

    def _log_carefully(self, mapping: Any, step: int, epoch: float, tier: str, split: str | None) -> None:
        if not isinstance(mapping, Mapping):
            raise UsageError(f"log() takes a mapping of names to numbers, not {type(mapping).__name__}")
        at = (time.time_ns(), int(step), float(epoch))
        plain, device, arrays = snapshot.sort_out(mapping, lambda name: is_name(name, split), self._complaints.add)
        for name, value in arrays.items():
            self.tensor(tag_of(name, split), value, step=at[1])
        if plain:
            self._recorder.scalars(at, KeySetKey(split, tier, DTYPE_FLOAT64, tuple(plain)), plain.values())
        if device:
            self._post_scalars(at, device, tier, split)

    def _post_scalars(self, at: tuple[int, int, float], device: dict[str, Any], tier: str, split: str | None) -> None:
        import torch  # noqa: PLC0415 - whoever has a tensor on a device has torch

        stacked = torch.stack([value.to(torch.float32) for value in device.values()])
        key = KeySetKey(split, tier, DTYPE_FLOAT32, tuple(device))
        self._mailbox.post(stacked, lambda host: self._recorder.scalars(at, key, host.tolist()))

    def _append_item(self, kind: int, step: int | None, *fields: Any, epoch: float | None = None) -> None:
        epoch = self._epoch if epoch is None else float(epoch)
        at = (time.time_ns(), self._step if step is None else int(step), epoch)
        self._recorder.item(kind, at, *fields)

    def _event(self, event: str, details: Mapping[str, Any], step: int | None = None) -> None:
        self._append_item(KIND_LIFECYCLE, step, event, json.dumps(snapshot.jsonable(details), allow_nan=False))

    def _log_config(self, config: Mapping[str, Any]) -> None:
        def append() -> None:
            text = json.dumps(snapshot.jsonable(config), allow_nan=False)
            self._append_item(KIND_TEXT, None, "config", "config", text)

        self._guarded(append)

    def _begin_epoch(self, epoch: float) -> None:
        def begin() -> None:
            number = float(epoch)
            if self._epoch == self._epoch:  # not NaN: one is open
                self._end_epoch(self._epoch)
            self._epoch = number
            self._event("epoch_begin", {"epoch": number})

        self._guarded(begin)

    def _end_epoch(self, epoch: float) -> None:
        def end() -> None:
            number = float(epoch)
            if self._epoch == number:
                self._event("epoch_end", {"epoch": number})
                self._epoch = NO_EPOCH

        self._guarded(end)

    def _guarded(self, call: Callable[[], None]) -> None:
        if self._journal is None:
            return
        try:
            call()
        except Exception as error:
            if self._settings.strict:
                raise
            kind = type(error).__name__
            self._complaints.add(kind, str(error)[:200], f"a call recorded nothing: {error or kind}")

    def _finish(self, status: str | None, timeout: float) -> DeliveryReport:
        started = time.monotonic()
        journal, pusher = self._journal, self._pusher
        if journal is None or pusher is None:
            return DeliveryReport(0, 0, 0, 0)
        for call in self._at_finish:
            self._guarded(call)
        self._guarded(lambda: self._mailbox.collect(wait=True))
        if self._epoch == self._epoch:
            self._end_epoch(self._epoch)
        status = status or ("failed" if self._failure else "finished")
        self._guarded(lambda: self._event("end", {"status": status, "error": None, **self._failure}))
        self._journal = None  # whatever is logged from here on is nothing
        self._recorder.close()
        return deliver(journal, pusher, timeout, started, self._complaints.counts)


def _initial(config: Any) -> dict[str, Any]:
    content = snapshot.jsonable({} if config is None else config)
    if not isinstance(content, dict):
        raise UsageError(f"config= takes a mapping of names to settings, not {type(config).__name__}")
    return cast("dict[str, Any]", content)
