"""Calls probes when they are due, and keeps what one of them raises from the training and from the others."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from sidestep.probes.cadence import Budgeted, Cadence, Validations, cadence
from sidestep.probes.protocol import Part, Probe, Watched


class Sampling:
    """The probes of a run.

    Args:
        watched: what they look at.
        probes: in the order in which they report.
        every: steps between samples of those that say nothing else.
        budget: share of the training's time that these may take: `every` is doubled while they take more. None: as
            much as they do.

    Attributes:
        due: those that sample the coming step, or the one that is open.
        is_regular: whether the coming step, or the one that is open, is one of those that `every` means.

    Raises:
        UsageError: a cadence that is none.
    """

    def __init__(self, watched: Watched, probes: Sequence[Probe], every: int, budget: float | None = None) -> None:
        self.due: list[Probe] = []
        self.is_regular = False
        self._regular: Cadence = Budgeted(every, budget) if budget is not None else cadence(every, "watch")
        self._spent = 0.0
        self._watched = watched
        self._run = watched.run
        self._active = list(probes)
        # Asked at every step: probes of one setting share a cadence.
        self._groups: dict[int | str | None, tuple[Cadence, list[Probe]]] = {None: (self._regular, [])}
        for probe in probes:
            if probe.every not in self._groups:
                assert probe.every is not None
                self._groups[probe.every] = (cadence(probe.every, probe.name), [])
            self._groups[probe.every][1].append(probe)
        self._each_step: list[Probe] = [probe for probe in probes if type(probe).end_step is not Probe.end_step]
        self._late: list[Probe] = []
        watched.switch_off = self._switch_off
        if any(isinstance(when, Validations) for when, _ in self._groups.values()):
            watched.calls.at_validation = self._validate
        for probe in self._active.copy():
            self._call(probe, "attach", watched)

    def begin(self, step: int) -> None:
        """Find who samples a step, before anything of it has happened."""
        watched = self._watched
        found: list[Probe] = []
        for when, probes in self._groups.values():
            is_due = when.is_due(step, watched)
            if when is self._regular:
                self.is_regular = is_due
            if is_due:
                found += probes
        if not (found or self._late or self.due):
            return
        due = [probe for probe in self._active if probe in found or probe in self._late]
        self._late = [] if watched.has_stepped else [probe for probe in due if probe.hooks_forward]
        due = [probe for probe in due if probe not in self._late]
        for probe in self.due:
            if probe not in due:
                self._call(probe, "forget")
        begun, self.due = self.due, due
        for probe in [probe for probe in due if probe not in begun]:
            self._call(probe, "begin", step)

    def _validate(self) -> None:
        """A validation has begun: the next step is sampled. A probe that begins before a step takes the one after."""
        for when, probes in self._groups.values():
            if isinstance(when, Validations) and when.is_due(self._run.step + 1, self._watched):
                joining = [probe for probe in probes if type(probe).begin is Probe.begin]
                self.due = [probe for probe in self._active if probe in self.due or probe in joining]
                self._late += [probe for probe in probes if probe not in (*joining, *self._late)]

    def tell(self, event: str, subject: Part | int) -> None:
        """Call a method of each probe that samples; after a step in reverse, so that the last is next to the step."""
        with torch.no_grad():
            for probe in self.due[:: -1 if event == "after_step" else 1]:
                began = time.perf_counter()
                self._call(probe, event, subject)
                if probe.every is None:
                    self._spent += time.perf_counter() - began

    def report(self, step: int) -> None:
        """Have the sample recorded; none is open afterwards."""
        self.tell("report", step)
        self.due = []
        if self.is_regular and isinstance(self._regular, Budgeted):
            self._regular.note(step, self._spent, time.perf_counter())
        self._spent = 0.0

    def forget(self) -> None:
        """The sample came to nothing; none is open afterwards."""
        due, self.due = self.due, []
        for probe in due:
            self._call(probe, "forget")

    def end_step(self) -> None:
        """A step has ended."""
        self._watched.has_stepped = True
        for probe in self._each_step:  # a list that is replaced, never changed
            self._call(probe, "end_step")

    def detach(self) -> None:
        """Let every probe remove its hooks."""
        for probe in self._active.copy():
            self._call(probe, "detach")
        self._active, self._each_step, self._late, self.due = [], [], [], []
        self._groups.clear()

    def _call(self, probe: Probe, event: str, *arguments: object) -> None:
        try:
            getattr(probe, event)(*arguments)
        except Exception as error:  # noqa: BLE001 - a probe may be anybody's
            self._switch_off(probe, event, error)

    def _switch_off(self, probe: Probe, event: str, error: Exception) -> None:
        self._active = [other for other in self._active if other is not probe]
        for _, probes in self._groups.values():
            if probe in probes:
                probes.remove(probe)
        self._each_step = [other for other in self._each_step if other is not probe]
        self._late = [other for other in self._late if other is not probe]
        self.due = [other for other in self.due if other is not probe]
        name = probe.name or type(probe).__name__
        what = f"probe {name!r} is switched off: {event} raised {type(error).__name__}: {error}"
        if event != "detach":
            self._call(probe, "detach")
        self._run.guard(lambda: self._run.complain("probe", name, what))
