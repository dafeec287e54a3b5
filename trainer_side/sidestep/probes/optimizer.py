"""Settings of the optimizer: rates of each parameter group, momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        for number, group in enumerate(groups)
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


def _momentum(group: Mapping[str, Any]) -> dict[str, Any]:
    betas = group.get("betas")
    if betas is not None:
        return dict(zip(TAGS[4:6], betas[:2], strict=True))
    return {TAGS[4]: group["momentum"]} if "momentum" in group else {}
