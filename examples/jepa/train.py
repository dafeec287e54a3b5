"""A joint-embedding predictive model of three levels on photographs, followed by sidestep.

    python examples/jepa/train.py
    python examples/jepa/train.py --collapse        # no average, no stopped gradient: see the features collapse

A student sees crops of which blocks are hidden, and predicts the features that a slowly following teacher gives the
hidden patches, at three levels at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from data import GRIDS, SIZE, at_levels, block_masks, crops
from model import Itself, Student, Teacher
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everybody writes it
from torch.nn.parallel import DistributedDataParallel

import sidestep

#: What each level counts in the loss, the finest first.
WEIGHTS = (0.4, 0.35, 0.25)
#: Limit of the gradient's norm: a little above nine tenths of the norms while the rate rises, so that spikes are cut
#: and steps are not.
CLIP = 3.0
#: What gradients are told apart by: parts of the network, with the names that its parameters begin with.
BLOCKS = {
    "embedding": ["encoder.patches", "encoder.hidden", "encoder.places"],
    "level_0": "encoder.levels.0",
    "level_1": ["encoder.merges.0", "encoder.levels.1"],
    "level_2": ["encoder.merges.1", "encoder.levels.2"],
    "predictor_0": "predictors.0",
    "predictor_1": "predictors.1",
    "predictor_2": "predictors.2",
}


def level_losses(predicted: Sequence[Tensor], targets: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Mean squared distance of the hidden patches' normalised features, by level; shape (levels,)."""
    return torch.stack(
        [
            F.mse_loss(guess[mask], normalised(target)[mask])
            for guess, target, mask in zip(predicted, targets, masks, strict=True)
        ]
    )


def normalised(features: Tensor) -> Tensor:
    """Each patch's features with mean 0 and variance 1."""
    return F.layer_norm(features, features.shape[-1:])


@torch.no_grad()
def of_losses(losses: Tensor, weighted: Tensor) -> dict[str, float]:
    """The loss, what each level has, and what it adds to the whole: only this script knows the weights."""
    total, unweighted = weighted.sum().item(), losses.sum().item()
    found = {"train/loss/total": total, "train/loss/unweighted": unweighted}
    for k, (loss, part) in enumerate(zip(losses.tolist(), weighted.tolist(), strict=True)):
        found |= {f"train/loss/h{k}": loss, f"train/loss/contribution_h{k}": part / total}
    return found


def of_masks(hidden: Tensor) -> dict[str, float]:
    """How much of a batch is hidden; mean over its images."""
    masked, patches = hidden.float().sum(1).mean().item(), hidden.shape[1]
    return {
        "train/masking/mask_ratio": masked / patches,
        "train/masking/num_masked_patches": masked,
        "train/masking/num_unmasked_patches": patches - masked,
    }


@torch.no_grad()
def prediction(
    predicted: Sequence[Tensor], targets: Sequence[Tensor], masks: Sequence[Tensor], split: str
) -> dict[str, Tensor]:
    """How well the hidden patches' features are predicted, by level."""
    found = {}
    for k, (guess, target, mask) in enumerate(zip(predicted, targets, masks, strict=True)):
        wanted = normalised(target)[mask]
        cosine = F.cosine_similarity(guess[mask], wanted, dim=-1)
        found |= {
            f"{split}/prediction/level{k}_cosine_sim_mean": cosine.mean(),
            f"{split}/prediction/level{k}_cosine_sim_std": cosine.std(),
            f"{split}/prediction/level{k}_cosine_sim_min": cosine.min(),
            f"{split}/prediction/level{k}_cosine_sim_max": cosine.max(),
            f"{split}/prediction/level{k}_normalized_mse": F.mse_loss(guess[mask], wanted)
            / wanted.var(0, unbiased=False).mean(),
        }
    return found


@torch.no_grad()
def hierarchy(targets: Sequence[Tensor]) -> dict[str, Tensor | float]:
    """What the features of each level are like."""
    found: dict[str, Tensor | float] = {}
    for k, features in enumerate(targets):
        found |= {
            f"train/hierarchy/level{k}_feat_mean": features.mean(),
            f"train/hierarchy/level{k}_feat_std": features.std(),
            f"train/hierarchy/level{k}_num_patches": features.shape[1],
        }
    return found


def log_features(run: sidestep.Run, targets: Sequence[Tensor], split: str) -> None:
    """A sample of what is predicted, as the loss sees it: whether it collapses is computed by the collector."""
    for k, features in enumerate(targets):
        run.features(f"{split}/collapse/level{k}", normalised(features.detach()))


@torch.no_grad()
def validate(
    run: sidestep.Run,
    student: Student,
    teacher: Teacher | Itself,
    images: Tensor,
    masks: Sequence[Tensor],
    *,
    epoch: int,
) -> float:
    """Losses, predictions and features of other parts of the photographs, and a picture of some of them."""
    student.eval()
    predicted, targets = student(images, masks[0]), teacher.features(images)
    student.train()
    loss = (level_losses(predicted, targets, masks) * torch.tensor(WEIGHTS)).sum().item()
    if not run.is_off:
        run.log({"val/loss/total": loss, **prediction(predicted, targets, masks, "val")}, epoch=epoch)
        log_features(run, targets, "val")
        run.image("samples/prediction_heat_map", side_by_side(images, predicted[0], targets[0], masks[0]))
    return loss


def side_by_side(images: Tensor, predicted: Tensor, target: Tensor, mask: Tensor, rows: int = 4) -> Tensor:
    """Crops, the cosine of prediction and target (red 1, white 0, blue -1), and the mask; shape (3, height, width)."""
    images, grid, cell = images[:rows], GRIDS[0], 2 * SIZE // GRIDS[0]
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    shown = ((images - low) / (high - low)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    cosine = F.cosine_similarity(predicted[:rows], normalised(target)[:rows], dim=-1).unflatten(1, (grid, grid))
    heat = torch.stack([1 + cosine.clamp(max=0), 1 - cosine.abs(), 1 - cosine.clamp(min=0)], 1)
    hidden = (~mask[:rows]).float().unflatten(1, (grid, grid))[:, None].expand(-1, 3, -1, -1)
    large = [part.repeat_interleave(cell, 2).repeat_interleave(cell, 3) for part in (heat, hidden)]
    tiles = torch.cat([F.pad(part, (2, 2, 2, 2), value=0.5) for part in (shown, *large)], dim=3)
    return torch.cat(list(tiles.clamp(0, 1)), dim=1)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Settings of a training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--crops", type=int, default=1600, help="to train on, over all processes")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    # A look takes about a third of a step, so one in 25 takes about a hundredth of the time.
    parser.add_argument("--every", type=int, default=25, help="steps between two looks at features and gradients")
    parser.add_argument("--ema-every", type=int, default=500, help="steps between two looks at the teacher")
    parser.add_argument("--collapse", action="store_true", help="let the student be its own teacher")
    return parser.parse_args(given)


def main() -> None:
    """Train, validate after each epoch, and show what was predicted."""
    args = arguments()
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")

    torch.manual_seed(args.seed)
    student = Student()
    images, val_images = crops(args.crops, "train", args.seed)[rank::ranks], crops(64, "val", args.seed)
    val_masks = at_levels(block_masks(len(val_images), torch.Generator().manual_seed(args.seed)))
    generator = torch.Generator().manual_seed(args.seed + rank)
    batches = len(images) // args.batch_size
    steps = args.epochs * batches
    teacher = Itself(student) if args.collapse else Teacher(student, steps)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.1)
    model = DistributedDataParallel(student) if ranks > 1 else student

    run = sidestep.watch(
        model,
        optimizer,
        every=args.every,
        blocks=BLOCKS,
        ema=teacher,
        probes={"ema": args.ema_every},
        project="jepa",
        profile="jepa",
        config=vars(args),
    )
    step = 0
    for epoch in run.epoch(range(1, args.epochs + 1)):
        order = torch.randperm(len(images), generator=generator)[: batches * args.batch_size]
        for batch in order.view(batches, args.batch_size):
            masks = at_levels(block_masks(args.batch_size, generator))
            predicted, targets = model(images[batch], masks[0]), teacher.features(images[batch])
            losses = level_losses(predicted, targets, masks)
            weighted = losses * losses.new_tensor(WEIGHTS)
            optimizer.zero_grad()
            weighted.sum().backward()
            sidestep.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()

            if not run.is_off:
                run.log(of_losses(losses, weighted) | of_masks(masks[0]))
                if step % args.every == 0:
                    run.log(prediction(predicted, targets, masks, "train") | hierarchy(targets))
                    log_features(run, targets, "train")
                if step % args.ema_every == 0:
                    run.log({"train/ema/momentum_target": teacher.target})
            step += 1
            teacher.follow(student, step)

        val_loss = validate(run, student, teacher, val_images, val_masks, epoch=epoch)
        print(f"epoch {epoch:2d}  loss {weighted.sum().item():.4f}  val loss {val_loss:.4f}", flush=True)
    print(run.finish())
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
