"""Noise of the gradient: its variance, its signal, and the simple noise scale that they make.

Where a step accumulates gradients over micro-batches, each one's is seen by hooks on the parameters as it is added: a
sample of at most 1024 coordinates of each is kept, no gradient is copied (`sidestep.probes.scatter` has the formulas).
Micro-batches are told apart by calls of the model. Gradients that are asked for by `torch.autograd.grad` do not count.

On several ranks the hooks see a rank's gradient before it is reduced, so its norm is recorded beside that of the
reduced one, from the same coordinates, clipping taken back: over W ranks the variance of the reduced gradient is
(mean of the local squares - global square) / (W - 1), which docs/probes.md has as a query.

With neither micro-batches nor ranks, `loss` and `batch` have it measured on the parts of a batch of the user's: one
more forward and backward pass for each, in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor, nn

from sidestep.errors import UsageError
from sidestep.probes.norms import Placed, by_kind, foreach_norm, gathered
from sidestep.probes.protocol import Part, Probe
from sidestep.probes.sample import coordinates
from sidestep.probes.scatter import Scatter
from sidestep.probes.undisturbed import undisturbed

TAGS: Final = (
    "noise/grad_variance",
    "noise/grad_signal",
    "noise/gns",
    "noise/samples",
    "noise/local_grad_norm",
    "noise/global_grad_norm",
)


class NoiseProbe(Probe):
    """Variance of the gradient; every two epochs.

    Args:
        every: when it samples.
        loss: `loss(model, batch)` gives the mean loss of a batch, a tensor of no dimension: measure on `batch` instead
            of on micro-batches.
        batch: a tensor, or a nest of them, that `loss` is called with parts of: all tensors as long as the first are
            cut along their first dimension.
        parts: how many it is cut into.
    """

    name: ClassVar[str] = "noise"
    cost: ClassVar[int] = 2
    tags: ClassVar[tuple[str, ...]] = TAGS
    hooks_forward: ClassVar[bool] = True
    every: int | str | None = "2 epochs"

    def __init__(
        self,
        *,
        every: int | str | None = None,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        batch: Any = None,
        parts: int = 2,
    ) -> None:
        super().__init__(every=every)
        if (loss is None) != (batch is None) or parts < 2:
            raise UsageError("noise takes both of loss= and batch=, or neither, and parts= of at least 2")
        self._loss = loss
        self._pieces = [] if loss is None else pieces(batch, parts)
        self._listeners: dict[int, _Listener] = {}
        self._sums: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._parts = self._samples = 0
        self._start = (0, 0)

    def begin(self, step: int) -> None:  # noqa: ARG002
        """Hang hooks on the parameters."""
        self.forget()
        if self._loss is not None:
            return
        calls = self.watched.calls
        self._start = calls.samples, calls.passes
        for number, optimizer in enumerate(self.watched.optimizers):
            entries = [entry for group in optimizer.param_groups for entry in group["params"]]
            self._listeners[number] = _Listener(self, entries, lambda: calls.passes)

    def before_step(self, part: Part) -> None:
        """An optimizer's gradients are complete."""
        listener = self._listeners.pop(part.number, None)
        if listener is None:
            return
        listener.remove()
        scatters = listener.finished()
        if not scatters:
            return
        scale = self._scale(part)
        parts = scatters[0].count
        self._parts = min(parts, self._parts or parts)
        samples, passes = self.watched.calls.samples - self._start[0], self.watched.calls.passes - self._start[1]
        self._samples = parts * samples // max(1, passes)
        self._sums += [_unscaled(scatter.sums(), scale) for scatter in scatters]
        if ranks() > 1:
            self._norms += [_reduced(scatter, part.grad_scale) for scatter in scatters]

    def report(self, step: int) -> None:
        """Record what came of it."""
        if self._loss is not None:
            self._measure()
        sums, norms, parts, samples = self._sums, self._norms, self._parts, self._samples
        self.forget()
        if not sums:
            return
        variance, square = _total(sums)
        found: dict[str, Tensor] = {}
        if parts > 1:
            found = {TAGS[0]: variance, TAGS[1]: square - variance}
            if samples:
                found[TAGS[2]] = samples * variance / (square - variance)
        if norms:
            sampled, whole = _total(norms)
            found |= {TAGS[4]: square.sqrt(), TAGS[5]: sampled.sqrt() * self._clipping(step, whole)}
        if found and samples:
            found[TAGS[3]] = torch.full_like(variance, samples)
        if found:
            self.run.record(tuple(found), torch.stack(list(found.values())), step=step)

    def forget(self) -> None:
        """Take the hooks away, and drop what they have seen."""
        for listener in self._listeners.values():
            listener.remove()
        self._listeners = {}
        self._sums, self._norms = [], []
        self._parts = self._samples = 0

    def detach(self) -> None:
        """Take the hooks away."""
        self.forget()

    def _scale(self, part: Part) -> Tensor | None:
        # What the loss is multiplied by under mixed precision; `get_scale` would wait for the device.
        return (
            getattr(self.watched.extras.get("scaler"), "_scale", None) if part.grad_scale is None else part.grad_scale
        )

    def _clipping(self, step: int, square: Tensor) -> Tensor:
        seen = self.watched.norm_before_clip
        if seen is None or seen[0] != step:
            return torch.ones_like(square)
        return seen[1].to(square.device, square.dtype, non_blocking=True).reshape(()) / square.sqrt()

    def _measure(self) -> None:
        model, loss = self.watched.inner, cast("Callable[[nn.Module, Any], Tensor]", self._loss)
        parameters: list[Tensor] = [entry for entry in model.parameters() if entry.requires_grad and entry.numel()]
        if any(hasattr(entry, "to_local") for entry in parameters):
            raise UsageError("parameters are sharded over processes, and their noise would need collectives")
        scatters = [Scatter(each) for each in coordinates([Placed(entry, 0) for entry in parameters])]
        with self.watched.calls.paused(), undisturbed(model):
            for piece in self._pieces:
                with torch.enable_grad():
                    whole = loss(model, piece) / len(self._pieces)
                    gradients = torch.autograd.grad(whole, parameters, materialize_grads=True)
                found = dict(zip(parameters, gradients, strict=True))
                for scatter in scatters:
                    for number, entry in enumerate(scatter.coordinates.parameters):
                        scatter.add(number, scatter.coordinates.read_one(number, found[entry]))
                    scatter.end_part()
        self._sums = [scatter.sums() for scatter in scatters]
        self._parts = len(self._pieces)
        self._samples = self._parts * (length(self._pieces[0]) or 0)


class _Listener:
    # Hooks on the parameters of one optimizer. A gradient is kept when it has been accumulated: what is seen on its
    # way may also be asked for by `torch.autograd.grad`, and is then none of a step.

    def __init__(self, probe: Probe, parameters: Iterable[Tensor], passes: Callable[[], int]) -> None:
        self._scatters = [Scatter(each) for each in coordinates([Placed(entry, 0) for entry in parameters])]
        self._passes = passes
        self._pass = -1
        self._seen: dict[tuple[int, int], Tensor] = {}
        self._kept: set[tuple[int, int]] = set()
        self._removers: list[Callable[[], None]] = []
        for place, scatter in enumerate(self._scatters):
            for number, parameter in enumerate(scatter.coordinates.parameters):
                self._hook(probe, parameter, (place, number))

    def remove(self) -> None:
        for remove in self._removers:
            remove()
        self._removers, self._seen = [], {}

    def finished(self) -> list[Scatter]:
        if self._pass < 0:
            return []
        self._end_part()
        return self._scatters

    def _hook(self, probe: Probe, parameter: Tensor, key: tuple[int, int]) -> None:
        place, number = key
        at = self._scatters[place].coordinates

        def see(gradient: Tensor) -> None:
            if gradient.layout == torch.strided:
                with torch.no_grad():
                    if parameter.grad is None and key in self._kept:
                        self._restart()
                    self._seen[key] = at.read_one(number, gradient).clone()

        def keep(_parameter: Tensor) -> None:
            sampled = self._seen.pop(key, None)
            if sampled is None:
                return
            with torch.no_grad():
                self._next_part()
                self._kept.add(key)
                self._scatters[place].add(number, sampled)

        self._removers += [
            parameter.register_hook(probe.hook(see)).remove,
            parameter.register_post_accumulate_grad_hook(probe.hook(keep)).remove,
        ]

    def _next_part(self) -> None:
        passes = self._passes()
        if passes != self._pass:
            if self._pass >= 0:
                self._end_part()
            self._pass = passes

    def _restart(self) -> None:
        # Gradients were cleared and no step was taken: a scaler left it out.
        self._scatters = [Scatter(scatter.coordinates) for scatter in self._scatters]
        self._kept, self._pass = set(), -1

    def _end_part(self) -> None:
        for scatter in self._scatters:
            scatter.end_part()


def pieces(batch: Any, count: int) -> list[Any]:
    """Parts of a batch, of equal size: what is left over is dropped.

    Raises:
        UsageError: it has no tensor, or too short ones.
    """
    size = length(batch)
    if size is None or size < count:
        raise UsageError(f"noise: batch= holds no tensor that can be cut into {count} parts along its first dimension")
    step = size // count
    return [_cut(batch, size, slice(number * step, (number + 1) * step)) for number in range(count)]


def length(batch: Any) -> int | None:
    """First dimension of the first tensor in a nest of them; None where there is none."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    inside = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((found for found in map(length, inside) if found is not None), None)


def _cut(batch: Any, size: int, part: slice) -> Any:
    if isinstance(batch, Tensor):
        return batch[part] if batch.ndim and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        return {name: _cut(entry, size, part) for name, entry in batch.items()}
    if isinstance(batch, list | tuple):
        cut = [_cut(entry, size, part) for entry in batch]
        return type(batch)(*cut) if hasattr(batch, "_fields") else type(batch)(cut)
    return batch


def ranks() -> int:
    """Processes that train together; 1 where they are not known to."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _unscaled(sums: Tensor, scale: Tensor | None) -> Tensor:
    return sums if scale is None else sums / scale.to(sums.device, sums.dtype, non_blocking=True) ** 2


def _reduced(scatter: Scatter, scale: Tensor | None) -> Tensor:
    # Squares of the norm of the gradient that the optimizer takes: from the coordinates, and of the whole.
    rows = scatter.coordinates.rows()
    scatter.coordinates.read_gradients(rows)
    gradients = [(entry.grad, 0) for entry in scatter.coordinates.parameters if entry.grad is not None]
    norms = [norm for group in by_kind(gradients) for norm in foreach_norm([gradient for gradient, _ in group])]
    whole = gathered(norms).square().sum() if norms else rows.whole.new_zeros(())
    return _unscaled(torch.stack((scatter.coordinates.weights() @ rows.whole**2, whole.to(rows.whole.dtype))), scale)


def _total(sums: list[Tensor]) -> Tensor:
    home = next((one.device for one in sums if one.device.type != "cpu"), sums[0].device)
    return torch.stack([one.to(home, torch.float32, non_blocking=True) for one in sums]).sum(0)
