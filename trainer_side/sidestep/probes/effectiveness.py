"""What a step did against what it should have done: how much of the expected change arrives in the weights.

A discrete or quantised optimizer, and any optimizer of weights in low precision, applies another change a = θ' - θ
than the continuous one e that its rule asks for (`sidestep.probes.expected`). Over the coordinates of all parameters,
and over those of each block:

    effectiveness       ‖a‖ / ‖e‖
    cosine_expected     <a, e> / (‖a‖ ‖e‖)
    information_lost    ‖a - e‖ / ‖e‖
    step_size_ratio     Σ|a| / Σ|e|
    changed_share       share of the weights that are others than before, a ≠ 0; changed_count is their number
    expected_norm, applied_norm   ‖e‖ and ‖a‖
    update_frequency    of a block: share of the samples so far in which any weight of it has changed

Sums are estimated from a sample of coordinates (`sidestep.probes.sample`), Σ_p N_p / n_p Σ_i; `exact` takes all of
them. Where nothing was expected and nothing done, effectiveness, cosine and step size are 1, and nothing is lost;
where something was done that nobody expected, ratios are infinite.

Of a sharded model nothing is recorded: a rank has the changes of its part, whose ratios say nothing of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from sidestep.probes.expected import Ask, Rule, rule_of
from sidestep.probes.norms import Placed, home_of
from sidestep.probes.protocol import Part, Probe, Watched
from sidestep.probes.sample import Coordinates, coordinates

TAGS: Final = (
    "train/updates/effectiveness",
    "train/updates/cosine_expected",
    "train/updates/information_lost",
    "train/updates/step_size_ratio",
    "train/updates/changed_share",
    "train/updates/changed_count",
    "train/updates/expected_norm",
    "train/updates/applied_norm",
    "train/updates/effectiveness/<block>",
    "train/updates/cosine_expected/<block>",
    "train/updates/information_lost/<block>",
    "train/updates/changed_share/<block>",
    "train/updates/update_frequency/<block>",
)
#: Of the whole, in the order of the rows that `ratios` gives; of blocks are those that follow.
_WHOLE: Final = 8
#: Of each block, in the order of the rows that `ratios` gives.
_OF_BLOCKS: Final = (0, 1, 2, 4)


class EffectivenessProbe(Probe):
    """Applied against expected changes of a step.

    An optimizer with a method `expected_update(parameter)` tells the change it would make if it could, a tensor of
    the parameter's shape, or None; it is asked before the step, when the gradients are there. SGD, Adam and AdamW,
    and what derives from them, need none. A step with a closure makes its gradients too late, and is left out.

    Args:
        every: when it samples.
        expected: asked instead of the optimizer: `expected(parameter)`.
        exact: from all weights. It then takes up to eight times their memory in float32 for as long as a step lasts,
            and keeps two copies.
    """

    name: ClassVar[str] = "effectiveness"
    cost: ClassVar[int] = 2
    tags: ClassVar[tuple[str, ...]] = TAGS

    def __init__(self, *, every: int | str | None = None, expected: Ask | None = None, exact: bool = False) -> None:
        super().__init__(every=every)
        self._expected = expected
        self._is_exact = exact
        self._samples: dict[int, tuple[int, list[_Sample]]] = {}
        self._has_gradients: set[int] = set()
        self._open: list[int] = []
        self._sums: list[Tensor] = []
        self._counts: list[int] = []
        self._moved: Tensor | None = None
        self._taken = 0

    def attach(self, watched: Watched) -> None:
        """Say where nothing will be recorded."""
        super().attach(watched)
        if watched.sharding.is_sharded:
            what = "probe 'effectiveness' records nothing: parameters are sharded, and a rank has part of a change only"
            self.run.complain("effectiveness", "sharded", what)

    def gradients(self, part: Part) -> None:
        """They are there before the step."""
        if not self.watched.sharding.is_sharded:
            self._has_gradients.add(part.number)

    def before_step(self, part: Part) -> None:
        """Keep the weights and what is expected."""
        if part.number not in self._has_gradients:
            return
        samples = self._samples_of(part)
        if samples:
            self._open.append(part.number)
        for one in samples:
            one.take(part.grad_scale)

    def after_step(self, part: Part) -> None:
        """Compare."""
        if part.number not in self._open:
            return
        for one in self._samples[part.number][1]:
            self._sums.append(one.compare(len(self.watched.names)))
            self._counts = _added(self._counts or [0] * len(self.watched.names), one.coordinates)

    def report(self, step: int) -> None:
        """Record all."""
        sums, counts = self._sums, self._counts
        self.forget()
        if not sums:
            return
        home = home_of(sums)
        whole = torch.stack([one.to(home, torch.float32, non_blocking=True) for one in sums]).sum(0)
        blocks = tuple(block for block, count in enumerate(counts) if count)
        found = ratios(whole.sum(1), sum(counts))
        single = ratios(whole, torch.tensor(counts).clamp_min(1).to(home, non_blocking=True)).unbind()
        rows = (*(single[number] for number in _OF_BLOCKS), self._frequency(whole[_CHANGED]))
        # Indexed by single numbers: a list of them would be copied to the device, and waited for.
        values = torch.stack([row[block] for row in rows for block in blocks])
        self.run.record(_tags(tuple(self.watched.names), blocks), torch.cat((found, values)), step=step)

    def forget(self) -> None:
        """Begin anew."""
        self._sums, self._counts, self._open = [], [], []
        self._has_gradients = set()

    def _frequency(self, changed: Tensor) -> Tensor:
        now = (changed > 0).float()
        self._moved = now if self._moved is None else self._moved.to(now.device, non_blocking=True) + now
        self._taken += 1
        return self._moved / self._taken

    def _samples_of(self, part: Part) -> list[_Sample]:
        version, samples = self._samples.get(part.number, (-1, []))
        if version == part.version:
            return samples
        rule = rule_of(part.optimizer, self._expected)
        if rule is None:
            kind = type(part.optimizer).__name__
            what = f"probe 'effectiveness' does not know what {kind} should change: give it expected_update(parameter)"
            self.run.complain("effectiveness", kind, what)
        samples = [] if rule is None else _samples(part.optimizer, part.placed, rule, exact=self._is_exact)
        self._samples[part.number] = part.version, samples
        return samples


#: Rows of sums: what is added up over coordinates.
_APPLIED, _EXPECTED, _LOST, _INNER, _APPLIED_SIZE, _EXPECTED_SIZE, _CHANGED = range(7)


class _Place(NamedTuple):
    optimizer: Optimizer
    group: int  # its number: loading a state puts other groups in place of these
    rule: Rule


class _Sample:
    # Of the parameters of one group on one device.

    def __init__(self, coordinates: Coordinates, place: _Place) -> None:
        self.coordinates = coordinates
        self._place = place
        self._before = coordinates.rows()
        self._expected = self._before.whole
        self._weights = coordinates.weights()

    def take(self, grad_scale: Tensor | None) -> None:
        self.coordinates.read(self._before)
        optimizer, group, rule = self._place
        self._expected = rule(optimizer, optimizer.param_groups[group], self.coordinates, grad_scale)

    def compare(self, blocks: int) -> Tensor:
        now = self.coordinates.rows()
        self.coordinates.read(now)
        applied, expected = now.whole.sub_(self._before.whole), self._expected
        lost = applied - expected
        products = (applied**2, expected**2, lost**2, applied * expected, applied.abs(), expected.abs(), applied != 0)
        rows = torch.stack([product.to(applied.dtype) for product in products])
        return self.coordinates.add_up(rows * self._weights, blocks)


def ratios(sums: Tensor, count: Tensor | int) -> Tensor:
    """The quantities of `TAGS[:8]`, from sums over coordinates.

    Args:
        sums: shape (7,) or (7, blocks): Σ a², Σ e², Σ (a - e)², Σ a e, Σ |a|, Σ |e|, and how many a are not 0.
        count: of all coordinates.

    Returns:
        Shape (8,) or (8, blocks).
    """
    applied, expected = sums[_APPLIED].sqrt(), sums[_EXPECTED].sqrt()
    is_idle = (applied == 0) & (expected == 0)
    one = torch.ones_like(applied)
    cosine = sums[_INNER] / (applied * expected).clamp_min(torch.finfo(applied.dtype).tiny)
    rows = (
        torch.where(is_idle, one, applied / expected),
        torch.where(is_idle, one, cosine),
        torch.where(is_idle, 0 * one, sums[_LOST].sqrt() / expected),
        torch.where(is_idle, one, sums[_APPLIED_SIZE] / sums[_EXPECTED_SIZE]),
        sums[_CHANGED] / count,
        sums[_CHANGED],
        expected,
        applied,
    )
    return torch.stack(rows)


def _samples(optimizer: Optimizer, placed: Sequence[Placed], rule: Rule, *, exact: bool) -> list[_Sample]:
    blocks = dict(placed)
    samples: list[_Sample] = []
    for number, group in enumerate(optimizer.param_groups):
        mine = sorted((Placed(entry, blocks[entry]) for entry in group["params"]), key=lambda entry: entry.block)
        samples += [_Sample(each, _Place(optimizer, number, rule)) for each in coordinates(mine, exact=exact)]
    return samples


def _added(counts: Sequence[int], at: Coordinates) -> list[int]:
    counts = list(counts)
    for block, size in zip(at.blocks, at.sizes, strict=True):
        counts[block] += size
    return counts


@lru_cache(maxsize=64)
def _tags(names: tuple[str, ...], blocks: tuple[int, ...]) -> tuple[str, ...]:
    return (*TAGS[:_WHOLE], *(tag.replace("<block>", names[block]) for tag in TAGS[_WHOLE:] for block in blocks))
