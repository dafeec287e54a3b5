"""Settings of the optimizer: rates of each parameter group, momentum.

Of many groups (an optimizer for each parameter has as many) those that have the same settings are told of once, under
the number of the first of them: a rate that is not there is that of the last number before it which it is equal to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

import torch

from sidestep import snapshot
from sidestep.probes.protocol import Probe
from sidestep.run import Run

TAGS: Final = (
    "train/lr",
    "train/lr_<group>",
    "train/wd",
    "train/wd_<group>",
    "train/optimizer/momentum",
    "train/optimizer/beta2",
)

#: Groups beyond which equal ones are told of once.
GROUPS_MAX: Final = 16
_SOURCES: Final = {"lr": "train/lr", "weight_decay": "train/wd"}


class OptimizerProbe(Probe):
    """Settings of the optimizers, as a step used them."""

    name: ClassVar[str] = "optimizer"
    cost: ClassVar[int] = 0
    tags: ClassVar[tuple[str, ...]] = TAGS

    def report(self, step: int) -> None:
        """Record them, of all optimizers."""
        groups = [group for optimizer in self.watched.optimizers for group in optimizer.param_groups]
        report(self.run, groups, step)


def report(run: Run, groups: Sequence[Mapping[str, Any]], step: int) -> None:
    """Record the rates of all groups, in the order of the optimizers; the first group has no number.

    Args:
        run: where to.
        groups: parameter groups; a rate may be a tensor, on a device or not.
        step: the step that they were used in.
    """
    rates: dict[str, Any] = {
        (tag if number == 0 else f"{tag}_{number}"): group[source]
        for source, tag in _SOURCES.items()
        for number, group in _told(groups)
        if source in group
    }
    rates |= _momentum(groups[0])
    far = {tag: rate for tag, rate in rates.items() if snapshot.is_on_device(rate)}
    near = {tag: snapshot.scalar(rate) for tag, rate in rates.items() if tag not in far}
    if near:
        run.record(tuple(near), tuple(near.values()), step=step)
    if far:
        stacked = torch.stack([rate.detach().reshape(()).to(torch.float32) for rate in far.values()])
        run.record(tuple(far), stacked, step=step)


def _told(groups: Sequence[Mapping[str, Any]]) -> Iterable[tuple[int, Mapping[str, Any]]]:
    if len(groups) <= GROUPS_MAX:
        return enumerate(groups)
    found: dict[tuple[Any, ...], tuple[int, Mapping[str, Any]]] = {}
    for number, group in enumerate(groups):
        settings = (group.get("lr"), group.get("weight_decay"), *(group.get("betas") or (group.get("momentum"),)))
        # A rate on a device cannot be looked at without waiting: such groups are the same where they share the tensor.
        key = tuple(id(one) if snapshot.is_on_device(one) else _plain(one) for one in settings)
        found.setdefault(key, (number, group))
    return found.values()


def _plain(setting: Any) -> float | None:
    return None if setting is None else snapshot.scalar(setting)


def _momentum(group: Mapping[str, Any]) -> dict[str, Any]:
    betas = group.get("betas")
    if betas is not None:
        return dict(zip(TAGS[4:6], betas[:2], strict=True))
    return {TAGS[4]: group["momentum"]} if "momentum" in group else {}
