"""The example of the backward family: all that its profile names arrives, with the numbers of a training done in numpy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.commands import call
from support.families import EXAMPLES, TWO_RANKS, imported, missing_of, shown_tags, stored_tags, trained
from support.place import Place

from sidestep_collector.commands.report import report
from sidestep_collector.query.backward import bottlenecks, export, suggestions, summary
from sidestep_collector.store import connect

SCRIPT = str(EXAMPLES / "backward" / "train.py")
#: Small enough for probes to look at all elements of each parameter: estimates are exact.
EPOCHS, WIDTH, EVERY, STEPS_AN_EPOCH = 3, 16, 2, 22
ARGUMENTS = ("--epochs", str(EPOCHS), "--width", str(WIDTH), "--every", str(EVERY))
BLOCKS = tuple(f"layer_{number}" for number in range(4))

Array = NDArray[np.float64]
Values = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The script of the example, as a module."""
    return imported("backward", "train")[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("backward") / "data")
    trained(place, "r", SCRIPT, *ARGUMENTS)
    yield place
    place.close()


class ByHand:
    """A network of weights m cos φ with rectifiers between its layers, and its gradients, in float64."""

    def __init__(self, magnitudes: list[Array], phases: list[Array]) -> None:
        self.magnitudes, self.phases = magnitudes, phases
        self.weights = [m * np.cos(phase) for m, phase in zip(magnitudes, phases, strict=True)]

    def gradients(self, parts: Array, labels: NDArray[np.int64]) -> tuple[list[Array], list[Array], dict[str, float]]:
        """∂L/∂m and ∂L/∂φ of each layer, and what is known of the first part's logits, and of all of them."""
        whole = [np.zeros_like(weight) for weight in self.weights]
        seen: dict[str, float] = {"train/loss_total": 0.0, "train/acc": 0.0}
        for number, (x, target) in enumerate(zip(parts, labels, strict=True)):
            inputs = [x]
            for weight in self.weights[:-1]:
                inputs.append(np.maximum(inputs[-1] @ weight.T, 0))
            logits = inputs[-1] @ self.weights[-1].T
            log_share = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
            log_share -= logits.max(1, keepdims=True)
            aim = 0.9 * np.eye(10)[target] + 0.01
            upstream = (np.exp(log_share) - aim) / labels.size
            seen["train/loss_total"] -= float((aim * log_share).sum(1).mean() / len(parts))
            seen["train/acc"] += float((logits.argmax(1) == target).sum() / labels.size)
            if number == 0:
                seen |= of_logits(logits, np.exp(log_share), target, upstream)
            for layer in reversed(range(len(self.weights))):
                whole[layer] += upstream.T @ inputs[layer]
                upstream = (upstream @ self.weights[layer]) * (inputs[layer] > 0)
        of_m = [g * np.cos(phase) for g, phase in zip(whole, self.phases, strict=True)]
        of_phase = [-g * m * np.sin(p) for g, m, p in zip(whole, self.magnitudes, self.phases, strict=True)]
        return of_m, of_phase, seen


def of_logits(logits: Array, share: Array, target: NDArray[np.int64], upstream: Array) -> dict[str, float]:
    values = {
        "max": logits.max(),
        "mean": logits.mean(),
        "std": logits.std(),
        "confidence": share.max(1).mean(),
        "target_confidence": share[np.arange(len(target)), target].mean(),
        "agreement": (logits.argmax(1) == target).mean(),
        "gradient_norm": np.linalg.norm(upstream),
    }
    return {f"train/logits/{name}": float(value) for name, value in values.items()}


def copies(model: Any, name: str) -> list[Array]:
    return [getattr(layer, name).detach().double().numpy().copy() for layer in model.layers]


def flat(arrays: list[Array]) -> Array:
    return np.concatenate([array.ravel() for array in arrays])


def replayed(example: Any) -> Values:
    """Every number of the training, step by step: weights from the example's own step, all else from numpy."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (images, labels), _ = example.load(0)
    model = example.PolarNet(WIDTH)
    optimizer = example.discrete(model, 0.6, 1.0)
    pixels, digits = images.double().numpy(), labels.numpy()
    shuffle = torch.Generator().manual_seed(0)
    quanta = [[layer.quanta[kind] for layer in model.layers] for kind in ("magnitude", "phase")]
    means = [np.zeros_like(one) for kind in ("magnitude", "phase") for one in copies(model, kind)]
    found: Values = {}
    moved, samples, step, total = np.zeros(4), 0, 0, EPOCHS * STEPS_AN_EPOCH
    for _ in range(EPOCHS):
        for batch in example.batches(len(images), shuffle):
            before = [*copies(model, "magnitude"), *copies(model, "phase")]
            of_m, of_phase, seen = ByHand(before[:4], before[4:]).gradients(pixels[batch], digits[batch])
            means = [0.9 * mean + 0.1 * g for mean, g in zip(means, (*of_m, *of_phase), strict=True)]
            rate = 0.6 * (1 - 0.7 * step / total)
            asked = [
                -rate * quantum * mean / np.sqrt((mean**2).mean())
                for quantum, mean in zip((*quanta[0], *quanta[1]), means, strict=True)
            ]
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            example.backward(model, images[batch], labels[batch])
            optimizer.step()
            after = [*copies(model, "magnitude"), *copies(model, "phase")]
            done = [now - then for now, then in zip(after, before, strict=True)]
            if step % EVERY == 0:
                samples += 1
                moved += [bool(done[layer].any() or done[layer + 4].any()) for layer in range(4)]
                seen |= of_changes(flat(done), flat(asked), flat(before)) | of_gradients(of_m, of_phase)
                seen |= {f"train/updates/update_frequency/{b}": n / samples for b, n in zip(BLOCKS, moved, strict=True)}
            for tag, value in seen.items():
                found.setdefault(tag, {})[step] = value
            step += 1
    return found


def of_changes(a: Array, e: Array, weights: Array) -> dict[str, float]:
    values = {
        "expected_norm": np.linalg.norm(e),
        "applied_norm": np.linalg.norm(a),
        "effectiveness": np.linalg.norm(a) / np.linalg.norm(e),
        "information_lost": np.linalg.norm(a - e) / np.linalg.norm(e),
        "cosine_expected": a @ e / np.linalg.norm(a) / np.linalg.norm(e),
        "step_size_ratio": np.abs(a).sum() / np.abs(e).sum(),
        "changed_count": np.count_nonzero(a),
        "changed_share": (a != 0).mean(),
        "relative_update_norm": np.linalg.norm(a) / np.linalg.norm(weights),
    }
    return {f"train/updates/{name}": float(value) for name, value in values.items()}


def of_gradients(of_m: list[Array], of_phase: list[Array]) -> dict[str, float]:
    values = {
        "gradients/global_norm": np.linalg.norm(flat([*of_m, *of_phase])),
        **{f"gradients/{b}": np.linalg.norm(flat(list(two))) for b, *two in zip(BLOCKS, of_m, of_phase, strict=True)},
        "kinds/magnitude/gradient_norm": np.linalg.norm(flat(of_m)),
        "kinds/phase/gradient_norm": np.linalg.norm(flat(of_phase)),
        "kinds/phase_magnitude/gradient_correlation": np.corrcoef(np.abs(flat(of_phase)), np.abs(flat(of_m)))[0, 1],
    }
    return {f"train/{name}": float(value) for name, value in values.items()}


def test_every_quantity_of_the_profile_is_stored_and_shown(place: Place) -> None:
    assert missing_of("backward", stored_tags(place, "r")) == []
    assert missing_of("backward", shown_tags(place, "r", project="backward")) == []
    assert place.rows("select rule, message from findings where run = 'r'") == []


def test_numbers_are_those_of_a_training_done_in_numpy(place: Place, example: Any) -> None:
    expected = replayed(example)
    assert len(expected) == 30
    for tag, values in expected.items():
        seen = dict(place.values("r", tag))
        assert len(seen) >= EPOCHS * STEPS_AN_EPOCH // EVERY - 1, tag  # the first step has no hooks on modules
        # A weight in ten thousand is rounded the other way in float32, and moves a share or a count by that much.
        wanted = {step: values[step] for step in seen}
        assert seen == pytest.approx(wanted, rel=2e-3, abs=2e-4), tag


def test_epochs_have_flow_counts_and_documents(place: Place, example: Any) -> None:
    norms = np.array([[dict(place.values("r", f"train/gradients/{b}"))[s] for b in BLOCKS] for s in range(0, 66, 2)])
    for epoch in range(1, EPOCHS + 1):
        mean = norms[(epoch - 1) * 11 : epoch * 11].mean(0)
        document = place.document("r", epoch, project="backward")["metrics"]
        assert document["train/flow/slope"]["last"] == pytest.approx(np.polyfit(range(4), np.log10(mean), 1)[0])
        assert document["train/flow/min_over_median"]["last"] == pytest.approx(mean.min() / np.median(mean))
        assert document["train/flow/class"]["last"] == 0
        for kind in ("explosion", "vanishing", "stagnation", "loss_spike", "memory"):
            assert document[f"train/stability/{kind}_count"]["last"] == 0
    # A weight is computed for the first of four parts, and once for the validation, whose weights the next step finds.
    first, *others = [value for _, value in place.values("r", "train/backward/cache_hit_rate")]
    assert [first, *others[:22]] == [0.75] * 22 + [0.8]


def test_times_add_up(place: Place) -> None:
    names = ("loss", "upstream", "update", "total")
    times = [dict(place.values("r", f"train/backward/{name}_time_ms")) for name in names]
    assert len(times[0]) >= 30
    for step, whole in times[3].items():
        loss, upstream, update = (one[step] for one in times[:3])
        assert min(loss, upstream, update) > 0
        assert loss + upstream + update < whole
    assert all(value > 0 for _, value in place.values("r", "train/backward/passes_per_sec"))


def test_the_report_has_it_on_the_console_as_json_and_as_a_dictionary(place: Place, tmp_path: Path) -> None:
    with closing(connect(place.root)) as connection:
        found, whole = summary(connection, "r"), export(connection, "r")
    assert found["flow"]["class"] == "uniform"
    assert found["flow"]["classes"] == {"uniform": EPOCHS}
    lost = [value for _, value in place.values("r", "train/updates/information_lost")]
    assert found["updates"]["information_lost"]["mean"] == pytest.approx(np.mean(lost))
    assert found["alerts"]["explosion"] == {"count": 0, "findings": 0, "open": 0}
    assert found["memory_mb"] > 100
    norms = place.values("r", "train/gradients/global_norm")
    assert whole["gradient_stats"]["train/gradients/global_norm"] == {
        "step": [step for step, _ in norms],
        "value": [value for _, value in norms],
    }
    text = call(report, "r", "--dir", str(place.root))
    call(report, "r", "--dir", str(place.root), "--out", str(tmp_path / "report.json"))
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    for section in ("gradient_stats", "loss_decomposition", "parameter_updates", "timing_stats", "stability_counts"):
        assert written[section] == whole[section]
        assert written[section]
    for line in (
        "Gradient flow",
        "no block is a bottleneck often",
        "Time of a backward pass",
        "Alerts",
        "information_lost",
    ):
        assert line in text


def test_a_rate_below_half_a_quantum_is_found_and_a_suggestion_made(place: Place) -> None:
    trained(place, "stuck", SCRIPT, "--width", "16", "--every", "1", "--epochs", "3", "--lr", "0.05", "--feedback", "0")
    rules = {rule for (rule,) in place.rows("select rule from findings where run = 'stuck' and state = 'firing'")}
    assert {"stagnation", "update_ineffective"} <= rules
    assert (
        place.rows("select count(*) from findings where run = 'stuck' group by rule, subject having count(*) > 1") == []
    )
    counted = place.values("stuck", "train/stability/update_ineffective_count")
    assert [step for step, _ in counted] == [21, 43, 65]
    assert counted[-1][1] > counted[0][1] == 0
    with closing(connect(place.root)) as connection:
        advice = {row["setting"]: row for row in suggestions(connection, "stuck")}
        blocks = bottlenecks(connection, ["r", "stuck"])
    assert advice["lr"]["multiply"] == 3
    assert advice["quantum"]["multiply"] == 0.5
    assert [(row["epochs"], row["runs"]) for row in blocks] == [(6, 2)] * 4


def test_two_ranks_are_one_run(place: Place) -> None:
    trained(place, "two", *TWO_RANKS, SCRIPT, "--epochs", "2", "--width", "16", "--every", "1")
    norms = [dict(place.values("two", "train/gradients/global_norm", rank=rank)) for rank in range(2)]
    assert norms[0] == pytest.approx(norms[1])  # DistributedDataParallel has averaged gradients
    losses = [dict(place.values("two", "train/loss_total", rank=rank)) for rank in range(2)]
    assert losses[0] != losses[1]
    together = place.rows(
        "select step, value, ranks from points_over_ranks where run = 'two' and metric = 'train/loss_total' order by step"
    )
    assert together == [(step, pytest.approx((losses[0][step] + losses[1][step]) / 2), 2) for step in losses[0]]
    counts = place.rows(
        "select distinct value, ranks from points_over_ranks where metric = 'train/stability/memory_count'"
    )
    assert (0.0, 2) in counts
    document = place.document("two", 2, project="backward")["metrics"]
    assert document["train/updates/effectiveness"]["n"] == 2 * 11
