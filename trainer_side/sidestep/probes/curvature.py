"""Curvature of the loss: both ends of the Hessian's spectrum, and its trace with a standard error.

Back-ends, of which the last two are packages of their own:

    own          Lanczos and Hutch++ on products by differentiating twice (`sidestep.probes.lanczos`): any network
    backpack     the same, but the trace exactly (`sidestep.probes.exact_trace`): plain networks of layers it knows
    curvlinops   own, on the products of curvlinops' Hessian (forward over reverse): what torch.func can take
    auto         backpack where it is installed and this network, tried at the first sample, allows it; else own

An exact trace is held against single products H e_k each time, and at first against the estimate: BackPACK says
nothing of what a loss does beside its loss function. Numbers stay on the device until a copy of them has come home.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, ClassVar, Final, Literal, get_args

import torch
from torch import Tensor, nn

from sidestep.errors import UsageError
from sidestep.probes import exact_trace
from sidestep.probes.curvlinops_product import curvlinops_hessian
from sidestep.probes.lanczos import Product, ends, hessian, remainder, spectrum, whole_trace
from sidestep.probes.protocol import Probe
from sidestep.probes.timing import mark
from sidestep.probes.undisturbed import undisturbed

TAGS: Final = (
    "curvature/lambda_max",
    "curvature/lambda_min",
    "curvature/trace",
    "curvature/trace_se",
    "perf/curvature_time_ms",
)

Backend = Literal["auto", "own", "backpack", "curvlinops"]
_PACKAGES: Final = {"backpack": "backpack-for-pytorch", "curvlinops": "curvlinops-for-pytorch"}


class CurvatureProbe(Probe):
    """Curvature on a batch that stays the same.

    Args:
        loss: `loss(model, batch)` gives the loss, a tensor of no dimension; the model is in eval mode.
        batch: what it is called with each time: small, and on the model's device.
        every: when it samples.
        steps: of Lanczos, each as costly as two or three backward passes.
        vectors: further products for the trace, where it is estimated; 0 leaves the trace out.
        budget: share of the training's time that it may take: samples that would take more are left out. What the
            first takes for loading libraries is not held against the next.
        backend: who computes it. BackPACK works on a copy of the model, kept for as long as a sample takes.
    """

    name: ClassVar[str] = "curvature"
    cost: ClassVar[int] = 4
    tags: ClassVar[tuple[str, ...]] = TAGS
    every: int | str | None = 500

    def __init__(
        self,
        *,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        batch: Any = None,
        every: int | str | None = None,
        steps: int = 10,
        vectors: int = 10,
        budget: float = 0.02,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(every=every)
        if loss is None or steps < 1 or vectors < 0:
            raise UsageError("curvature takes loss=, a function of model and batch, batch=, steps >= 1, vectors >= 0")
        _check(backend)
        self._loss = loss
        self._batch = batch
        self._steps = steps
        self._vectors = vectors
        self._budget = budget
        self._backend = backend
        #: Whether traces are exact; None until it has been tried.
        self._is_exact = {"auto": None if find_spec("backpack") else False, "backpack": True}.get(backend, False)
        self._is_warm = False
        self._last_seconds = 0.0
        self._ended = float("-inf")

    def report(self, step: int) -> None:
        """Measure, where the budget allows it."""
        if self._last_seconds > self._budget * (time.perf_counter() - self._ended):
            return
        begin = mark(self.watched.device)
        with self.watched.calls.paused(), undisturbed(self.watched.inner), torch.enable_grad():
            self._warm_up()
            warm = mark(self.watched.device)
            found = self._measure()
        end = mark(self.watched.device)
        self._last_seconds, self._ended = end.host - warm.host, end.host

        def deliver(host: Tensor) -> None:
            parts = host.double().split([len(part) for part in found.values()])
            self._last_seconds = warm.until(end) / 1e3
            self._record(step, dict(zip(found, parts, strict=True)), begin.until(end))

        numbers = torch.cat([part.float() for part in found.values()])
        if numbers.device.type == "cpu":
            deliver(numbers)
        else:
            self.run.receive(numbers, deliver)

    def _warm_up(self) -> None:
        # The first product took 0.3 s where those after it took 0.5 ms: libraries are loaded, threads started. Counted
        # in, that kept the budget of a short training from ever allowing a second sample.
        if self._is_warm:
            return
        self._is_warm = True
        if self._vectors and self._is_exact is not False:
            with suppress(Exception):  # it is asked for again, and said then
                exact_trace.load()
        product, size = self._product(self._parameters())
        product(torch.zeros(size, device=self.watched.device))

    def _parameters(self) -> list[nn.Parameter]:
        parameters = [entry for entry in self.watched.inner.parameters() if entry.requires_grad and entry.numel()]
        if any(hasattr(parameter, "to_local") for parameter in parameters):
            raise UsageError("parameters are sharded over processes, and curvature would need collectives")
        return parameters

    def _measure(self) -> dict[str, Tensor]:
        parameters = self._parameters()
        product, size = self._product(parameters)
        generator = torch.Generator(parameters[0].device).manual_seed(0)
        lanczos = spectrum(product, size, self._steps, generator)
        found = {"diagonal": lanczos.diagonal, "beside": lanczos.beside}
        if self._vectors and self._is_exact is not False:
            found |= self._exactly(product, parameters)
        if self._vectors and not self._is_exact:
            found["rest"] = remainder(product, lanczos.basis, self._vectors, generator)
        return found

    def _product(self, parameters: list[nn.Parameter]) -> tuple[Product, int]:
        model = self.watched.inner
        if self._backend == "curvlinops":
            return curvlinops_hessian(self._loss, model, self._batch, parameters)
        return hessian(self._loss(model, self._batch), parameters)

    def _exactly(self, product: Product, parameters: list[nn.Parameter]) -> dict[str, Tensor]:
        try:
            diagonal = exact_trace.diagonal(self._loss, self.watched.inner, self._batch)
            wrong = exact_trace.disagreement(diagonal, product, [entry.numel() for entry in parameters])
        except Exception as error:
            if self._backend == "backpack":
                what = f"BackPACK cannot take this network, and backend='auto' would estimate its trace: {error}"
                raise UsageError(what) from error
            self._is_exact = False
            return {}
        return {"exact": diagonal.sum().reshape(1), "wrong": wrong.reshape(1)}

    def _record(self, step: int, found: Mapping[str, Tensor], milliseconds: float) -> None:
        values = [*ends(found["diagonal"], found["beside"])]
        trace = self._trace(found)
        tags = TAGS[:2] if trace is None else TAGS[:4]
        self.run.record((*tags, TAGS[4]), [*values, *(trace or ()), milliseconds], step=step)

    def _trace(self, found: Mapping[str, Tensor]) -> tuple[float, float] | None:
        estimate = whole_trace(found["diagonal"], found["rest"]) if "rest" in found else None
        if "exact" not in found:
            return estimate
        exact = float(found["exact"])
        self._is_exact = float(found["wrong"]) <= 1 and (estimate is None or _is_near(exact, *estimate))
        if not self._is_exact and self._backend == "backpack":
            what = "BackPACK's trace is not that of this loss, and is left out: backend='auto' would estimate it"
            self.run.complain("curvature", "backpack", what)
        return (exact, 0.0) if self._is_exact else estimate


def _check(backend: str) -> None:
    if backend not in get_args(Backend):
        raise UsageError(f"curvature: backend={backend!r} is none of: {', '.join(get_args(Backend))}")
    if backend in _PACKAGES and find_spec(backend) is None:
        raise UsageError(f"curvature: backend={backend!r} needs a package: pip install {_PACKAGES[backend]}")


def _is_near(exact: float, estimate: float, error: float) -> bool:
    # Of a single vector there is no error, and nothing to compare.
    return not abs(exact - estimate) > 6 * error + 1e-3 * abs(exact)
