"""What a training is fed: the model's input, labels, padding, and a sketch of all samples by split.

In sampled steps mean, spread and largest value of the model's first argument of floats, a fingerprint of its first
tensor, label entropy, padding. Of each batch, in training and in validation, the hashes of its samples go into a
sketch of their split, and its labels are counted; both are shipped when the epoch ends. Two sketches tell how many
samples two splits share. Samples are what the model is called with, or what a script shows by
`run.batch`: augmented ones are the same only before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from sidestep.blocks import seen
from sidestep.probes.gathering import Turn, bring_home, tally
from sidestep.probes.labels import Batch
from sidestep.probes.listening import FirstCall
from sidestep.probes.protocol import Watched
from sidestep.probes.sketch import Sketch, fingerprint, row_sums

TAGS: Final = ("train/input/mean", "train/input/std", "train/input/absmax")
PRINT_TAGS: Final = ("train/input/fingerprint", "train/input/fingerprint_low")
LENGTH_TAGS: Final = ("train/data/padding_share", "train/data/length_mean", "train/data/length_max")
LABEL_TAGS: Final = ("train/data/label_entropy", "train/data/label_classes")

#: Labels of a batch that are looked at.
_LABELS: Final = 1 << 16
#: Bins of a histogram of classes: of more classes several share one.
_BINS: Final = 1024


class DataProbe(FirstCall):
    """Inputs and labels.

    Args:
        every: when it samples.
        sketch: hashes kept of each split; 0 keeps none.
        padding: the token that fills up sequences, where no `attention_mask` tells.
    """

    name: ClassVar[str] = "data"
    tags: ClassVar[tuple[str, ...]] = (
        *(*TAGS, *PRINT_TAGS, *LENGTH_TAGS, *LABEL_TAGS),
        *("data/sketch_<split>", "data/classes_<split>"),
    )

    def __init__(self, *, every: int | str | None = None, sketch: int = 2048, padding: int | None = None) -> None:
        super().__init__(every=every)
        self._size = sketch
        self._padding = padding
        self._sketches: dict[str, Sketch] = {}
        self._classes: dict[str, tuple[Tensor, int]] = {}
        self._shown: set[str] = set()
        self._has_labels = False
        self._leave: list[Callable[[], None]] = []

    def attach(self, watched: Watched) -> None:
        """Listen to each call of the model, for labels, and to what the script shows."""
        super().attach(watched)
        self._turn = Turn(self.run)
        self._leave.append(watched.labels.listen(self.hook(self._labelled)))
        if self._size:
            listen = self.hook(self._listen)
            self._leave.append(watched.model.register_forward_pre_hook(listen, with_kwargs=True).remove)
            self.run.at_batch(self.hook(self._show))

    def called(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Measure the input."""
        given = list(_tensors(arguments, named))
        floats = next((entry for entry in given if entry.is_floating_point()), None)
        if floats is not None:
            self.keep(TAGS, measure(seen(floats)))
        if given:
            self.keep(PRINT_TAGS, fingerprint(row_sums(seen(given[0]))))
        is_real = _mask(given, named, self._padding)
        if is_real is not None:
            self.keep(LENGTH_TAGS, lengths(is_real))

    def forget(self) -> None:
        """Take the hooks of a sample away."""
        super().forget()
        self._has_labels = False

    def detach(self) -> None:
        """Take every hook away, and record the last epoch."""
        super().detach()
        leave, self._leave = self._leave, []
        for remove in leave:
            remove()
        if leave:
            self._ship()

    def _listen(self, module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        split = "val" if not module.training else "train" if torch.is_grad_enabled() else ""
        first = next(_tensors(arguments, named), None) if split and split not in self._shown else None
        if first is not None:
            self._add(split, first)

    def _show(self, inputs: Any, _labels: Any, split: str) -> None:
        if isinstance(inputs, Tensor) and inputs.ndim and inputs.numel() and self._leave:
            self._shown.add(split)
            self._add(split, inputs)

    def _add(self, split: str, samples: Tensor) -> None:
        if self._turn.has_come():
            self._ship()
        with torch.no_grad():
            samples = seen(samples)
            known = self._sketches.get(split)
            if known is None or known.device != samples.device:
                known = self._sketches[split] = Sketch(self._size, samples.device)
            known.add(row_sums(samples))

    def _labelled(self, batch: Batch) -> None:
        if self._turn.has_come():
            self._ship()
        labels = batch.labels.reshape(-1)
        self._count(batch, labels)
        if batch.split == "train" and self._removers and not self._has_labels:  # a sample is open
            self._has_labels = True
            self.keep(LABEL_TAGS, measure_labels(labels, batch.ignored))

    def _count(self, batch: Batch, labels: Tensor) -> None:
        counts, width = self._classes.get(batch.split, (None, 0))
        if counts is None or counts.device != labels.device:
            classes = batch.classes
            width = max(1, -(-classes // _BINS))
            bins = -(-classes // width) or _BINS
            counts = torch.zeros(bins, dtype=torch.int64, device=labels.device)
            self._classes[batch.split] = counts, width
        tally(counts, labels, (labels != batch.ignored) & (labels >= 0), width)

    def _ship(self) -> None:
        at: dict[str, Any] = {"step": max(self.run.step, 0), "epoch": self._turn.epoch}
        classes, self._classes = self._classes, {}
        self._turn.begin()

        def deliver(name: str, numbers: Sequence[int]) -> None:
            kind, _, split = name.partition("_")
            if kind == "sketch":
                self.run.tensor(f"data/{name}", torch.tensor(numbers, dtype=torch.int64), **at)
                return
            width = classes[split][1]
            last = max((label for label, count in enumerate(numbers) if count), default=0) + 1
            edges = [label * width - 0.5 for label in range(last + 1)]
            self.run.histogram(f"data/{name}", counts=numbers[:last], edges=edges, **at)

        sketches = {f"sketch_{split}": sketch.least() for split, sketch in self._sketches.items()}
        bring_home(self.run, sketches | {f"classes_{split}": counts for split, (counts, _) in classes.items()}, deliver)


def measure(batch: Tensor) -> Tensor:
    """Numbers of a batch, in the order of `TAGS`: float32 of shape (3,)."""
    flat = batch.reshape(-1)
    deviation, mean = torch.std_mean(flat.float(), correction=0)
    least, largest = torch.aminmax(flat)
    return torch.stack((mean, deviation, torch.maximum(-least, largest).float()))


def measure_labels(labels: Tensor, ignored: int) -> Tensor:
    """Entropy of a batch's labels in nats, and how many different ones there are: float32 of shape (2,).

    Each of n labels occurs c times: H = ln n - (1/n) Σ ln c over labels, and the number of classes is Σ 1/c. That needs
    no number of classes, for which one would have to wait.
    """
    labels = labels[:: -(-len(labels) // _LABELS)].long().sort().values
    times = torch.searchsorted(labels, labels, right=True) - torch.searchsorted(labels, labels)
    is_meant = ((labels != ignored) & (labels >= 0)).float()
    count = is_meant.sum().clamp_(min=1)
    entropy = count.log() - (is_meant * times.log()).sum() / count
    return torch.stack((entropy.clamp_(min=0), (is_meant / times).sum()))


def lengths(is_real: Tensor) -> Tensor:
    """Share of padding, mean and largest number of tokens of sequences, in the order of `LENGTH_TAGS`.

    Args:
        is_real: bool of shape (sequences, positions), False where a sequence is filled up.
    """
    tokens = is_real.sum(1).float()
    return torch.stack((1 - tokens.mean() / is_real.shape[1], tokens.mean(), tokens.max()))


def _mask(given: Sequence[Tensor], named: Mapping[str, Any], padding: int | None) -> Tensor | None:
    mask = named.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.numel():
        return seen(mask) != 0
    tokens = next((entry for entry in given if entry.ndim == 2 and not entry.is_floating_point()), None)
    return None if tokens is None or padding is None else seen(tokens) != padding


def _tensors(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Iterator[Tensor]:
    for entry in (*arguments, *named.values()):
        if isinstance(entry, Tensor) and entry.ndim and entry.numel():
            yield entry
