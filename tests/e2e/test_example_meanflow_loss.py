"""The loss of average-velocity flow matching, in the example: its gradients, its times, and what it tells of itself."""

import pytest
import torch
from support.meanflow import data, loss, model

# torch.func.jvp scripts its decompositions when it is first used.
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]


def drawn(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    x = data.latents(6, 3).to(dtype)
    noise = torch.randn(x.shape, generator=generator).to(dtype)
    r, t = loss.sample_times(6, 0.25, generator)
    return model.UNet().to(dtype), x, noise, r.to(dtype), t.to(dtype)


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_diagnostics_leave_every_gradient_as_it_is_bit_for_bit(derivative):
    gradients, given = [], []
    for return_diagnostics in (False, True):
        net, *batch = drawn()
        given.append(loss.MeanFlowLoss(derivative=derivative)(net, *batch, return_diagnostics=return_diagnostics))
        given[-1]["loss"].backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert set(given[0]) == {"loss", "loss_fm", "loss_mf"}
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    more = {name: value for name, value in given[1].items() if name not in given[0]}
    assert len(more) == 8
    assert more["loss_per_channel"].shape == (4,)
    assert all(torch.isfinite(value).all() and not value.requires_grad for value in more.values())
    assert all(torch.equal(given[0][name], given[1][name]) for name in given[0])


def test_diagnostics_take_no_pass_of_their_own():
    calls = []
    for return_diagnostics in (False, True):
        net, *batch = drawn()
        net.register_forward_hook(lambda *_, way=return_diagnostics: calls.append(way))
        loss.MeanFlowLoss()(net, *batch, return_diagnostics=return_diagnostics)
    assert calls == [False, False, True, True]


def test_forward_mode_and_finite_differences_agree_in_float64():
    net, *batch = drawn(torch.float64)
    exact = loss.MeanFlowLoss()(net, *batch, return_diagnostics=True)
    near = loss.MeanFlowLoss(derivative="difference", delta=1e-5)(net, *batch, return_diagnostics=True)
    assert {"loss_fm", "loss_mf", "jvp_norm"} < set(near) == set(exact)
    assert near["jvp_norm"] != exact["jvp_norm"] > 0.1  # computed in another way, of a network that is not flat
    for name, value in exact.items():
        torch.testing.assert_close(near[name], value, rtol=1e-6, atol=1e-9)


def test_times_are_ordered_logit_normal_and_a_quarter_of_them_alike():
    r, t = loss.sample_times(40_000, 0.25, torch.Generator().manual_seed(0))
    assert ((r >= 0) & (r <= t) & (t <= 1)).all()
    assert (r == t).double().mean() == pytest.approx(0.25)
    drawn = torch.cat([torch.logit(r[10_000:].double()), torch.logit(t[10_000:].double())])
    assert (drawn.mean(), drawn.std()) == (pytest.approx(-0.4, abs=0.02), pytest.approx(1.0, abs=0.02))


def test_a_watched_network_is_saved_as_an_unwatched_one(tmp_path):
    import sidestep

    net, *batch = drawn()
    before = {name: set(vars(part)) for name, part in net.named_modules()}
    keys = list(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters())
    run = sidestep.watch(net, optimizer, every=1, blocks=model.BLOCKS, dir=tmp_path, mode="offline", profile="meanflow")
    for _ in range(3):
        optimizer.zero_grad()
        loss.MeanFlowLoss()(net, *batch, return_diagnostics=True)["loss"].backward()
        optimizer.step()
    assert list(net.state_dict()) == keys
    assert all(isinstance(value, torch.Tensor) for value in net.state_dict().values())
    assert {name: set(vars(part)) for name, part in net.named_modules()} == before
    run.finish(timeout=0)
