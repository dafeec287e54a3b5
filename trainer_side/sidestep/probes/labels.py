"""Labels of batches, for probes that need them: from calls of torch's loss functions, or from `run.batch`.

`F.cross_entropy` and `F.nll_loss` (the modules over them call these) are wrapped for as long as a probe of a run
listens. A call with gradients belongs to training; one without, while the model is in eval mode, to a validation.
Nothing is seen of what is compiled, of a loss that a script computes itself, and of a function that it has imported
by name before it called `watch`: there `run.batch(inputs, labels)` tells. Once a script tells, loss functions are not
listened to any more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import Tensor, nn

from sidestep.probes.calls import Hook
from sidestep.tracing import is_plain

_FUNCTIONS: Final = ("cross_entropy", "nll_loss")
_IGNORED: Final = -100


class Batch(NamedTuple):
    """What is known of a batch.

    Attributes:
        split: "train" or "val", or what a script says.
        labels: integers, of any shape; without history.
        logits: of shape (rows, classes) or (rows, classes, positions...), where a loss function was given both.
        ignored: the label that stands for none.
    """

    split: str
    labels: Tensor
    logits: Tensor | None = None
    ignored: int = _IGNORED

    @property
    def classes(self) -> int:
        """How many classes there are; 0 where that is not known."""
        return 0 if self.logits is None else self.logits.shape[min(1, self.logits.ndim - 1)]

    @property
    def rows(self) -> Tensor | None:
        """The logits as (predictions, classes), one for each label."""
        logits = self.logits
        if logits is None or logits.ndim == 1:
            return logits if logits is None else logits.unsqueeze(0)
        return logits.movedim(1, -1).reshape(-1, logits.shape[1])


class Labels:
    """Tells probes of each batch's labels.

    Args:
        model: whose mode tells a validation.

    Attributes:
        is_told: whether the script tells.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._hooks: list[Hook] = []
        self.is_told = False

    def listen(self, hook: Hook) -> Callable[[], None]:
        """Have a hook called with each `Batch` from now on; what is returned ends it."""
        self._hooks.append(hook)
        if len(self._hooks) == 1:
            _listen(self._hear)

        def end() -> None:
            if hook in self._hooks:
                self._hooks.remove(hook)
                if not self._hooks:
                    _leave(self._hear)

        return end

    def told(self, labels: Any, split: str) -> None:
        """A script says what the labels of a batch are."""
        if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.numel():
            self.is_told = True
            self._pass_on(Batch(split, labels.detach()))

    def _hear(self, call: Batch) -> None:
        if self.is_told or (call.split == "val" and self._model.training):
            return
        self._pass_on(call)

    def _pass_on(self, batch: Batch) -> None:
        with torch.no_grad():
            for hook in self._hooks.copy():
                hook(batch)


_listeners: list[Callable[[Batch], None]] = []
_originals: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}


def _listen(call: Callable[[Batch], None]) -> None:
    if not _listeners:
        for name in _FUNCTIONS:
            original = getattr(F, name)
            _originals[name] = (original, _wrapper(original))
            setattr(F, name, _originals[name][1])
    _listeners.append(call)


def _leave(call: Callable[[Batch], None]) -> None:
    _listeners.remove(call)
    if not _listeners:
        for name, (original, wrapper) in _originals.items():
            if getattr(F, name) is wrapper:  # else somebody wrapped it once more: ours stays below, and does nothing
                setattr(F, name, original)
        _originals.clear()


def _wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def loss_function(*arguments: Any, **named: Any) -> Any:
        # Compiled code must hold nothing of this; the check is a constant there.
        if torch.compiler.is_compiling():
            return original(*arguments, **named)
        result = original(*arguments, **named)
        if _listeners and is_plain():
            call = _seen(arguments, named, result)
            if call is not None:
                for listener in _listeners.copy():
                    listener(call)
        return result

    # `torch.jit.script` compiles a function from its source and what it refers to: have it take the original.
    plain = getattr(original, "__original_fn", original)
    loss_function.__dict__ |= {"__script_if_tracing_wrapper": True, "__original_fn": plain}
    return loss_function


def _seen(arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> Batch | None:
    logits = arguments[0] if arguments else named.get("input")
    target = arguments[1] if len(arguments) > 1 else named.get("target")
    # Only plain tensors: a subclass (a distributed one, a traced one) may do anything when it is read.
    if type(result) is not Tensor or type(logits) is not Tensor or type(target) is not Tensor:
        return None
    is_of_classes = not target.is_floating_point() and target.ndim == logits.ndim - 1 and logits.numel() > 0
    is_training = torch.is_grad_enabled() and result.requires_grad
    if not is_of_classes or (torch.is_grad_enabled() and not is_training):
        return None
    ignored = arguments[4] if len(arguments) > 4 else named.get("ignore_index", _IGNORED)
    return Batch("train" if is_training else "val", target.detach(), logits.detach(), ignored)
