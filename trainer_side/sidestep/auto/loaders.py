"""Data loaders: where epochs begin, how long training waits for batches, and when a validation is over.

A pass is one iteration over a `DataLoader`. The loader whose batch came last before the first optimizer step is the
one that is trained on; each further pass over it (or over one that was made anew for the same kind of data) that a
step is taken in is the next epoch. The first is epoch 1. An epoch lasts until the next begins, so that a validation
after its last batch belongs to it.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.utils.data import DataLoader
from torch.utils.data import dataloader as torch_loader

from sidestep.auto.datasets import shared_dataset
from sidestep.auto.patching import Faults, wrap
from sidestep.run import Run
from sidestep_schemas.wire import TIER_EPOCH

#: Of a whole epoch, told by the loader; where it is seen, the time probe does not estimate it from outside.
TAGS: Final = ("perf/data_loading_frac", "train/num_batches")

Kind = tuple[str, int | None]


class Pass:
    """One iteration over a loader.

    Args:
        number: of the pass, rising.
        loader: what is iterated over.

    Attributes:
        kind: type of the data set and number of its samples: the same where a loader is made anew.
        is_over: whether it has given its last batch.
        batches: how many it gave.
        is_validation: whether one of them went into a loss without gradients.
    """

    def __init__(self, number: int, loader: DataLoader[Any]) -> None:
        self.number = number
        self.kind: Kind = (type(loader.dataset).__name__, _samples(loader))
        self.is_over = False
        self.batches = 0
        self.is_validation = False
        self._loader = weakref.ref(loader)
        self._began = self._seen = time.perf_counter()
        self._waited = 0.0

    @property
    def loader(self) -> DataLoader[Any] | None:
        """The loader, while it lives."""
        return self._loader()

    def wait(self, seconds: float) -> None:
        """Note that a batch, or the end, was waited for until now."""
        self._seen = time.perf_counter()
        self._waited += seconds

    @property
    def waiting_share(self) -> float | None:
        """Share of the time since it began that was spent in waiting."""
        spent = self._seen - self._began
        return self._waited / spent if spent > 0 else None


class Loaders:
    """Sees the passes over all loaders of this process.

    Args:
        faults: guards what is done here.
        is_on: whether capture is.
        ended: called with a pass that is over and is none over the training data.
    """

    def __init__(self, faults: Faults, is_on: Callable[[], bool], ended: Callable[[Pass], None]) -> None:
        self._faults = faults
        self._is_on = is_on
        self._ended = ended
        self._passes: weakref.WeakKeyDictionary[Any, Pass] = weakref.WeakKeyDictionary()
        self._count = 0
        self._epoch: Pass | None = None
        self._run: Run | None = None
        self._is_compared = False
        self.epochs = 0
        self.last: Pass | None = None

    def install(self) -> None:
        """See where a pass begins, and each of its batches."""
        wrap(DataLoader, "__iter__", self._around_iter)
        # The class of all iterators over loaders; scripts get the very objects that they would get without us.
        wrap(torch_loader._BaseDataLoaderIter, "__next__", self._around_next)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    @property
    def trained_on(self) -> Pass | None:
        """The pass over the training data that is, or was last, trained on."""
        return self._epoch

    def begin_step(self, run: Run) -> None:
        """An optimizer step is about to be taken: with the first one of a pass an epoch begins."""
        last, epoch = self.last, self._epoch
        if last is None or last is epoch:
            return
        if epoch is None or (last.kind == epoch.kind and last.number > epoch.number):
            self.flush()
            self._run = run
            self._epoch = last
            self.epochs += 1
            run.epoch(self.epochs)

    def is_trained_on(self, one: Pass) -> bool:
        """Whether a pass goes over the loader that is trained on."""
        epoch = self._epoch
        return epoch is not None and (one is epoch or (one.loader is not None and one.loader is epoch.loader))

    def flush(self) -> None:
        """Record how much of the epoch so far was waiting, and its batches."""
        epoch, run = self._epoch, self._run
        share = epoch.waiting_share if epoch is not None else None
        if run is not None and epoch is not None and share is not None:
            run.record(TAGS, (share, float(epoch.batches)), epoch=float(self.epochs), tier=TIER_EPOCH)

    def _around_iter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __iter__(loader: DataLoader[Any]) -> Any:  # noqa: N807 - the name stands in tracebacks
            if not self._is_on():
                return original(loader)
            began = time.perf_counter()
            iterator = original(loader)
            self._faults.guard(self._begin, loader, iterator, began)
            return iterator

        return __iter__

    def _around_next(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __next__(iterator: Any) -> Any:  # noqa: N807 - the name stands in tracebacks
            if not self._is_on():
                return original(iterator)
            began = time.perf_counter()
            try:
                batch = original(iterator)
            except StopIteration:
                self._faults.guard(self._note, iterator, began, True)
                raise
            self._faults.guard(self._note, iterator, began, False)
            return batch

        return __next__

    def _begin(self, loader: DataLoader[Any], iterator: Any, began: float) -> None:
        self._count += 1
        one = Pass(self._count, loader)
        one.wait(time.perf_counter() - began)  # starting workers is waiting too
        self._passes[iterator] = one

    def _note(self, iterator: Any, began: float, is_over: bool) -> None:
        one = self._passes.get(iterator)
        if one is None:
            return
        one.wait(time.perf_counter() - began)
        if not is_over:
            self.last = one
            one.batches += 1
        elif not one.is_over:
            one.is_over = True
            if not torch.is_grad_enabled() or not self.is_trained_on(one):
                self._ended(one)
                self._compare(one)

    def _compare(self, one: Pass) -> None:
        """Once, at the end of the first validation: whether it shares its dataset with the training."""
        train, val, run = self._epoch.loader if self._epoch is not None else None, one.loader, self._run
        is_validation = one.is_validation or not torch.is_grad_enabled()
        if self._is_compared or run is None or train is None or val is None or train is val or not is_validation:
            return
        self._is_compared = True
        shared = shared_dataset(train, val)
        if shared is not None:
            run.mark("shared_dataset", why=shared.why, dataset=shared.kind, is_random=shared.is_random)


def _samples(loader: DataLoader[Any]) -> int | None:
    # Of the sampler: the loader's own length makes torch count an iterable data set's batches, and warn.
    try:
        return len(loader.sampler)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError):
        return None
