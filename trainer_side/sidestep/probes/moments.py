"""What an optimizer remembers: first and second moments, and the step size that they are corrected to.

Of Adam and its family the moments are `exp_avg` (m) and `exp_avg_sq` (v), of SGD with momentum `momentum_buffer` (m).
With β₁, β₂ and the learning rate lr of the first group, after t steps Adam moves a weight by about

    lr √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / √v

(Kingma and Ba, Adam, 2015, section 2). One pass over the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from sidestep.blocks import local
from sidestep.probes.norms import FUSED, Norms, by_kind, fold, foreach_norm, gathered, home_of
from sidestep.probes.protocol import Part, Probe
from sidestep.probes.sharding import weighed

TAGS: Final = (
    "train/optimizer/first_moment_norm",
    "train/optimizer/second_moment_max",
    "train/optimizer/corrected_step_size",
)

_FIRST: Final = ("exp_avg", "momentum_buffer")
_SECOND: Final = ("exp_avg_sq", "square_avg", "sum")


class MomentProbe(Probe):
    """Moments after a step; once an epoch."""

    name: ClassVar[str] = "moments"
    cost: ClassVar[int] = 1
    tags: ClassVar[tuple[str, ...]] = TAGS
    every: int | str | None = "epoch"

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._first: list[Norms] = []
        self._second: list[Tensor] = []
        self._size: Tensor | None = None

    def after_step(self, part: Part) -> None:
        """Look at one optimizer's state."""
        state = part.optimizer.state
        owners = [parameter for parameter, _ in part.placed if parameter in state]
        states = [state[parameter] for parameter in owners]
        for group in by_kind(_moments(states, _FIRST)):
            norms = foreach_norm([tensor for tensor, _ in group])
            norms = weighed(norms, (owners[number] for _, number in group), self.watched.sharding.of(part))
            self._first.append(Norms([0] * len(group), torch.stack(tuple(norms))))
        for group in by_kind(_moments(states, _SECOND)):
            self._second += FUSED._foreach_norm([tensor for tensor, _ in group], float("inf"))  # noqa: SLF001
        if part.number == 0:
            self._size = _step_size(part.optimizer.param_groups[0], state)

    def report(self, step: int) -> None:
        """Record what there is."""
        found: dict[str, Tensor] = {}
        if self._first:
            found[TAGS[0]] = fold(self._first)[1].reshape(())
        if self._second:
            found[TAGS[1]] = gathered(self._second).max()
        if self._size is not None:
            found[TAGS[2]] = self._size
        self.forget()
        if found:
            tags = tuple(found)
            reductions = self.watched.sharding.reductions(tags)
            self.run.record(tags, gathered(list(found.values())), step=step, reductions=reductions)

    def forget(self) -> None:
        """Begin anew."""
        self._first, self._second, self._size = [], [], None


def _moments(states: list[Mapping[str, Any]], names: tuple[str, ...]) -> Iterator[tuple[Tensor, int]]:
    for number, state in enumerate(states):
        moment = next((state[name] for name in names if isinstance(state.get(name), Tensor)), None)
        if moment is not None and moment.layout == torch.strided and (here := local(moment)).numel():
            yield here, number


def _step_size(group: Mapping[str, Any], state: Mapping[Any, Mapping[str, Any]]) -> Tensor | None:
    taken = next((state[entry].get("step") for entry in group["params"] if entry in state), None)
    if taken is None or "betas" not in group:
        return None
    known = [torch.as_tensor(each).detach() for each in (taken, group["lr"], *group["betas"][:2])]
    home = home_of(known)
    steps, rate, first, second = (each.to(home, torch.float64, non_blocking=True).reshape(()) for each in known)
    return rate * (1 - second**steps).sqrt() / (1 - first**steps)
