"""Trainings out of the ordinary: what is recorded of them is right, and what they do works as if nothing watched."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import SmallNet, batch, offline, small_net, take_step
from torch import Tensor, nn
from torch.utils import checkpoint

import sidestep
from sidestep import watching
from sidestep.errors import SidestepWarning
from sidestep.probes import Probe

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it scripts functions of its own
    from torch.distributed.optim import _apply_optimizer_in_backward, _get_in_backward_optimizers

__all__ = ["offline"]

GLOBAL = "train/gradients/global_norm"
UPDATE = "train/updates/relative_update_norm"
PASSES = "perf/micro_batches_per_step"


def sgd(model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def loss_of(model: Callable[[Tensor], Tensor], step: int) -> Tensor:
    return model(batch(step)).square().sum()


def norm(tensors: Iterable[Tensor | None]) -> float:
    return math.sqrt(sum(float(entry.detach().abs().double().square().sum()) for entry in tensors if entry is not None))


def gradients_of(model: nn.Module) -> list[Tensor | None]:
    return [entry.grad for entry in model.parameters()]


def weights_of(model: nn.Module) -> list[Tensor]:
    return [entry.detach().clone() for entry in model.parameters()]


# --- optimizers --------------------------------------------------------------------------------------------------


def update_in_backward(model: nn.Module) -> list[torch.optim.Optimizer]:
    optimizers = {entry: torch.optim.SGD([entry], lr=0.01) for entry in model.parameters()}

    def update(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad(set_to_none=True)

    for entry in model.parameters():
        entry.register_post_accumulate_grad_hook(update)
    return [*optimizers.values()]


def apply_in_backward(model: nn.Module) -> list[torch.optim.Optimizer]:
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.01})
    return _get_in_backward_optimizers(model)


@pytest.mark.parametrize("way", [update_in_backward, apply_in_backward])
def test_optimizers_that_step_while_going_backward_give_one_sample(
    offline: dict[str, Any], way: Callable[[nn.Module], list[torch.optim.Optimizer]]
) -> None:
    alone = small_net()
    optimizer = sgd(alone)
    expected: dict[int, tuple[float, float]] = {}
    for step in range(4):
        before = weights_of(alone)
        take_step(alone, optimizer, step)
        moved = norm(new - old for new, old in zip(weights_of(alone), before, strict=True))
        expected[step] = norm(gradients_of(alone)), moved / norm(before)
    model = small_net()
    run = sidestep.watch(model, way(model), every=1, **offline)
    for step in range(4):
        loss_of(model, step).backward()
    run.finish(timeout=0)
    assert run.step == 3
    for tag, number in ((GLOBAL, 0), (UPDATE, 1)):
        found = read_scalars(offline["dir"], tag)
        assert found == pytest.approx({step: expected[step][number] for step in found}, rel=1e-4)
        # The last waits for an optimizer that has stepped ahead of the first one, where there is any.
        assert set(found) >= {0, 1, 2}


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_gradient_is_recorded_unscaled(offline: dict[str, Any], fused: bool) -> None:
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    run = sidestep.watch(model, optimizer, every=1, scaler=scaler, **offline)
    expected: dict[int, float] = {}
    for step in range(3):
        expected[step] = norm(torch.autograd.grad(loss_of(model, step), list(model.parameters())))
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx(expected, rel=1e-5)


class Calling(torch.optim.SGD):
    """Takes its parent's step, whose hooks are called as well once an SGD has been made."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Stumbling(Calling):
    """Raises within the step, the first time it is called."""

    has_stumbled = False

    def step(self, closure: Any = None) -> Any:
        if not self.has_stumbled:
            self.has_stumbled = True
            raise FloatingPointError
        return super().step(closure)


@pytest.mark.parametrize("kind", [Calling, Stumbling])
def test_a_step_within_a_step_is_none(offline: dict[str, Any], kind: type[torch.optim.SGD]) -> None:
    sgd(small_net())
    model = small_net()
    optimizer = kind(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    if kind is Stumbling:
        with pytest.raises(FloatingPointError):
            optimizer.step()
    expected: dict[int, float] = {}
    moved: dict[int, float] = {}
    for step in range(3):
        before = weights_of(model)
        take_step(model, optimizer, step)
        expected[step] = norm(gradients_of(model))
        change = norm(new - old for new, old in zip(weights_of(model), before, strict=True))
        moved[step] = change / norm(before)
    run.finish(timeout=0)
    assert run.step == 2
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx(expected, rel=1e-5)
    assert read_scalars(offline["dir"], UPDATE) == pytest.approx(moved, rel=1e-4)


def test_a_scheduled_step_is_one_step(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(3):
        take_step(model, optimizer, step)
        schedule.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/lr") == pytest.approx({0: 0.01, 1: 0.005, 2: 0.01 / 3})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Dynamo does not know:UserWarning")
def test_a_compiled_step_is_measured_apart_and_compiled_once(offline: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    step_compiled = torch.compile(optimizer.step, backend=backend)
    expected: dict[int, float] = {}
    seen: list[int] = []
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        expected[step] = norm(gradients_of(model))
        step_compiled()
        seen.append(len(compiled))
    run.finish(timeout=0)
    torch._dynamo.reset()
    assert run.step == 4
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx(expected, rel=1e-5)
    assert seen[1:] == [seen[1]] * 4


def test_a_closure_that_is_called_often_gives_the_last_gradient(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    expected: dict[int, float] = {}
    for step in range(2):
        optimizer.step(closure)
        expected[step] = norm(gradients_of(model))
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx(expected, rel=1e-5)
    assert read_scalars(offline["dir"], PASSES)[1] == calls / 2


# --- the graph ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_pass_that_checkpointing_repeats_counts_once(offline: dict[str, Any], reentrant: bool) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1, "logits": 1}, **offline)
    largest: dict[int, float] = {}
    for step in range(4):
        optimizer.zero_grad()
        with torch.no_grad():
            model.eval()
            largest[step] = float(model(batch(step)).max())
            model.train()
        x = batch(step).requires_grad_()
        checkpoint.checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
        optimizer.step()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], PASSES) == {1: 1.0, 2: 1.0, 3: 1.0}
    found = read_scalars(offline["dir"], "train/logits/max")
    assert found == pytest.approx({step: largest[step] for step in (1, 2, 3)})
    steps, samples = (read_scalars(offline["dir"], f"perf/{what}_per_sec") for what in ("steps", "samples"))
    assert samples == pytest.approx({step: 8 * rate for step, rate in steps.items()})


def test_of_a_repeated_forward_pass_the_first_is_timed(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr("sidestep.probes.timing.time.perf_counter", lambda: float(next(ticks)))
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"throughput": False}, **offline)
    for step in range(3):
        optimizer.zero_grad()
        checkpoint.checkpoint(model, batch(step), use_reentrant=False).square().sum().backward()
        optimizer.step()
    run.finish(timeout=0)
    # The clock ticks once a mark: begin, forward, forward's end, backward, its end, update, end.
    assert read_scalars(offline["dir"], "train/performance/forward_time_ms") == {1: 1000.0, 2: 1000.0}
    assert read_scalars(offline["dir"], "train/performance/backward_time_ms") == {1: 1000.0, 2: 1000.0}


def test_while_a_graph_is_captured_nothing_is_measured(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = {2, 3}
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"logits": 1, "activations": 1}, **offline)
    monkeypatch.setattr(watching, "_is_captured", lambda: run.step + 1 in captured)
    largest: dict[int, float] = {}
    for step in range(6):
        with torch.no_grad():
            largest[step] = float(model.eval()(batch(step)).max())
        model.train()
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    assert run.step == 5
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0, 1, 4, 5]
    # What was seen of a step that came to nothing is not taken for the next one's.
    assert read_scalars(offline["dir"], "train/logits/max") == pytest.approx(
        {step: largest[step] for step in (1, 4, 5)}
    )


def test_a_model_on_meta_is_measured_once_it_has_numbers(offline: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = SmallNet()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    optimizer.step()
    torch.manual_seed(0)
    model.to_empty(device="cpu")
    for entry in model.parameters():
        nn.init.normal_(entry)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    take_step(model, optimizer, 1)
    expected = norm(gradients_of(model))
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx({1: expected}, rel=1e-5)
    assert "train/gradients/block_1" in read_tags(offline["dir"])


# --- parameters --------------------------------------------------------------------------------------------------


def test_a_shared_weight_counts_once(offline: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"embedding": nn.Embedding(10, 6), "head": nn.Linear(6, 10, bias=False)})
    model["head"].weight = model["embedding"].weight  # type: ignore[assignment]
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    tokens = torch.arange(8)
    model["head"](model["embedding"](tokens)).square().sum().backward()
    optimizer.step()
    expected = norm([model["head"].weight.grad])
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx({0: expected}, rel=1e-5)
    assert read_scalars(offline["dir"], "train/gradients/embedding") == pytest.approx({0: expected}, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_numbers_of_every_type_are_right(offline: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3, dtype=dtype)
    model.register_parameter("single", nn.Parameter(torch.tensor(2.0, dtype=dtype)))
    model.register_parameter("empty", nn.Parameter(torch.ones(0, dtype=dtype)))
    model.register_buffer("counts", torch.zeros(3, dtype=torch.int8))
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"weights": 1}, **offline)
    before = weights_of(model)
    (model(batch(0).to(dtype)) * model.single).abs().square().sum().backward()
    optimizer.step()
    expected = norm(gradients_of(model))
    moved = norm(new.to(torch.complex128) - old for new, old in zip(weights_of(model), before, strict=True))
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx({0: expected}, rel=1e-3)
    assert read_scalars(offline["dir"], UPDATE) == pytest.approx({0: moved / norm(before)}, rel=1e-2)
    assert read_scalars(offline["dir"], "weight_norm") == pytest.approx({0: norm(weights_of(model))}, rel=1e-3)


def test_sparse_gradients_count_with_their_rows(offline: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    before = weights_of(model)
    model(torch.tensor([1, 2, 2])).square().sum().backward()
    optimizer.step()
    gradient = model[0].weight.grad
    assert isinstance(gradient, Tensor)
    moved = norm(new - old for new, old in zip(weights_of(model), before, strict=True))
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], GLOBAL) == pytest.approx({0: norm([gradient.to_dense()])}, rel=1e-5)
    assert read_scalars(offline["dir"], UPDATE) == pytest.approx({0: moved / norm(before)}, rel=1e-4)


def test_a_layer_that_is_replaced_is_measured_in_its_new_shape(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer, 0)
    model.head = nn.Linear(6, 5)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    take_step(model, optimizer, 1)
    expected = norm(gradients_of(model.head))
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/gradients/head")[1] == pytest.approx(expected, rel=1e-5)


# --- hooks that are in the way -----------------------------------------------------------------------------------


def saved(model: nn.Module) -> Any:
    place = io.BytesIO()
    torch.save(model, place)
    place.seek(0)
    return torch.load(place, weights_only=False)


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.jit.script": torch.jit.script,
    "torch.jit.trace": lambda model: torch.jit.trace(model, batch(0)),
    "torch.export": lambda model: torch.export.export(model, (batch(0),)).module(),
    "torch.fx": torch.fx.symbolic_trace,
    "torch.compile": lambda model: torch.compile(model, backend="eager", fullgraph=True),
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_watched_model_can_be_copied_traced_and_scripted_at_any_time(offline: dict[str, Any], way: str) -> None:
    torch._dynamo.reset()
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1, "logits": 1}, **offline)
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        with torch.no_grad():
            if way != "torch.compile":
                other = WAYS[way](model)  # hooks hang on the model, for the step is sampled
                assert torch.equal(other(batch(step)), model.eval()(batch(step)))
            else:
                assert torch.allclose(WAYS[way](model)(batch(step)), model.eval()(batch(step)))
        model.train()
        loss.backward()
        optimizer.step()
    run.finish(timeout=0)
    torch._dynamo.reset()
    assert list(read_scalars(offline["dir"], "train/activations/head/rms")) == [1, 2, 3]
    assert read_scalars(offline["dir"], PASSES) == {1: 1.0, 2: 1.0, 3: 1.0}


@pytest.mark.parametrize("is_zipped", [True, False])
def test_what_is_saved_of_a_watched_model_knows_nothing_of_sidestep(offline: dict[str, Any], is_zipped: bool) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1}, **offline)
    take_step(model, optimizer)
    place = io.BytesIO()
    torch.save({"model": model, "optimizer": optimizer.state_dict()}, place, _use_new_zipfile_serialization=is_zipped)
    run.finish(timeout=0)
    assert b"sidestep" not in place.getvalue()
    place.seek(0)
    with torch.serialization.safe_globals([SmallNet, nn.ModuleList, nn.Linear, set]):
        # Of whole models in the older format torch itself can read none with `weights_only`.
        found = torch.load(place, weights_only=is_zipped)["model"]
    assert torch.equal(found(batch(0)), model(batch(0)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_a_model_leaves_its_hooks_where_they_were(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1}, **offline)
    take_step(model, optimizer)
    before = [dict(hooks) for entry in model.modules() for hooks in (entry._forward_hooks, entry._forward_pre_hooks)]
    assert any(before)
    torch.jit.script(model)
    after = [dict(hooks) for entry in model.modules() for hooks in (entry._forward_hooks, entry._forward_pre_hooks)]
    assert before == after
    run.finish(timeout=0)


def test_hooks_of_an_optimizer_that_something_removes_are_said_at_the_end(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    take_step(model, optimizer, 0)
    optimizer._optimizer_step_pre_hooks.clear()
    optimizer._optimizer_step_post_hooks.clear()
    take_step(model, optimizer, 1)
    run.log({"mine": 1.0})
    with pytest.warns(SidestepWarning, match="removed hooks from SGD: its steps after 0 were not seen") as warned:
        run.finish(timeout=0)
    assert len([entry for entry in warned if "removed hooks" in str(entry.message)]) == 1
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0]
    assert list(read_scalars(offline["dir"], "train/mine")) == [0]


def test_without_hooks_on_modules_the_rest_is_measured(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = sgd(model)
    run = sidestep.watch(model, optimizer, every=1, probes={"activations": 1}, **offline)
    for step in range(4):
        for module in model.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0, 1, 2, 3]
    assert not {tag for tag in read_tags(offline["dir"]) if tag.startswith("train/activations")}


@pytest.mark.parametrize("event", ["begin", "before_step", "gradients", "after_step", "report", "end_step", "detach"])
def test_a_probe_may_raise_anywhere(offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")

    def broken(*_: object) -> None:
        raise RuntimeError("oh")

    kind = type("Broken", (Probe,), {"name": "broken", event: broken})
    model = small_net()
    optimizer = sgd(model)
    with pytest.warns(SidestepWarning, match=f"'broken' is switched off: {event} raised RuntimeError: oh") as warned:
        run = sidestep.watch(model, optimizer, every=1, probes=[kind()], **offline)
        for step in range(3):
            take_step(model, optimizer, step)
        run.finish(timeout=0)
    assert len(warned) == 1
    assert run.stats["refused"] == {"probe": 1}
    assert list(read_scalars(offline["dir"], GLOBAL)) == [0, 1, 2]
