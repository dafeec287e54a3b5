"""Applied against expected changes: of torch's optimizers none is lost, of discrete ones what a plain computation says."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support.journal_reader import read_scalars, read_tags
from support.watched import batch, flat, offline, small_net, take_step
from torch import Tensor, nn

import sidestep
from sidestep.errors import SidestepWarning
from sidestep.probes.effectiveness import ratios

__all__ = ["offline"]

EFFECTIVENESS, COSINE, LOST = (
    f"train/updates/{name}" for name in ("effectiveness", "cosine_expected", "information_lost")
)
SHARE, COUNT, SIZE = (f"train/updates/{name}" for name in ("changed_share", "changed_count", "step_size_ratio"))

ASKED, DONE = "train/updates/expected_norm", "train/updates/applied_norm"


class Quantised(torch.optim.Optimizer):
    """Gradient descent in whole quanta, which can tell what it would do without them."""

    def __init__(self, parameters: Any, lr: float, quantum: float) -> None:
        super().__init__(parameters, {"lr": lr, "quantum": quantum})

    def expected_update(self, parameter: Tensor) -> Tensor | None:
        return None if parameter.grad is None else -self.param_groups[0]["lr"] * parameter.grad

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        quantum = self.param_groups[0]["quantum"]
        for parameter in self.param_groups[0]["params"]:
            change = self.expected_update(parameter)
            if change is not None:
                parameter.add_((change / quantum).round() * quantum)


@pytest.mark.parametrize(
    "make",
    [
        lambda each: torch.optim.SGD(each, lr=0.01),
        lambda each: torch.optim.SGD(each, lr=0.01, weight_decay=0.1, maximize=True),
        lambda each: torch.optim.SGD(each, lr=0.01, momentum=0.9, dampening=0.3),
        lambda each: torch.optim.SGD(each, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda each: torch.optim.Adam(each, lr=0.01, weight_decay=0.1),
        lambda each: torch.optim.Adam(each, lr=torch.tensor(0.01, dtype=torch.float64), betas=(0.5, 0.9), amsgrad=True),
        lambda each: torch.optim.AdamW(each, lr=0.01, weight_decay=0.5, maximize=True),
        lambda each: torch.optim.AdamW(each, lr=0.01, capturable=False, fused=True),
        lambda each: torch.optim.NAdam(each, lr=0.01),
    ],
)
def test_torch_optimizers_do_what_is_expected(offline: dict[str, Any], make: Any) -> None:
    model = small_net().double()
    optimizer = make(model.parameters())
    is_known = not isinstance(optimizer, torch.optim.NAdam)
    expected = None if is_known else (lambda parameter: -0.01 * torch.ones_like(parameter))
    settings = {"every": 1, "expected": expected}
    run = sidestep.watch(model, optimizer, probes={"effectiveness": settings}, **offline)
    for step in range(5):
        optimizer.zero_grad()
        model(batch(step).double()).square().sum().backward()
        if step == 3:
            model.head.bias.grad = None  # left as it is, whatever its momentum
        optimizer.step()
    run.finish(timeout=0)
    found = read_scalars(offline["dir"], LOST)
    assert list(found) == [0, 1, 2, 3, 4]
    assert (max(found.values()) < 1e-9) == is_known
    if is_known:
        assert read_scalars(offline["dir"], EFFECTIVENESS) == pytest.approx(dict.fromkeys(range(5), 1.0))
        assert read_scalars(offline["dir"], COSINE) == pytest.approx(dict.fromkeys(range(5), 1.0))
        assert read_scalars(offline["dir"], SHARE)[3] == pytest.approx(1 - 3 / 106)


def test_settings_that_change_are_followed_after_a_state_was_loaded(offline: dict[str, Any]) -> None:
    model = small_net().double()
    groups = [{"params": model.blocks.parameters()}, {"params": model.head.parameters(), "lr": 0.5}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    run = sidestep.watch(model, optimizer, every=1, probes=["effectiveness"], **offline)
    for step in range(3):
        optimizer.zero_grad()
        model(batch(step).double()).square().sum().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.param_groups[1]["lr"] *= 0.1
    run.finish(timeout=0)
    assert max(read_scalars(offline["dir"], LOST).values()) < 1e-9


def test_a_discrete_optimizer_is_measured_against_its_own_word(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = Quantised(model.parameters(), lr=0.01, quantum=0.02)
    run = sidestep.watch(model, optimizer, probes={"effectiveness": 1}, **offline)
    expected: dict[str, dict[int, float]] = {
        name: {} for name in (EFFECTIVENESS, COSINE, LOST, SHARE, COUNT, SIZE, ASKED, DONE)
    }
    head: dict[str, dict[int, float]] = {name: {} for name in (EFFECTIVENESS, COSINE, LOST, SHARE)}
    moved: dict[int, float] = {}
    for step in range(6):
        before = [entry.detach().clone() for entry in model.parameters()]
        optimizer.zero_grad()
        (model(batch(step)).square().sum() * 0.4**step).backward()
        wanted = [-0.01 * entry.grad for entry in model.parameters() if entry.grad is not None]
        optimizer.step()
        done = [entry.detach() - old for entry, old in zip(model.parameters(), before, strict=True)]
        for values, a, e in ((expected, flat(done), flat(wanted)), (head, flat(done[-2:]), flat(wanted[-2:]))):
            numbers = {
                EFFECTIVENESS: a.norm() / e.norm(),
                COSINE: a @ e / (a.norm() * e.norm()) if a.norm() else 0.0,
                LOST: (a - e).norm() / e.norm(),
                SHARE: (a != 0).double().mean(),
                COUNT: (a != 0).sum(),
                ASKED: e.norm(),
                DONE: a.norm(),
                SIZE: a.abs().sum() / e.abs().sum(),
            }
            for name, series in values.items():
                series[step] = float(numbers[name])
        moved[step] = float((flat(done[-2:]) != 0).any())
    run.finish(timeout=0)
    assert 0 < min(expected[EFFECTIVENESS].values()) + max(expected[SHARE].values()) < 2
    assert set(moved.values()) == {0.0, 1.0}
    for name, series in expected.items():
        assert read_scalars(offline["dir"], name) == pytest.approx(series, rel=1e-4, abs=1e-6), name
    for name, series in head.items():
        assert read_scalars(offline["dir"], f"{name}/head") == pytest.approx(series, rel=1e-4, abs=1e-6), name
    frequency = {step: sum(moved[earlier] for earlier in range(step + 1)) / (step + 1) for step in range(6)}
    assert read_scalars(offline["dir"], "train/updates/update_frequency/head") == pytest.approx(frequency)


@pytest.mark.parametrize("exact", [False, True])
def test_weights_in_low_precision_lose_small_steps(offline: dict[str, Any], exact: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(100, 60).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    run = sidestep.watch(model, optimizer, probes={"effectiveness": {"every": 1, "exact": exact}}, **offline)
    before = flat(model.parameters())
    model(torch.randn(8, 100).to(torch.bfloat16)).sum().backward()
    wanted = -1e-4 * flat([model.weight.grad, model.bias.grad])
    optimizer.step()
    done = flat(model.parameters()) - before
    run.finish(timeout=0)
    share = float((done != 0).double().mean())
    assert 0.02 < share < 0.98
    error = 0.0 if exact else 5 * (share * (1 - share) / 1024) ** 0.5
    assert read_scalars(offline["dir"], SHARE)[0] == pytest.approx(share, abs=error + 1e-5)
    lost = float((done - wanted).norm() / wanted.norm())
    assert read_scalars(offline["dir"], LOST)[0] == pytest.approx(lost, rel=1e-4 if exact else 0.3)
    if exact:
        assert read_scalars(offline["dir"], COUNT)[0] == int((done != 0).sum())


def test_a_fused_step_under_a_scaler_expects_gradients_without_their_scale(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run = sidestep.watch(model, optimizer, every=1, probes=["effectiveness"], **offline)
    for step in range(2):
        optimizer.zero_grad()
        scaler.scale(model(batch(step)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    run.finish(timeout=0)
    assert read_scalars(offline["dir"], EFFECTIVENESS) == pytest.approx({0: 1.0, 1: 1.0}, rel=1e-4)


def test_a_step_with_a_closure_is_left_out(offline: dict[str, Any]) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sidestep.watch(model, optimizer, every=1, probes=["effectiveness"], **offline)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(batch(0)).square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    take_step(model, optimizer, 1)
    optimizer.step(closure)
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], EFFECTIVENESS)) == [1]


def test_an_optimizer_that_nobody_knows_is_said_once(offline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")
    model = small_net()
    optimizers = [torch.optim.Rprop(model.head.parameters()), torch.optim.SGD(model.blocks.parameters(), lr=0.01)]
    run = sidestep.watch(model, optimizers, every=1, probes=["effectiveness"], **offline)
    for step in range(2):
        model(batch(step)).square().sum().backward()
        with (
            pytest.warns(SidestepWarning, match="does not know what Rprop should change")
            if step == 0
            else nullcontext()
        ):
            optimizers[0].step()
        optimizers[1].step()
    run.finish(timeout=0)
    assert list(read_scalars(offline["dir"], EFFECTIVENESS)) == [0, 1]
    assert f"{EFFECTIVENESS}/head" not in read_tags(offline["dir"])


def test_nothing_expected_and_nothing_done_is_no_loss() -> None:
    assert ratios(torch.zeros(7), 5).tolist() == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    done, unexpected = torch.zeros(7), torch.zeros(7)
    done[[1, 2, 5]] = 4.0  # expected, not done
    assert ratios(done, 5).tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 2.0, 0.0]
    unexpected[[0, 2, 4, 6]] = 4.0
    assert ratios(unexpected, 5)[:2].tolist() == [float("inf"), 0.0]
