"""The example of the jepa family: all that its profile names arrives, with the numbers of a training done once more."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from support.families import EXAMPLES, TWO_RANKS, imported, missing_of, shown_tags, stored_tags, trained
from support.place import Place
from torch import Tensor

EPOCHS, CROPS, BATCH, EVERY, EMA_EVERY = 2, 320, 16, 2, 20
STEPS = EPOCHS * CROPS // BATCH
#: Of features that travel as float16: 11 bits, 5e-4 of each element; means over 200 rows and 64 dimensions are nearer.
FLOAT16 = 1e-3
ON_A_GPU = "train/performance/gpu_memory_allocated_gb"


def command(*more: str) -> tuple[str, ...]:
    return (str(EXAMPLES / "jepa" / "train.py"), "--epochs", str(EPOCHS), "--crops", str(CROPS), *more)


class Example(NamedTuple):
    """The modules of the example."""

    data: ModuleType
    model: ModuleType
    train: ModuleType


@pytest.fixture(scope="module")
def example() -> Example:
    return Example(*imported("jepa", *Example._fields))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("jepa") / "data")
    trained(place, "r", *command("--every", str(EVERY), "--ema-every", str(EMA_EVERY)))
    yield place
    place.close()


@pytest.fixture(scope="module")
def again(example: Example) -> dict[str, dict[int, float]]:
    """Values by tag and step, of the same training without sidestep: in numpy, in double precision."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Again(example).train()
    finally:
        torch.set_num_threads(threads)


class Again:
    """The training of the example, written down plainly, and what there is to be known of it."""

    def __init__(self, example: Example) -> None:
        self.example = example
        self.found: dict[str, dict[int, float]] = {}
        self.losses: list[float] = []

    def note(self, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self.found.setdefault(tag, {})[step] = float(value)

    def train(self) -> dict[str, dict[int, float]]:
        data, model = self.example.data, self.example.model
        torch.manual_seed(0)
        student = model.Student()
        images, val_images = data.crops(CROPS, "train", 0), data.crops(64, "val", 0)
        val_masks = data.at_levels(data.block_masks(64, torch.Generator().manual_seed(0)))
        teacher = model.Teacher(student, STEPS)
        optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=STEPS, pct_start=0.1)
        generator = torch.Generator().manual_seed(0)
        step = 0
        for _ in range(EPOCHS):
            for batch in torch.randperm(CROPS, generator=generator).view(-1, BATCH):
                masks = data.at_levels(data.block_masks(BATCH, generator))
                predicted, targets = student(images[batch], masks[0]), teacher.features(images[batch])
                losses = self.example.train.level_losses(predicted, targets, masks)
                optimizer.zero_grad()
                (losses * torch.tensor(self.example.train.WEIGHTS)).sum().backward()
                norm = torch.nn.utils.clip_grad_norm_(student.parameters(), self.example.train.CLIP)
                rate = optimizer.param_groups[0]["lr"]
                optimizer.step()
                schedule.step()
                self.of_loss(step, predicted, targets, masks)
                if step % EVERY == 0:
                    self.note(step, {"train/gradient_flow/global_norm": norm, "train/learning_rate/base_lr": rate})
                    self.of_gradients(step, student)
                    self.of_prediction(step, "train", predicted, targets, masks)
                    self.of_features(step, "train", targets)
                    self.of_hierarchy(step, targets)
                if step % EMA_EVERY == 0:
                    self.of_teacher(step, teacher, student)
                step += 1
                teacher.follow(student, step)
            with torch.no_grad():
                student.eval()
                predicted, targets = student(val_images, val_masks[0]), teacher.features(val_images)
                student.train()
            self.of_prediction(step - 1, "val", predicted, targets, val_masks)
            self.of_features(step - 1, "val", targets)
        return self.found

    def of_loss(self, step: int, predicted: Any, targets: Any, masks: Any) -> None:
        levels = [
            float(np.mean((guess[mask] - wanted[mask]) ** 2))
            for guess, wanted, mask in zip(
                map(exact, predicted), map(normal, targets), map(mask_of, masks), strict=True
            )
        ]
        parts = [weight * level for weight, level in zip(self.example.train.WEIGHTS, levels, strict=True)]
        self.note(step, {"train/loss/total": sum(parts), "train/loss/unweighted": sum(levels)})
        self.note(step, {f"train/loss/h{k}": level for k, level in enumerate(levels)})
        self.note(step, {f"train/loss/contribution_h{k}": part / sum(parts) for k, part in enumerate(parts)})
        hidden = mask_of(masks[0])
        counts = {"num_masked_patches": hidden.sum() / BATCH, "num_unmasked_patches": (~hidden).sum() / BATCH}
        self.note(step, {f"train/masking/{name}": value for name, value in counts.items()})
        self.note(step, {"train/masking/mask_ratio": hidden.mean()})
        self.losses.append(sum(parts))
        if len(self.losses) % 10 == 0:
            self.of_stability(step, np.array(self.losses))

    def of_stability(self, step: int, losses: np.ndarray) -> None:
        stability = {
            "loss_smoothness": np.diff(losses).std() / losses.std(),
            "loss_trend_slope": theil_sen(losses),
            "loss_spike_ratio": losses[-1] / np.median(losses),
        }
        self.note(step, {f"train/stability/{name}": value for name, value in stability.items()})

    def of_gradients(self, step: int, student: Any) -> None:
        for block, prefixes in self.example.train.BLOCKS.items():
            begins = (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)
            of_block = [p.grad for name, p in student.named_parameters() if name.startswith(begins)]
            elements = np.concatenate([exact(gradient).ravel() for gradient in of_block])
            self.note(step, {f"train/gradient_flow/{block}_mean": np.abs(elements).mean()})

    def of_prediction(self, step: int, split: str, predicted: Any, targets: Any, masks: Any) -> None:
        for k in range(3):
            mask = mask_of(masks[k])
            guess, wanted = exact(predicted[k])[mask], normal(targets[k])[mask]
            cosine = (guess * wanted).sum(1) / np.linalg.norm(guess, axis=1) / np.linalg.norm(wanted, axis=1)
            values = {f"cosine_sim_{what}": getattr(cosine, what)() for what in ("mean", "min", "max")}
            values["cosine_sim_std"] = cosine.std(ddof=1)
            values["normalized_mse"] = np.mean((guess - wanted) ** 2) / wanted.var(axis=0).mean()
            self.note(step, {f"{split}/prediction/level{k}_{name}": value for name, value in values.items()})

    def of_features(self, step: int, split: str, targets: Any) -> None:
        for k in range(3):
            rows = normal(targets[k]).reshape(-1, targets[k].shape[-1])
            stride = next(each for each in range(-(-len(rows) // 256), len(rows)) if math.gcd(each, len(rows)) == 1)
            rows = rows[::stride]
            s = np.linalg.svd(rows, compute_uv=False)
            p = s / s.sum()
            units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            values = {
                "mean_std_per_dim": rows.std(axis=0).mean(),
                "min_std_per_dim": rows.std(axis=0).min(),
                "effective_rank": np.exp(-(p * np.log(p)).sum()),
                "effective_rank_share": np.exp(-(p * np.log(p)).sum()) / rows.shape[1],
                "mean_similarity": (units @ units.T)[~np.eye(len(units), dtype=bool)].mean(),
            }
            self.note(step, {f"{split}/collapse/level{k}_{name}": value for name, value in values.items()})

    def of_hierarchy(self, step: int, targets: Any) -> None:
        for k, features in enumerate(map(exact, targets)):
            values = {"feat_mean": features.mean(), "feat_std": features.std(ddof=1), "num_patches": features.shape[1]}
            self.note(step, {f"train/hierarchy/level{k}_{name}": value for name, value in values.items()})

    def of_teacher(self, step: int, teacher: Any, student: Any) -> None:
        mine, theirs = (
            np.concatenate([exact(parameter).ravel() for parameter in module.parameters()])
            for module in (teacher.module, student.encoder)
        )
        size = np.linalg.norm(theirs)
        values = {
            "momentum_current": teacher.decay,
            "momentum_target": 1.0,
            "avg_parameter_divergence": np.linalg.norm(mine - theirs) / size,
            "weight_magnitude_ratio": np.linalg.norm(mine) / size,
        }
        self.note(step, {f"train/ema/{name}": value for name, value in values.items()})


def exact(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def normal(features: Tensor) -> np.ndarray:
    """Layer norm in double precision."""
    values = exact(features)
    return (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-5)


def mask_of(mask: Tensor) -> np.ndarray:
    return mask.numpy()


def theil_sen(losses: np.ndarray) -> float:
    """Median slope of all pairs of the means of 20 blocks of neighbours."""
    blocks = [(part.mean(), at.mean()) for part, at in zip(*cut(losses), strict=True)]
    slopes = [(b[0] - a[0]) / (b[1] - a[1]) for i, a in enumerate(blocks) for b in blocks[i + 1 :]]
    return float(np.median(slopes))


def cut(losses: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    count = min(20, len(losses))
    ends = [at * len(losses) // count for at in range(1, count)]
    return np.split(losses, ends), np.split(np.arange(len(losses), dtype=float), ends)


def test_every_quantity_of_the_profile_is_stored_and_shown(done: Place) -> None:
    assert missing_of("jepa", stored_tags(done, "r"), but=[ON_A_GPU]) == []
    assert missing_of("jepa", shown_tags(done, "r", project="jepa"), but=[ON_A_GPU]) == []


#: How near a group is to the same in double precision: single precision; sent as float16; estimated from a sample.
GROUPS = {
    "train/loss/": 1e-4,
    "train/masking/": 1e-6,
    "train/prediction/": 1e-3,
    "val/prediction/": 1e-3,
    "train/collapse/": FLOAT16,
    "val/collapse/": FLOAT16,
    "train/gradient_flow/": 1e-3,
    "train/hierarchy/": 1e-3,
    "train/stability/": 1e-3,
    "train/learning_rate/": 1e-6,
    "train/ema/momentum": 1e-6,
    "train/ema/weight_magnitude_ratio": 1e-3,
    "train/ema/avg_parameter_divergence": 0.1,
}


@pytest.mark.parametrize("group", GROUPS)
def test_its_values_are_those_of_the_training_done_once_more(done: Place, again: Any, group: str) -> None:
    tags = [tag for tag in again if tag.startswith(group)]
    assert tags
    for tag in tags:
        assert dict(done.values("r", tag)) == pytest.approx(again[tag], rel=GROUPS[group], abs=1e-5), tag


def test_epochs_have_them_in_their_documents(done: Place, again: Any) -> None:
    for epoch, last in ((1, STEPS // 2 - 1), (2, STEPS - 1)):
        metrics = done.document("r", epoch, project="jepa")["metrics"]
        assert metrics["val/collapse/level2_effective_rank"]["mean"] == pytest.approx(
            again["val/collapse/level2_effective_rank"][last], rel=FLOAT16
        )
        first = last + 1 - STEPS // 2
        losses = [again["train/loss/total"][step] for step in range(first, last + 1)]
        assert metrics["train/loss/total"]["mean"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_pictures_show_crops_their_similarities_and_what_was_hidden(done: Place, example: Example) -> None:
    pictures = done.rows("select png from images where name = 'samples/prediction_heat_map' order by step")
    assert len(pictures) == EPOCHS
    picture = np.asarray(Image.open(io.BytesIO(pictures[-1][0]))) / 255
    assert picture.shape == (4 * 132, 3 * 132, 3)  # four crops of 64 pixels, twice as large, with 2 pixels around
    crop, heat, mask = (picture[:132, at : at + 132][2:-2, 2:-2] for at in (0, 132, 264))
    data = example.data
    hidden = mask_of(data.block_masks(64, torch.Generator().manual_seed(0)))[0]
    assert np.array_equal(mask[32::64, 32::64, 0] == 0, hidden)
    image = exact(data.crops(64, "val", 0)[0]).transpose(1, 2, 0)
    assert crop[::2, ::2] == pytest.approx((image - image.min()) / np.ptp(image), abs=1 / 255)
    assert np.ptp(heat.reshape(8, 16, 8, 16, 3), axis=(1, 3)).max() == 0  # a patch has one colour
    assert len(np.unique(heat.reshape(-1, 3), axis=0)) > 8


def test_a_histogram_of_features_comes_with_every_look(done: Place) -> None:
    found = done.rows(
        "select name, step, list_sum(counts) from histograms where name like 'feature_distributions/level%' order by all"
    )
    rows = {"level0": 205, "level1": 256, "level2": 64}  # every fifth of 1024, all of 256, all of 64
    assert found == [
        (f"feature_distributions/{level}", step, 64 * count)
        for level, count in rows.items()
        for step in range(0, STEPS, EVERY)
    ]


@pytest.mark.long
def test_collapse_is_found_where_it_is_provoked_and_nowhere_else(done: Place) -> None:
    trained(done, "collapsed", *command("--every", str(EVERY), "--epochs", "4", "--collapse"))
    query = "select distinct rule from findings where run = ? and state <> 'pending' order by rule"
    assert done.rows(query, "r") == []
    found = {rule for (rule,) in done.rows(query, "collapsed")}
    assert {"collapse_effective_rank", "collapse_similarity", "ema_momentum_low"} <= found
    at_once = "select first_step from findings where run = 'collapsed' and rule = 'ema_momentum_low'"
    assert done.row(at_once) == (0,)
    severity = "select max(severity) from findings where run = 'collapsed' and rule = 'collapse_effective_rank'"
    assert done.row(severity) == ("critical",)


def test_two_ranks_ship_features_each_and_are_one_run(place: Place) -> None:
    trained(place, "two", *TWO_RANKS, *command("--epochs", "1", "--crops", "640", "--every", "10"))
    shipped = (
        "select rank, count(*) from tensors where name = 'train/collapse/level0_features' group by rank order by 1"
    )
    assert place.rows(shipped) == [(0, 2), (1, 2)]
    for tag, combine in (
        ("train/collapse/level0_effective_rank", np.mean),
        ("train/collapse/level2_mean_similarity", np.mean),
        ("train/performance/samples_per_second", np.sum),
        ("train/gradient_flow/level_0_mean", np.mean),
    ):
        of_ranks = [dict(place.values("two", tag, rank=rank)) for rank in (0, 1)]
        assert of_ranks[0]
        both = dict(place.rows("select step, value from points_over_ranks where metric = ?", tag))
        assert both == pytest.approx({step: combine([one[step] for one in of_ranks]) for step in of_ranks[0]})
    # Gradients are reduced over ranks, features are those of each rank's own crops.
    flows, ranks = (
        [place.values("two", tag, rank=rank) for rank in (0, 1)]
        for tag in ("train/gradient_flow/level_0_mean", "train/collapse/level0_effective_rank")
    )
    assert flows[0] == flows[1]
    assert ranks[0] != ranks[1]
