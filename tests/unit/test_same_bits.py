"""Ways of training, each with every default probe at every step: the result is that of training alone, bit for bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars
from support.watched import SmallNet, batch, loss_of, offline, small_net
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils import checkpoint

import sidestep
from sidestep.probes import registry

__all__ = ["offline"]

STEPS = 5
#: Takes the model and its optimizers, and any keyword of `sidestep.watch`.
Watch = Callable[..., None]
RECIPES: dict[str, Callable[[Watch], nn.Module]] = {}


def recipe(train: Callable[[Watch], nn.Module]) -> Callable[[Watch], nn.Module]:
    RECIPES[train.__name__] = train
    return train


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype = torch.float32) -> nn.Module:
    for step in range(STEPS):
        optimizer.zero_grad()
        output = model(batch(step).to(dtype))
        (output.abs() if output.is_complex() else output).square().sum().backward()
        optimizer.step()
    return model


def adam(model: nn.Module, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, **more)


@recipe
def plain(watch: Watch) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 3))
    optimizer = adam(model)
    watch(model, optimizer)
    return fit(model, optimizer)


@recipe
def accumulation_with_clipping(watch: Watch) -> nn.Module:
    model = small_net()
    optimizer = adam(model)
    watch(model, optimizer)
    for step in range(STEPS):
        for part in range(3):
            (loss_of(model, 3 * step + part) / 3).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


@recipe
def autocast(watch: Watch) -> nn.Module:
    model = small_net()
    optimizer = adam(model)
    watch(model, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
    return model


def scaled(watch: Watch, *, fused: bool) -> nn.Module:
    model = small_net()
    optimizer, scaler = adam(model, fused=fused), torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    watch(model, optimizer, scaler=scaler)
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step) * (float("inf") if step == 3 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    return model


@recipe
def two_networks(watch: Watch) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"generator": SmallNet(), "critic": nn.Linear(3, 1)})
    generator, critic = (torch.optim.Adam(part.parameters()) for part in model.values())
    watch(model, [generator, critic])
    for step in range(STEPS):
        critic.zero_grad()
        made = model["generator"](batch(step))
        (model["critic"](made.detach()).mean() - model["critic"](torch.randn(8, 3)).mean()).backward()
        critic.step()
        generator.zero_grad()
        (-model["critic"](made).mean()).backward()
        generator.step()
    return model


class Checkpointed(nn.Module):
    """A part that is computed anew while going backward, with dropout in it."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Linear(6, 6)
        self.part = nn.Sequential(nn.Linear(6, 6), nn.Softsign(), nn.Dropout(), nn.Linear(6, 6), nn.Softsign())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint.checkpoint(self.part, self.first(x), **self.how))


def checkpointed(watch: Watch, **how: Any) -> nn.Module:
    torch.manual_seed(0)
    model = Checkpointed(**how)
    optimizer = adam(model)
    watch(model, optimizer)
    return fit(model, optimizer)


def keep_quotients() -> Any:
    def policy(_: object, operation: object, *_given: Any, **_named: Any) -> checkpoint.CheckpointPolicy:
        is_kept = operation in {torch.ops.aten.div.Tensor, torch.ops.aten.addmm.default}
        return checkpoint.CheckpointPolicy.MUST_SAVE if is_kept else checkpoint.CheckpointPolicy.PREFER_RECOMPUTE

    return checkpoint.create_selective_checkpoint_contexts(policy)


RECIPES["checkpointing, reentrant"] = lambda watch: checkpointed(watch, use_reentrant=True)
RECIPES["checkpointing"] = lambda watch: checkpointed(watch, use_reentrant=False)
RECIPES["checkpointing, selective"] = lambda watch: checkpointed(watch, use_reentrant=False, context_fn=keep_quotients)
RECIPES["scaler"] = lambda watch: scaled(watch, fused=False)
RECIPES["scaler and fused optimizer"] = lambda watch: scaled(watch, fused=True)


class Tied(nn.Module):
    """Embedding and output share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens)))


@recipe
def shared_weights(watch: Watch) -> nn.Module:
    torch.manual_seed(0)
    model = Tied()
    optimizer = adam(model)
    watch(model, optimizer)
    for step in range(STEPS):
        tokens = (torch.arange(8) + step) % 10
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), (tokens + 1) % 10).backward()
        optimizer.step()
    return model


def compiled(watch: Watch, backend: str) -> nn.Module:
    torch._dynamo.reset()
    model = small_net()
    optimizer = adam(model)
    watch(model, optimizer)
    fit(torch.compile(model, backend=backend), optimizer)
    return model


RECIPES["compiled"] = lambda watch: compiled(watch, "eager")
RECIPES["compiled with its backward pass"] = lambda watch: compiled(watch, "aot_eager")


@recipe
def optimizer_in_backward(watch: Watch) -> nn.Module:
    model = small_net()
    optimizers = {entry: torch.optim.SGD([entry], lr=0.01, momentum=0.9) for entry in model.parameters()}
    watch(model, list(optimizers.values()))

    def update(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for entry in model.parameters():
        entry.register_post_accumulate_grad_hook(update)
    for step in range(STEPS):
        loss_of(model, step).backward()
    return model


@recipe
def closure(watch: Watch) -> nn.Module:
    model = small_net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    watch(model, optimizer)
    for step in range(STEPS):

        def loss(step: int = step) -> Tensor:
            optimizer.zero_grad()
            value = loss_of(model, step)
            value.backward()
            return value

        optimizer.step(loss)
    return model


@recipe
def sparse_gradients(watch: Watch) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.01)
    watch(model, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.tensor([1, 2, 2, step])).square().sum().backward()
        optimizer.step()
    return model


def of_type(watch: Watch, name: str) -> nn.Module:
    dtype: torch.dtype = getattr(torch, name)
    model = small_net().to(dtype)
    optimizer = adam(model)
    watch(model, optimizer)
    return fit(model, optimizer, dtype)


for name in ("float64", "bfloat16", "float16"):
    RECIPES[name] = partial(of_type, name=name)


class Odd(nn.Module):
    """Parameters that are complex, empty, single, frozen and unused, and a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.complex = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))
        self.empty = nn.Parameter(torch.ones(0, 3))
        self.single = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (self.linear(x) * self.single).to(torch.complex64) @ self.complex + self.empty.sum() + self.frozen


@recipe
def odd_parameters(watch: Watch) -> nn.Module:
    torch.manual_seed(0)
    model = Odd()
    optimizer = adam(model)
    watch(model, optimizer)
    return fit(model, optimizer)


@recipe
def shapes_that_change(watch: Watch) -> nn.Module:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch(model, optimizer)
    fit(model, optimizer)
    torch.manual_seed(1)
    model.head = nn.Linear(6, 5)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    fit(model, optimizer)
    model.temperature.data = torch.ones(5)
    return fit(model, optimizer)


@recipe
def from_meta(watch: Watch) -> nn.Module:
    with torch.device("meta"):
        model = SmallNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    watch(model, optimizer)
    optimizer.step()
    torch.manual_seed(0)
    model.to_empty(device="cpu")
    for entry in model.parameters():
        nn.init.normal_(entry, std=0.1)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    return fit(model, optimizer)


@recipe
def gradients_by_transforms(watch: Watch) -> nn.Module:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch(model, optimizer)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x,)).square().sum()

    for step in range(STEPS):
        each = vmap(grad(loss), in_dims=(None, 0))(dict(model.named_parameters()), batch(step))
        for name, entry in model.named_parameters():
            entry.grad = each[name].mean(0)
        optimizer.step()
    return model


@recipe
def a_gradient_of_a_gradient(watch: Watch) -> nn.Module:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    watch(model, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        x = batch(step).requires_grad_()
        loss = model(x).square().sum()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + slope.square().sum()).backward()
        optimizer.step()
    return model


@pytest.fixture(autouse=True)
def _graphs_end_with_the_test() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def every_default_probe() -> dict[str, int]:
    takes_it = {name for name in registry.DEFAULTS if "every" in inspect.signature(registry._load(name)).parameters}
    assert len(takes_it) >= 10
    return dict.fromkeys(takes_it, 1)


@pytest.mark.parametrize("name", RECIPES)
def test_training_is_the_same_bit_for_bit(offline: dict[str, Any], name: str) -> None:
    def trained(watch: Watch) -> list[Tensor]:
        model = RECIPES[name](watch)
        return [*model.state_dict().values(), torch.get_rng_state()]

    alone = trained(lambda *_, **__: None)
    watched = trained(
        lambda *given, **more: sidestep.watch(*given, every=1, probes=every_default_probe(), **more, **offline)  # type: ignore[arg-type,return-value]
    )
    run = sidestep.active_run()
    assert run is not None
    run.finish(timeout=0)
    assert len(alone) == len(watched)
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))
    assert len(read_scalars(offline["dir"], "train/lr")) >= STEPS
    assert run.stats["refused"] == {}
