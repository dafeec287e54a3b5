"""What a captured script does besides training, and what is no business of a capture: all of it is left as it is."""

from __future__ import annotations

from support.captured import SMALL, alone, captured, script, written
from support.place import Place


def test_no_auto_leaves_a_script_alone(place: Place) -> None:
    ran = captured(place, *script("mnist.py", "--epochs", "1"), options=("--no-auto",))
    assert ran.code == 0
    assert not ran.has_run
    assert "captured" not in ran.errors


def test_a_script_that_never_trains_begins_no_run(place: Place) -> None:
    text = (
        SMALL
        + """
    with torch.no_grad():
        F.cross_entropy(model(torch.randn(4, 4)), torch.zeros(4, dtype=torch.long))
    optimizer.step()  # without gradients
    torch.save(model.state_dict(), __file__ + ".pt")
    print("done")
    """
    )
    ran = captured(place, *written(place, text))
    assert (ran.code, ran.out.splitlines()[0]) == (0, "done")
    assert not ran.has_run
    assert "captured" not in ran.errors


def test_a_script_with_a_run_of_its_own_is_not_captured_twice(place: Place) -> None:
    text = (
        SMALL
        + """
    import sidestep
    run = sidestep.watch(model, optimizer, project="mine", every=4)
    train()
    run.log({"loss": 1.0}, step=3)
    """
    )
    ran = captured(place, *written(place, text))
    assert ran.code == 0, ran.errors
    assert place.rows("select project from runs") == [("mine",)]
    assert "train/loss_total" not in ran.metrics()
    assert "captured" not in ran.errors


def test_an_uncaught_exception_looks_as_if_nothing_were_wrapped(place: Place) -> None:
    text = (
        SMALL
        + """
    train()
    F.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 7]))
    """
    )
    command = written(place, text)
    plain = alone(*command)
    ran = captured(place, *command)
    assert (ran.code, plain.returncode) == (1, 1)
    assert plain.stderr in ran.errors
    [(state,)] = place.rows("select state from runs")
    assert state == "failed"


def test_an_exit_code_passes(place: Place) -> None:
    ran = captured(place, *written(place, SMALL + "\n    train()\n    raise SystemExit(7)\n"))
    assert ran.code == 7
    assert len(ran.values("train/loss_total")) == 12


def test_a_fault_in_capture_is_said_once_and_does_not_reach_the_script(place: Place) -> None:
    text = (
        SMALL
        + """
    from sidestep.auto import losses
    def broken(*_):
        raise RuntimeError("a fault of ours")
    losses.Losses._add = broken
    train()
    print("done")
    """
    )
    ran = captured(place, *written(place, text), SIDESTEP_STRICT="0")
    assert (ran.code, ran.errors.count("a fault of ours")) == (0, 1)
    assert "done" in ran.out
    assert len(ran.values("train/acc")) == 2


def test_what_traces_transforms_or_compiles_is_left_alone(place: Place) -> None:
    text = (
        SMALL
        + """
    import warnings
    warnings.simplefilter("ignore")
    train()
    def loss_of(x, y):
        return F.cross_entropy(x, y)
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    scripted = torch.jit.script(loss_of)
    traced = torch.jit.trace(loss_of, (x, y))
    functional = torch.func.vmap(torch.func.grad(lambda a, b: F.cross_entropy(a[None], b[None])))
    symbolic = torch.fx.symbolic_trace(loss_of)
    compiled = torch.compile(loss_of, backend="eager", fullgraph=True)
    for other in (scripted, traced, symbolic, compiled):
        assert torch.equal(other(x, y), loss_of(x, y))
    assert len(list(symbolic.graph.nodes)) == 4
    assert not [node for node in traced.graph.nodes() if "argmax" in node.kind() or "max" in node.kind()]
    functional(x.detach(), y)
    print("done")
    """
    )
    ran = captured(place, *written(place, text))
    assert ran.code == 0, ran.errors
    assert "done" in ran.out
    assert ran.errors.count("sidestep: ") == 1
