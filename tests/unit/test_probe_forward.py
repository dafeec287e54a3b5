"""Probes that look at forward passes: their numbers, and that their hooks are there in sampled steps alone."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import batch, offline, small_net, take_step
from torch import Tensor, nn

import sidestep
from sidestep.probes import activations, logits, timing

__all__ = ["offline"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


# --- activations -------------------------------------------------------------------------------------------------


def test_outputs_of_layers_are_those_of_a_plain_computation(offline: dict[str, Any]) -> None:
    model = network()
    with torch.no_grad():
        model[0].bias[:3] = -100.0  # three units that never fire
        model[2].weight.mul_(20.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    run = sidestep.watch(model, optimizer, probes={"activations": 2}, **offline)
    seen: list[dict[str, Tensor]] = []
    for step in range(3):
        x, outputs = batch(step), {}
        with torch.no_grad():
            for name, layer in model.named_children():
                x = outputs[name] = layer(x)
        seen.append(outputs)
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    for name in "01234":
        for what, number in (
            ("rms", lambda x: float(x.double().square().mean().sqrt())),
            ("absmax", lambda x: float(x.abs().max())),
            ("std", lambda x: float(x.double().std(correction=0))),
            ("kurtosis", lambda x: float(x.double().pow(4).mean() / x.double().square().mean().square())),
            ("zero_share", lambda x: float((x == 0).double().mean())),
        ):
            expected = {step: number(seen[step][name]) for step in (1, 2)}
            tag = f"train/activations/{name}/{what}"
            assert read_scalars(offline["dir"], tag) == pytest.approx(expected, rel=1e-5), tag
    massive = {step: float(seen[step]["2"].abs().max() / seen[step]["2"].abs().median()) for step in (1, 2)}
    assert read_scalars(offline["dir"], "train/activations/2/massive_ratio") == pytest.approx(massive, rel=1e-5)
    assert "train/activations/1/massive_ratio" not in read_tags(offline["dir"])
    dead = {step: float((seen[step]["1"] == 0).all(0).double().mean()) for step in (1, 2)}
    assert read_scalars(offline["dir"], "train/activations/1/dead_share") == pytest.approx(dead)
    assert min(dead.values()) >= 3 / 16
    saturated = {step: float((seen[step]["3"].abs() > 0.99).double().mean()) for step in (1, 2)}
    assert min(saturated.values()) > 0.1
    assert read_scalars(offline["dir"], "train/activations/3/saturated_share") == pytest.approx(saturated)
    shares = {tag for tag in read_tags(offline["dir"]) if tag.endswith(("dead_share", "saturated_share"))}
    assert shares == {"train/activations/1/dead_share", "train/activations/3/saturated_share"}


def test_hooks_hang_in_sampled_steps_alone(offline: dict[str, Any]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    off = {"time": False, "logits": False}
    run = sidestep.watch(model, optimizer, probes={**off, "activations": 3}, **offline)
    hanging: list[tuple[int, int]] = []
    within: list[int] = []
    model[0].register_forward_pre_hook(lambda *_: within.append(hooks_on(model)))
    for step in range(7):
        before = hooks_on(model)
        take_step(model, optimizer, step)
        hanging.append((before, within[-1]))
    run.finish(timeout=0)
    assert hanging == [(0, 0), (1, 6), (0, 0), (1, 6), (0, 0), (0, 0), (1, 6)]
    assert hooks_on(model) == 0
    assert list(read_scalars(offline["dir"], "train/activations/0/rms")) == [1, 3, 6]


def test_parts_of_a_model_that_is_not_called_itself_are_looked_at_each(offline: dict[str, Any]) -> None:
    parts = nn.ModuleDict({"first": network(), "second": network()})
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.01)
    run = sidestep.watch(parts, optimizer, probes={"activations": 1, "logits": 1}, **offline)
    for step in range(2):
        (parts["first"](batch(step)) * parts["second"](batch(step))).sum().backward()
        optimizer.step()
    assert hooks_on(parts) > 0
    run.finish(timeout=0)
    assert hooks_on(parts) == 0
    for name in ("first.0", "second.4"):
        assert list(read_scalars(offline["dir"], f"train/activations/{name}/rms")) == [1]
    assert list(read_scalars(offline["dir"], "train/logits/max")) == [1]


def test_validation_between_steps_is_not_taken_for_training(offline: dict[str, Any]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = sidestep.watch(model, optimizer, probes={"activations": 1, "logits": 1, "time": 1}, **offline)
    take_step(model, optimizer, 0)
    model.eval()
    with torch.no_grad():
        model(batch(5) * 1000)
    model.train()
    take_step(model, optimizer, 1)
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], "train/activations/0/absmax")[1] < 50
    assert read_scalars(offline["dir"], "train/logits/max")[1] < 50


def test_at_most_so_many_modules_are_chosen_from_first_to_last() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(200)))
    names = [int(name) for name, _ in activations.chosen(model, 64)]
    assert (len(names), names[0], names[-1]) == (64, 0, 199)
    gaps = {after - before for before, after in itertools.pairwise(names)}
    assert gaps <= {3, 4}
    assert [name for name, _ in activations.chosen(nn.ReLU(), 64)] == ["model"]


def test_units_of_images_are_their_channels() -> None:
    output = torch.randn(4, 6, 5, 5).relu()
    output[:, 2] = 0.0
    assert activations.measure(nn.ReLU(), output)["dead_share"].item() == pytest.approx(1 / 6)


def test_halves_are_summed_in_single_precision() -> None:
    output = torch.full((64, 64), 300.0, dtype=torch.float16)
    assert activations.measure(nn.Linear(1, 1), output)["rms"].item() == pytest.approx(300.0)


@pytest.mark.parametrize(("module", "value"), [(nn.Sigmoid(), 0.999), (nn.Hardtanh(-2.0, 2.0), -2.0)])
def test_saturation_is_nearness_to_an_end_of_the_range(module: nn.Module, value: float) -> None:
    output = torch.tensor([[value, 0.5]])
    assert activations.measure(module, output)["saturated_share"].item() == 0.5


def test_a_rectifier_with_an_upper_end_is_saturated_there_alone() -> None:
    found = activations.measure(nn.ReLU6(), torch.tensor([[0.0, 0.0, 3.0, 6.0]]))
    assert found["saturated_share"].item() == 0.25
    assert found["dead_share"].item() == 0.5


def test_an_output_of_zeros_alone_has_no_massive_ratio() -> None:
    found = activations.measure(nn.Linear(1, 1), torch.zeros(8, 8))
    assert found["massive_ratio"].item() == found["std"].item() == found["kurtosis"].item() == 0.0


# --- logits ------------------------------------------------------------------------------------------------------


def test_logits_confidence_and_entropies(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=2, probes={"logits": True}, **offline)
    expected: dict[str, dict[int, float]] = {tag: {} for tag in logits.TAGS}
    for step in range(5):
        with torch.no_grad():
            raw = model(batch(step)).double()
        share = raw.softmax(-1)
        mean = share.mean(0)
        numbers = (
            raw.max(),
            raw.mean(),
            raw.std(correction=0),
            share.max(-1).values.mean(),
            -(share * share.log()).sum(-1).mean(),
            -(mean * mean.log()).sum(),
        )
        if step in (1, 2, 4):
            for tag, number in zip(logits.TAGS, numbers, strict=True):
                expected[tag][step] = float(number)
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    for tag, values in expected.items():
        assert read_scalars(offline["dir"], tag) == pytest.approx(values, rel=1e-5), tag


def test_logits_are_found_in_what_models_return() -> None:
    tensor = torch.randn(4, 3)
    for output in (tensor, (tensor, None), {"logits": tensor}, SimpleNamespace(logits=tensor)):
        assert logits.logits_of(output) is tensor
    for output in (torch.randn(4), torch.randn(4, 1), torch.ones(4, 3).long(), None, "text", {}, [None]):
        assert logits.logits_of(output) is None


def test_of_very_many_logits_a_part_is_looked_at() -> None:
    rows = torch.randn(4096, 1).expand(4096, 4096)
    values = logits.measure(rows)
    assert values[3].item() == pytest.approx(1 / 4096)
    assert values[4].item() == pytest.approx(math.log(4096), rel=1e-4)


# --- time --------------------------------------------------------------------------------------------------------


class Clock:
    """Stands for `time`: it goes on when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Slow(nn.Module):
    """Takes 30 ms forward and 60 ms backward."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.clock = clock

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.clock.sleep(0.03)
        inner = self.layer(x)
        inner.register_hook(lambda _: self.clock.sleep(0.06))
        return {"loss": inner.square().sum(), "name": "slow"}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_phases_of_a_step_are_timed(
    offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch, micro_batches: int
) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    model = Slow(clock)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    optimizer.register_step_pre_hook(lambda *_: clock.sleep(0.01))  # called after sidestep's: part of the step
    for _ in range(2):
        for number in range(micro_batches):
            clock.sleep(0.05)
            model(batch(number))["loss"].backward()
        clock.sleep(0.07)
        optimizer.step()
    run.finish(timeout=0)
    expected = {
        "train/performance/forward_time_ms": 30 * micro_batches,
        "train/performance/backward_time_ms": 60 * micro_batches,
        "train/performance/optimizer_time_ms": 10,
        "perf/step_time_ms": 140 * micro_batches + 80,
        "perf/data_loading_frac": 50 * micro_batches / (140 * micro_batches + 80),
    }
    for tag, value in expected.items():
        assert read_scalars(offline["dir"], tag) == pytest.approx({1: value}), tag


def test_waiting_is_left_out_where_somebody_else_tells_it(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, probes={"time": {"every": 1, "waiting": False}}, **offline)
    for step in range(3):
        take_step(model, optimizer, step)
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], "perf/step_time_ms")) == [1, 2]
    assert "perf/data_loading_frac" not in read_tags(offline["dir"])


def test_a_step_without_a_forward_pass_has_times_all_the_same(offline: dict[str, Any]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, **offline)
    optimizer.step()
    optimizer.step()
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], "perf/step_time_ms")) == [1]
    assert "perf/data_loading_frac" not in read_tags(offline["dir"])


# --- all of them -------------------------------------------------------------------------------------------------


def squared(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).square().mean()


@pytest.mark.parametrize("parts", [True, False])
def test_with_every_probe_training_is_the_same_bit_for_bit(offline: dict[str, Any], parts: bool) -> None:
    def train(*, watched: bool) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(16, 3)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if watched:
            probes: dict[str, Any] = dict.fromkeys(
                ("activations", "attention", "data", "logits", "weights", "moments", "time", "memory"), 1
            )
            costly = {"every": 7, "loss": squared, "batch": batch(99)}
            probes |= {
                "gradients": {"every": 1, "parameters": True},
                "updates": {"every": 1, "exact": True},
                "weights": {"every": 7, "stable_rank": True},
                "effectiveness": 1,
                "features": {"every": 1, "modules": ["0", "4"]},
                "noise": {"every": 1} if parts else costly,
                "curvature": {**costly, "steps": 2, "vectors": 2, "budget": 1e9, "backend": "own"},
            }
            sidestep.watch(model, optimizer, every=1, probes=probes, **offline)
        for step in range(20):
            for _ in range(2):
                (model(batch(step)).square().sum() / 2).backward()
            sidestep.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return [*model.state_dict().values()], torch.get_rng_state()

    plain, plain_state = train(watched=False)
    watched, watched_state = train(watched=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(plain_state, watched_state)
    run = sidestep.active_run()
    assert run is not None
    run.finish(timeout=0)
    assert {"noise/gns", "curvature/trace", "train/updates/effectiveness"} <= read_tags(offline["dir"])
