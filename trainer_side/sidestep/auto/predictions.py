"""What goes into torch's loss functions: accuracy and confidence, and the loss of a validation.

A call with gradients belongs to training and is looked at on sampled steps. One without belongs to a validation and
is always looked at; a validation ends with its loader, or with the next optimizer step, and gives one number each:

    <split>/acc                      right predictions / predictions, those of `ignore_index` left out
    <split>/logits/confidence        mean of the largest probability
    <split>/loss_total               mean over what the loss function averages over, all batches together
    val/num_batches                  batches of a validation: the loader's, else calls of its loss function

The split is "train", or of a validation: what a variable of the script's called `split` or `phase` says; else
"train_eval" over the loader that is trained on; else "val" for the first data, "val_2" for the second, and so on.
Where a validation calls several loss functions, each has its own `<split>/loss_<function>`.

Of large batches a part is looked at: every n-th row, so that at most 2^20 logits are read in training and 2^22 in
validation. A loss that a script computes without one of these functions is not seen here; neither is what runs
inside of `torch.compile`, nor a call without gradients in the middle of a pass over the training data. What Lightning
tries out before a fit (its sanity check) is no validation.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import Tensor

from sidestep.auto.loaders import Kind, Loaders, Pass
from sidestep.auto.patching import Faults, argument, wrap
from sidestep.run import Run
from sidestep.tracing import is_plain
from sidestep_schemas.wire import TIER_EPOCH, TIER_STEP

_CLASSES: Final = ("cross_entropy", "nll_loss")
_BINARY: Final = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
_OTHER: Final = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")

BATCHES_TAG: Final = ("val/num_batches",)

_TRAIN_ELEMENTS: Final = 2**20
_VAL_ELEMENTS: Final = 2**22
_TRAIN_CALLS_MAX: Final = 256
_SPLITS_MAX: Final = 8
_SPLIT_VARIABLES: Final = ("split", "phase")
_SPLIT_WORDS: Final = {
    "train": "train_eval", "training": "train_eval", "val": "val", "valid": "val", "validation": "val", "eval": "val",
    "dev": "val", "test": "test",
}  # fmt: skip
_FRAMES: Final = 12
#: The function that calls Lightning's validation of a few batches before the first step.
_SANITY_CHECK: Final = "_run_sanity_check"


class Call(NamedTuple):
    """One call of a loss function."""

    function: str
    logits: Tensor
    target: Tensor
    reduction: str
    ignored: int | None
    result: Tensor


class Batches:
    """Counts the batches of a validation.

    Args:
        function: the loss function whose calls count where no loader tells.
    """

    def __init__(self, function: str) -> None:
        self.count = 0
        self._function = function
        self._at: tuple[int, int] | None = None

    def note(self, function: str, source: Pass | None) -> None:
        """A call of a loss function on a batch of a pass; None for one that came from elsewhere."""
        at = (source.number, source.batches) if source is not None else None
        self.count += function == self._function if at is None else at != self._at
        self._at = at


#: What is added up: right, predictions, sum of confidences, their number, sum of losses, their weight.
Sums = tuple[float, ...] | Tensor


class Predictions:
    """Sees calls of loss functions.

    Args:
        faults: guards what is done here.
        is_on: whether capture is.
        is_sampled: whether the step that is under way is sampled.
        is_training: whether the model is in training mode, where that is known.
        has_begun: whether an optimizer has stepped.
        loaders: which pass a batch came from.
    """

    def __init__(  # noqa: PLR0917 - all that it asks of a capture
        self,
        faults: Faults,
        is_on: Callable[[], bool],
        is_sampled: Callable[[], bool],
        is_training: Callable[[], bool],
        has_begun: Callable[[], bool],
        loaders: Loaders,
    ) -> None:
        self._faults = faults
        self._is_on = is_on
        self._is_sampled = is_sampled
        self._is_training = is_training
        self._has_begun = has_begun
        self._loaders = loaders
        self._is_inside = False
        self._train: list[Sums] = []
        self._val: dict[tuple[str, str], Sums] = {}
        self._batches: dict[str, Batches] = {}
        self._kinds: dict[Kind, str] = {}
        self.function = ""

    def install(self) -> None:
        """See the loss functions; the modules over them call them by name."""
        for name in (*_CLASSES, *_BINARY, *_OTHER):
            wrap(F, name, functools.partial(self._around, name))

    def end_step(self, run: Run) -> None:
        """Record what the batches of this step gave."""
        calls, self._train = self._train, []
        if calls:
            self._report(run, "train", {"": functools.reduce(_added, calls)}, has_loss=False)

    def drop(self) -> None:
        """Forget the batches of a step that does not count."""
        self._train.clear()

    def drop_validation(self) -> None:
        """Forget a validation that belongs to no step."""
        self._val.clear()
        self._batches.clear()

    def end_validation(self, run: Run) -> None:
        """Record what was added up since the last validation."""
        sums, self._val = self._val, {}
        for split in dict.fromkeys(split for split, _ in sums):
            of_split = {function: entry for (one, function), entry in sums.items() if one == split}
            self._report(run, split, of_split, has_loss=True)
        batches = self._batches.pop("val", None)
        self._batches.clear()
        if batches is not None:
            run.record(BATCHES_TAG, (float(batches.count),), **_moment(run, is_validation=True))

    def _around(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def loss_function(*args: Any, **kwargs: Any) -> Any:
            # Compiled code must hold nothing of this; the check is a constant there.
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            result = original(*args, **kwargs)
            if self._is_on() and not self._is_inside and is_plain():
                self._is_inside = True
                self._faults.guard(self._note, name, args, kwargs, result)
                self._is_inside = False
            return result

        return loss_function

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        is_training = torch.is_grad_enabled()
        if is_training and not (self._is_sampled() and len(self._train) < _TRAIN_CALLS_MAX):
            return
        call = _call(name, args, kwargs, result)
        if call is None:
            return
        if is_training:
            if call.result.requires_grad:
                self.function = self.function or name
                if name not in _OTHER:
                    self._train.append(_measured(call, _TRAIN_ELEMENTS))
            return
        split = self._split()
        if split is not None and (self._has_begun() or not _is_sanity_check()):
            key = (split, name)
            sums = _measured(call, _VAL_ELEMENTS)
            self._val[key] = _added(self._val[key], sums) if key in self._val else sums
            source = self._loaders.last
            source = None if source is None or source.is_over else source
            if source is not None:
                source.is_validation = True
            self._batches.setdefault(split, Batches(name)).note(name, source)

    def _split(self) -> str | None:
        last = self._loaders.last
        named = _named_split()
        if named is not None:
            return named
        if last is None or last.is_over:
            return "val"
        if not self._loaders.is_trained_on(last):
            return self._name(last)
        # In the middle of a pass over the training data: a metric of the training's own, or a validation without
        # a loader. Only the latter puts the model into evaluation mode.
        if last is self._loaders.trained_on:
            return None if self._is_training() else "val"
        return "train_eval"

    def _name(self, one: Pass) -> str:
        if one.kind not in self._kinds and len(self._kinds) < _SPLITS_MAX:
            self._kinds[one.kind] = "val" if not self._kinds else f"val_{len(self._kinds) + 1}"
        return self._kinds.get(one.kind, "val")

    def _report(self, run: Run, split: str, sums: dict[str, Sums], *, has_loss: bool) -> None:
        at = _moment(run, is_validation=has_loss)
        several = len(sums) > 1

        def deliver(function: str, host: Any) -> None:
            right, rows, confidence, asked, loss, weight = host
            values: dict[str, float] = {}
            if rows and (not several or function in _CLASSES):
                values[f"{split}/acc"] = right / rows
            if asked and (not several or function in _CLASSES):
                values[f"{split}/logits/confidence"] = confidence / asked
            if has_loss and weight:
                values[f"{split}/loss_{function if several else 'total'}"] = loss / weight
            if values:
                run.record(tuple(values), tuple(values.values()), **at)

        for function, entry in sums.items():
            if isinstance(entry, Tensor):
                run.receive(entry, lambda host, function=function: deliver(function, host.tolist()))
            else:
                deliver(function, entry)


def _moment(run: Run, *, is_validation: bool) -> dict[str, Any]:
    is_epoch = is_validation and run.current_epoch == run.current_epoch  # not NaN
    return {
        "step": max(run.step, 0),
        "epoch": run.current_epoch,
        "tier": TIER_EPOCH if is_epoch else TIER_STEP,
    }


def _call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Call | None:
    logits = args[0] if args else kwargs.get("input")
    target = argument(args, kwargs, 1, "target")
    # Only plain tensors: a subclass (a distributed one, a traced one) may do anything when it is read.
    if type(result) is not Tensor or not isinstance(logits, Tensor) or type(target) is not Tensor:
        return None
    is_plain = type(logits) in {Tensor, torch.nn.Parameter} and logits.device.type != "meta" and logits.numel() > 0
    if not is_plain or (logits.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    ignored = None
    if name in _CLASSES:  # both take (input, target, weight, size_average, ignore_index, reduce, reduction)
        ignored = argument(args, kwargs, 4, "ignore_index", -100)
    reduction = "mean"
    if result.ndim:
        reduction = "none"
    elif "sum" in (kwargs.get("reduction"), *(entry for entry in args[2:] if isinstance(entry, str))):
        reduction = "sum"
    return Call(name, logits, target, reduction, ignored, result)


def _measured(call: Call, limit: int) -> Sums:
    # A mode that sees each call of torch sees none of these.
    with torch.no_grad(), torch._C.DisableTorchFunction():  # type: ignore[attr-defined] # noqa: SLF001
        logits, target = call.logits.detach(), call.target.detach()
        loss = call.result.detach().to(torch.float32).sum()
        zero = loss.new_zeros(())
        numbers = [zero, zero, zero, zero]
        if call.function in _CLASSES:
            weight = _class_weight(logits, target, call.ignored, zero)
            numbers = _classes(call.function, *_thinned(logits, target, limit), call.ignored) or numbers
        else:
            weight = zero + target.numel()
            if call.function in _BINARY and logits.shape == target.shape:
                step = -(-logits.numel() // limit)
                numbers = _binary(call.function, logits.flatten()[::step], target.flatten()[::step])
        if call.reduction == "mean":
            loss = torch.where(weight > 0, loss * weight, zero)  # of no rows the mean is NaN
        if loss.device.type == "cpu":
            return tuple(float(entry) for entry in (*numbers, loss, weight))
        return torch.stack([entry.to(torch.float32) for entry in (*numbers, loss, weight)])


def _class_weight(logits: Tensor, target: Tensor, ignored: int | None, zero: Tensor) -> Tensor:
    if target.is_floating_point():  # probabilities of classes
        return zero + logits.numel() // logits.shape[min(1, logits.ndim - 1)]
    return (target != ignored).sum().to(torch.float32)


def _thinned(logits: Tensor, target: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Logits as (rows, classes) or (rows, classes, positions), their targets alike, and few enough of them."""
    if logits.ndim == 1:
        return logits.unsqueeze(0), target.unsqueeze(0)
    step = -(-logits.numel() // limit)
    if logits.ndim == 2:
        return logits[::step], target[::step]
    is_same = target.ndim == logits.ndim
    return logits.flatten(2)[..., ::step], target.flatten(2)[..., ::step] if is_same else target.flatten(1)[:, ::step]


def _classes(function: str, logits: Tensor, target: Tensor, ignored: int | None) -> list[Tensor] | None:
    if target.is_floating_point() or target.ndim != logits.ndim - 1:
        return None
    highest, predicted = logits.max(1)
    is_meant = target != ignored
    if function == "nll_loss":
        confidence = highest.to(torch.float32).exp()
    else:  # the largest probability is 1 / sum(exp(logits - largest))
        confidence = (logits.to(torch.float32) - highest.to(torch.float32).unsqueeze(1)).exp_().sum(1).reciprocal()
    rows = is_meant.sum()
    confident = torch.where(is_meant, confidence, 0.0).sum()
    return [((predicted == target) & is_meant).sum(), rows, confident, rows]


def _binary(function: str, scores: Tensor, target: Tensor) -> list[Tensor]:
    # Targets between 0 and 1 (pictures to reconstruct, smoothed labels) have no right or wrong.
    rows = ((target == 0) | (target == 1)).all() * target.numel()
    probability = scores.to(torch.float32).sigmoid() if function == _BINARY[1] else scores.to(torch.float32)
    right = ((probability > 0.5) == (target > 0.5)).sum() * (rows > 0)
    return [right, rows, torch.maximum(probability, 1 - probability).sum() * (rows > 0), rows]


def _added(first: Sums, second: Sums) -> Sums:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return _as_tensor(first, second) + _as_tensor(second, first)
    return tuple(a + b for a, b in zip(first, second, strict=True))


def _as_tensor(sums: Sums, other: Sums) -> Tensor:
    if isinstance(sums, Tensor):
        return sums
    return torch.tensor(sums, device=other.device if isinstance(other, Tensor) else None)


def _is_sanity_check() -> bool:
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == _SANITY_CHECK:
            return True
        frame = frame.f_back
    return False


def _named_split() -> str | None:
    """What a script's own variable says that goes through its splits: `for split in ["train", "val"]: ...`."""
    frame = inspect.currentframe()
    for _ in range(_FRAMES):
        frame = frame.f_back if frame is not None else None
        if frame is None:
            return None
        code = frame.f_code
        names = (*code.co_varnames, *code.co_cellvars)
        for variable in _SPLIT_VARIABLES:
            if variable in names or code.co_name == "<module>":
                word = frame.f_locals.get(variable)
                if isinstance(word, str) and word in _SPLIT_WORDS:
                    return _SPLIT_WORDS[word]
    return None
