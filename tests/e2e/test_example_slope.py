"""The example of the slope family: all that its profile names arrives, with the numbers of a training done once more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.signal
import torch
from support.families import EXAMPLES, TWO_RANKS, imported, missing_of, shown_tags, stored_tags, trained
from support.place import Place
from torch import Tensor

from sidestep_collector.profiles import builtin

EPOCHS, SAMPLES, BATCH, WIDTH, EVERY, LR, DECAY, SEED = 4, 1024, 32, 2, 50, 0.1, 1e-4, 3
PER_EPOCH = SAMPLES // BATCH
STEPS = EPOCHS * PER_EPOCH
#: What part 3 of the family asks for beside the tags of its profile.
ALSO = ("train/loss_total", "train/acc", "train/lr", "train/wd", "val/loss_nats", "val/loss_bits", "val/acc")


def command() -> tuple[str, ...]:
    given = (
        *(f"--epochs={EPOCHS}", f"--samples={SAMPLES}", f"--batch-size={BATCH}", f"--width={WIDTH}", f"--lr={LR}"),
        *(f"--weight-decay={DECAY}", f"--seed={SEED}", f"--curvature-every={EVERY}"),
        *("--curvature-budget=1e9", "--save-every=2"),
    )
    return (str(EXAMPLES / "slope" / "train.py"), *given)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The script of the example, as a module."""
    return imported("slope", "train")[0]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("slope") / "data")
    trained(place, "r", *command())
    yield place
    place.close()


class Once(NamedTuple):
    """The same training without sidestep, by step: losses of batches, validations, norms, weights before some steps."""

    nats: list[float]
    acc: list[float]
    validations: dict[int, tuple[float, float]]
    norms: dict[int, tuple[float, float]]
    weights: dict[int, dict[str, Tensor]]
    fixed: tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def once(example: Any) -> Once:
    torch.manual_seed(SEED)
    train, val = example.load(SAMPLES, held_out=2048, seed=SEED)
    model = example.network(WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(SEED)
    fixed = val.inputs()[: example.FIXED], val.then[: example.FIXED]
    once = Once([], [], {}, {}, {}, fixed)
    for step in range(STEPS):
        if step % PER_EPOCH == 0:
            order = torch.randperm(SAMPLES, generator=generator)
        at = order[step % PER_EPOCH * BATCH :][:BATCH]
        inputs = torch.nn.functional.one_hot(train.before[at], 64).reshape(BATCH, -1).float()
        logits = model(inputs)
        loss = -logits.log_softmax(1)[torch.arange(BATCH), train.then[at]].mean()
        optimizer.zero_grad()
        loss.backward()
        gradient = norm_of([entry.grad for entry in model.parameters()])
        optimizer.step()
        once.nats.append(loss.item())
        once.acc.append(float(np.mean((logits.argmax(1) == train.then[at]).numpy())))
        once.norms[step] = (gradient, norm_of([entry.detach() for entry in model.parameters()]))
        once.weights[step] = {name: entry.detach().double() for name, entry in model.named_parameters()}
        if (step + 1) % (PER_EPOCH // 4) == 0:
            with torch.no_grad():
                found = model(val.inputs()).double().log_softmax(1)
            nats = -float(found[torch.arange(2048), val.then].mean())
            once.validations[step] = (nats, float((found.argmax(1) == val.then).double().mean()))
    return once


def norm_of(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in tensors))


def series(place: Place, tag: str) -> dict[int, float]:
    return dict(place.values("r", tag))


# --- what arrives --------------------------------------------------------------------------------------------------


def test_every_quantity_is_in_the_store_in_tensorboard_and_in_the_files(done: Place) -> None:
    wanted = {*ALSO, *builtin("slope").metrics, *builtin("slope").targets}
    for tags in (stored_tags(done, "r"), shown_tags(done, "r", project="slope")):
        assert missing_of("slope", tags) == []
        assert sorted(wanted - tags) == []
    done.check_whole("r")
    document = done.document("r", EPOCHS, project="slope")
    assert document["metrics"]["train/loss_bits"]["n"] == PER_EPOCH
    assert document["metrics"]["val/loss_nats"]["n"] == 4
    assert document["metrics"]["grad_norm"]["n"] == 4  # of the last validation of epoch 3, and three of this one


# --- its numbers ---------------------------------------------------------------------------------------------------


def test_the_loss_of_every_batch_is_that_of_a_plain_training(done: Place, once: Once) -> None:
    every = dict(enumerate(once.nats))
    assert series(done, "train/loss_nats") == pytest.approx(every, rel=1e-5)
    assert series(done, "train/loss_total") == series(done, "train/loss_nats")
    in_bits = {step: nats / math.log(2) for step, nats in series(done, "train/loss_nats").items()}
    assert series(done, "train/loss_bits") == pytest.approx(in_bits, rel=1e-12)
    assert series(done, "train/acc") == pytest.approx(dict(enumerate(once.acc)), abs=1.5 / BATCH)
    assert set(series(done, "train/lr").values()) == {LR}
    assert set(series(done, "train/wd").values()) == {DECAY}
    assert len(series(done, "train/lr")) == len(series(done, "train/wd")) == STEPS


def test_validations_come_each_quarter_of_an_epoch_and_norms_with_each(done: Place, once: Once) -> None:
    found = once.validations
    assert len(found) == 4 * EPOCHS
    assert series(done, "val/loss_nats") == pytest.approx({step: nats for step, (nats, _) in found.items()}, rel=1e-5)
    bits = {step: nats / math.log(2) for step, (nats, _) in found.items()}
    assert series(done, "val/loss_bits") == pytest.approx(bits, rel=1e-5)
    assert series(done, "val/acc") == pytest.approx({step: acc for step, (_, acc) in found.items()}, abs=2e-3)
    epochs = done.rows(
        "select distinct epoch from snapshots s where run = 'r' and tier = 'epoch' and exists (select * from points p "
        "where p.run = s.run and p.step = s.step and metric = 'val/acc') order by epoch"
    )
    assert {epoch for (epoch,) in epochs} >= {1 + quarter / 4 for quarter in range(4 * EPOCHS)}
    after = [step + 1 for step in found if step + 1 < STEPS]
    assert series(done, "grad_norm") == pytest.approx({step: once.norms[step][0] for step in after}, rel=1e-4)
    weights = series(done, "weight_norm")
    assert set(after) <= set(weights)
    assert weights == pytest.approx({step: once.norms[step][1] for step in weights}, rel=1e-5)


def test_curvature_is_that_of_the_exact_hessian_in_double_precision(done: Place, once: Once, example: Any) -> None:
    assert list(series(done, "curvature/trace")) == list(range(0, STEPS, EVERY))
    model = example.network(WIDTH).double()
    for step in (EVERY, 2 * EVERY):
        matrix = hessian(model, once, step)
        values = np.linalg.eigvalsh(matrix)
        assert series(done, "curvature/lambda_max")[step] == pytest.approx(values[-1], rel=0.02)
        assert series(done, "curvature/lambda_min")[step] == pytest.approx(values[0], rel=0.1, abs=1e-3)
        assert series(done, "curvature/trace")[step] == pytest.approx(np.trace(matrix), rel=2e-3)
        assert series(done, "curvature/trace_se")[step] == 0.0
    assert min(series(done, "perf/curvature_time_ms").values()) > 0


def hessian(model: torch.nn.Module, once: Once, step: int) -> Any:
    at, (inputs, targets) = once.weights[step], (once.fixed[0].double(), once.fixed[1])
    sizes, shapes = [entry.numel() for entry in at.values()], [entry.shape for entry in at.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = {name: part.view(shape) for name, part, shape in zip(at, flat.split(sizes), shapes, strict=True)}
        logits = torch.func.functional_call(model, parts, (inputs,))
        return -logits.log_softmax(1)[torch.arange(len(targets)), targets].mean()

    flat = torch.cat([entry.reshape(-1) for entry in at.values()])
    return torch.autograd.functional.hessian(loss, flat).numpy()


def test_noise_of_the_loss_is_that_of_its_spectrum(done: Place, once: Once) -> None:
    losses = np.array(once.nats[PER_EPOCH : 3 * PER_EPOCH])  # epochs 2 and 3
    frequency, power = scipy.signal.welch(scipy.signal.detrend(losses), nperseg=min(256, len(losses)))
    upper = frequency >= 0.25
    tail = np.polyfit(np.log(frequency[upper]), np.log(power[upper]), 1)[0]
    moves = np.diff(losses)
    expected = {
        "noise/psd_tail": tail,
        "noise/psd_tail_power": power[upper].mean(),
        "noise/residual_power": np.var(scipy.signal.detrend(losses)),
        "noise/floor": 1.4826 * np.median(np.abs(moves - np.median(moves))) / math.sqrt(2),
    }
    for tag, value in expected.items():
        assert list(series(done, tag).values()) == pytest.approx([value], rel=1e-3), tag


def test_noise_of_the_gradient_is_that_of_the_parts_of_a_batch(done: Place, once: Once, example: Any) -> None:
    found = series(done, "noise/grad_variance")
    signals = series(done, "noise/grad_signal")
    assert len(found) >= 2
    for step, variance in found.items():
        model = example.network(WIDTH).double()
        model.load_state_dict(once.weights[step])
        parts = []
        for inputs, targets in zip(*(part.chunk(8) for part in once.fixed), strict=True):
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs.double()), targets).backward()
            parts.append(np.concatenate([entry.grad.numpy().ravel() for entry in model.parameters()]) / 8)
        gradients = np.array(parts)
        expected = 8 / 7 * ((gradients - gradients.mean(0)) ** 2).sum()
        assert variance == pytest.approx(expected, rel=1e-3)
        assert signals[step] == pytest.approx((gradients.sum(0) ** 2).sum() - expected, rel=1e-2, abs=1e-4)


def test_a_checkpoint_is_as_large_as_its_file(done: Place, tmp_path: Path, example: Any) -> None:
    torch.save(example.network(WIDTH).state_dict(), tmp_path / "slope.pt")
    megabytes = (tmp_path / "slope.pt").stat().st_size / 1e6
    saved = {2 * PER_EPOCH - 1: megabytes, 4 * PER_EPOCH - 1: megabytes}
    assert series(done, "checkpoint_size_mb") == pytest.approx(saved, rel=1e-9)


def test_two_ranks_are_one_run_whose_losses_are_put_together(done: Place) -> None:
    script, *given = command()
    trained(done, "two", *TWO_RANKS, script, *given, "--epochs=1")
    losses = [dict(done.values("two", "train/loss_nats", rank=rank)) for rank in range(2)]
    assert len(losses[0]) == PER_EPOCH // 2
    assert losses[0] != losses[1]
    together = done.rows(
        "select step, value, ranks from points_over_ranks where run = 'two' and metric = 'train/loss_nats' order by step"
    )
    assert together == [(step, pytest.approx((losses[0][step] + losses[1][step]) / 2), 2) for step in losses[0]]
    bits = [dict(done.values("two", "train/loss_bits", rank=rank)) for rank in range(2)]
    for rank in range(2):
        assert bits[rank] == pytest.approx({step: nats / math.log(2) for step, nats in losses[rank].items()})
    norms = [dict(done.values("two", "train/gradients/global_norm", rank=rank)) for rank in range(2)]
    assert norms[0] == pytest.approx(norms[1])  # DistributedDataParallel has averaged gradients
    assert norms[0]
