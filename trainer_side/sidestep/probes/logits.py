"""What a classifier puts out: size of its logits, confidence, entropy. A hook on the model in sampled steps alone.

Logits are the output, its `logits`, or its first tensor, with classes in the last dimension. Of very many a part is
looked at: rows evenly spread, at most `ELEMENTS` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from sidestep.blocks import local
from sidestep.probes.protocol import Probe

TAGS: Final = (
    "train/logits/max",
    "train/logits/mean",
    "train/logits/std",
    "train/logits/confidence",
    "train/logits/entropy",
    "train/logits/marginal_entropy",
)
#: Logits that are looked at.
ELEMENTS: Final = 1 << 19


class LogitProbe(Probe):
    """Logits of the first forward pass of a step."""

    name: ClassVar[str] = "logits"
    cost: ClassVar[int] = 2
    tags: ClassVar[tuple[str, ...]] = TAGS
    hooks_forward: ClassVar[bool] = True

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._remove: Callable[[], None] | None = None
        self._values: Tensor | None = None

    def begin(self, step: int) -> None:  # noqa: ARG002
        """Hang a hook on the model."""
        self.forget()
        self._remove = self.watched.model.register_forward_hook(self.hook(self._listen)).remove

    def report(self, step: int) -> None:
        """Record what it has seen."""
        values = self._values
        self.forget()
        if values is not None:
            self.run.record(TAGS, values, step=step)

    def forget(self) -> None:
        """Take the hook away."""
        if self._remove is not None:
            self._remove()
        self._remove = self._values = None

    def detach(self) -> None:
        """Take the hook away."""
        self.forget()

    def _listen(self, module: nn.Module, _arguments: Any, output: Any) -> None:
        if self._values is not None or not module.training or not torch.is_grad_enabled():
            return
        logits = logits_of(output)
        if logits is not None:
            with torch.no_grad():
                self._values = measure(local(logits))


def logits_of(output: Any) -> Tensor | None:
    """The logits in what a model returns: of shape (..., classes), two classes at least; None where there are none."""
    if not isinstance(output, Tensor):
        named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        first = output[0] if isinstance(output, Sequence) and output and not isinstance(output, str) else None
        output = named if named is not None else first
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    return output if output.ndim >= 2 and output.shape[-1] >= 2 and output.numel() else None


def measure(logits: Tensor) -> Tensor:
    """Numbers of logits of shape (..., classes), in the order of `TAGS`: float32 of shape (6,). Entropies in nats."""
    rows = logits.reshape(-1, logits.shape[-1])
    most = max(1, ELEMENTS // rows.shape[1])
    rows = rows[:: math.ceil(len(rows) / most)].float()
    log_share = torch.log_softmax(rows, dim=-1)
    share = log_share.exp()
    deviation, mean = torch.std_mean(rows, correction=0)
    return torch.stack(
        (
            rows.max(),
            mean,
            deviation,
            share.amax(-1).mean(),
            torch.special.entr(share).sum(-1).mean(),
            torch.special.entr(share.mean(0)).sum(),
        )
    )
