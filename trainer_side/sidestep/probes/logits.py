"""What a classifier puts out: size of its logits, confidence, entropy, how they agree with the labels, and what
gradient arrives at them. Hooks on the model in sampled steps; labels as `sidestep.probes.labels` finds them.

Logits are the output, its `logits`, or its first tensor, with classes in the last dimension. Of very many a part is
looked at: rows evenly spread, at most `ELEMENTS` numbers. Labels go with the logits that a loss function was given
with them, or, where a script tells of them, with the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from sidestep.blocks import seen
from sidestep.probes.gathering import Turn, bring_home, tally
from sidestep.probes.labels import Batch
from sidestep.probes.listening import FirstCall
from sidestep.probes.protocol import Watched
from sidestep_schemas.wire import TIER_EPOCH

TAGS: Final = (
    "train/logits/max",
    "train/logits/mean",
    "train/logits/std",
    "train/logits/confidence",
    "train/logits/entropy",
    "train/logits/marginal_entropy",
)
TARGET_TAGS: Final = ("train/logits/agreement", "train/logits/target_confidence")
GRADIENT_TAG: Final = "train/logits/gradient_norm"
CLASS_TAGS: Final = (
    "<split>/logits/class_accuracy",
    "<split>/logits/worst_class_accuracy",
    "<split>/logits/worst_class",
)
#: Logits that are looked at.
ELEMENTS: Final = 1 << 19
#: Accuracy of each class is counted where there are no more.
CLASSES: Final = 1024
#: A class's accuracy is compared with others' from so many predictions on.
_ENOUGH: Final = 10


class LogitProbe(FirstCall):
    """Logits of the first forward pass of a step, and how many of each class are right, in validations too."""

    name: ClassVar[str] = "logits"
    tags: ClassVar[tuple[str, ...]] = (*TAGS, *TARGET_TAGS, GRADIENT_TAG, *CLASS_TAGS)

    def __init__(self, *, every: int | str | None = None) -> None:
        super().__init__(every=every)
        self._rows: Tensor | None = None
        self._told: Batch | None = None
        self._is_matched = False
        self._counts: dict[str, Tensor] = {}
        self._leave: Callable[[], None] | None = None

    def attach(self, watched: Watched) -> None:
        """Listen for labels."""
        super().attach(watched)
        self._turn = Turn(self.run)
        self._leave = watched.labels.listen(self.hook(self._labelled))

    def returned(self, output: Any) -> None:
        """Measure the logits, and wait for their gradient."""
        logits = logits_of(output)
        if logits is None:
            return
        rows = seen(logits).detach()
        self.keep(TAGS, measure(rows))
        if self._told is not None:
            self._match(rows, self._told)
        elif self.watched.labels.is_told:  # the script tells of labels later; else the logits are not held on to
            self._rows = rows
        if logits.requires_grad:
            sample = self._found

            def arrived(gradient: Tensor) -> None:
                self._arrived(gradient, sample)

            logits.register_hook(self.hook(arrived))

    def forget(self) -> None:
        """Take the hooks away."""
        super().forget()
        self._rows = self._told = None
        self._is_matched = False

    def detach(self) -> None:
        """Take the hooks away, and record the last epoch."""
        super().detach()
        if self._leave is not None:
            self._leave()
            self._leave = None
            self._ship()

    def _arrived(self, gradient: Tensor, sample: object) -> None:
        if sample is not self._found or (GRADIENT_TAG,) in self._found:
            return  # of an earlier step, or a second backward pass
        with torch.no_grad():
            norm = torch.linalg.vector_norm(seen(gradient), dtype=torch.float32)
            # What a GradScaler multiplied the loss by; `get_scale` would wait for the device.
            scale = getattr(self.watched.extras.get("scaler"), "_scale", None)
            self.keep((GRADIENT_TAG,), norm if scale is None else norm / scale.to(norm.device, non_blocking=True))

    def _labelled(self, batch: Batch) -> None:
        if self._turn.has_come():
            self._ship()
        if batch.split != "train":
            self._count(batch.split, batch.rows, batch)
        elif self._removers and not self._is_matched:  # a sample is open
            rows = batch.rows if batch.logits is not None else self._rows
            if rows is not None:
                self._match(rows, batch)
            else:
                self._told = batch

    def _match(self, logits: Tensor, batch: Batch) -> None:
        rows = logits.reshape(-1, logits.shape[-1])
        if len(rows) != batch.labels.numel():
            return
        self._rows, self._is_matched = None, True
        self.keep(TARGET_TAGS, measure_against(rows, batch.labels.reshape(-1), batch.ignored))
        self._count("train", rows, batch)

    def _count(self, split: str, rows: Tensor | None, batch: Batch) -> None:
        if rows is None or rows.shape[1] > CLASSES or len(rows) != batch.labels.numel():
            return
        classes, labels = rows.shape[1], batch.labels.reshape(-1)
        known = self._counts.get(split)
        if known is None or known.shape[1] != classes or known.device != rows.device:
            known = self._counts[split] = torch.zeros((2, classes), dtype=torch.int64, device=rows.device)
        is_meant = (labels != batch.ignored) & (labels >= 0) & (labels < classes)
        tally(known[0], labels, is_meant & (rows.argmax(1) == labels))
        tally(known[1], labels, is_meant)

    def _ship(self) -> None:
        counts, self._counts = self._counts, {}
        at: dict[str, Any] = {"step": max(self.run.step, 0), "epoch": self._turn.epoch}
        self._turn.begin()

        def deliver(split: str, numbers: Sequence[int]) -> None:
            tags = tuple(tag.replace("<split>", split) for tag in CLASS_TAGS)
            self.run.tensor(tags[0], torch.tensor(shares(numbers), dtype=torch.float32), **at)
            least = worst(numbers)
            if least is not None:
                self.run.record(tags[1:], least, **at, tier=TIER_EPOCH)

        bring_home(self.run, {split: count.reshape(-1) for split, count in counts.items()}, deliver)


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
    rows = rows[:: _stride(rows)].float()
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


def measure_against(rows: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """How logits of shape (n, classes) go with labels of shape (n,), in the order of `TARGET_TAGS`: share of the rows
    whose largest logit is the label's, and mean probability of the label; float32 of shape (2,), NaN of no rows."""
    stride = _stride(rows)
    rows, labels = rows[::stride].float(), labels[::stride].long()
    is_meant = (labels != ignored) & (labels >= 0) & (labels < rows.shape[1])
    count = is_meant.sum()
    right = ((rows.argmax(1) == labels) & is_meant).sum()
    place = labels.clamp(0, rows.shape[1] - 1).unsqueeze(1)
    share = torch.log_softmax(rows, dim=-1).gather(1, place).squeeze(1).exp()
    return torch.stack((right / count, torch.where(is_meant, share, 0.0).sum() / count))


def shares(counts: Sequence[int]) -> list[float]:
    """Accuracy of each class; NaN of one that did not occur.

    Args:
        counts: right predictions of each class, then predictions of each.
    """
    half = len(counts) // 2
    return [right / count if count else math.nan for right, count in zip(counts[:half], counts[half:], strict=True)]


def worst(counts: Sequence[int]) -> tuple[float, int] | None:
    """Accuracy and number of the class that has least, among those that occurred often enough."""
    often = counts[len(counts) // 2 :]
    return min(((one, label) for label, one in enumerate(shares(counts)) if often[label] >= _ENOUGH), default=None)


def _stride(rows: Tensor) -> int:
    return -(-len(rows) // max(1, ELEMENTS // rows.shape[1]))
