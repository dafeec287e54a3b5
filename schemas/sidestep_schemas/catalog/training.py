"""What a training reports of itself: losses, accuracy, predictions, learning rate and weight decay."""

from __future__ import annotations

from typing import Final

from sidestep_schemas.catalog.metric import Metric
from sidestep_schemas.wire import TIER_EPOCH, TIER_STEP

METRICS: Final[tuple[Metric, ...]] = (
    Metric("train/loss_total", "training loss", "", TIER_STEP, "Total loss, as trained.", "lower"),
    Metric("val/loss_total", "validation loss", "", TIER_EPOCH, "Total loss on the validation data.", "lower"),
    Metric("train/loss_nats", "training loss", "nats", TIER_STEP, "Loss in nats.", "lower"),
    Metric("train/loss_bits", "training loss", "bits", TIER_STEP, "Loss in bits: nats / ln 2.", "lower"),
    Metric("train/acc", "training accuracy", "fraction", TIER_STEP, "Share of examples predicted right.", "higher"),
    Metric(
        "val/acc",
        "validation accuracy",
        "fraction",
        TIER_EPOCH,
        "Share of validation examples predicted right.",
        "higher",
    ),
    Metric(
        "val/logits/confidence",
        "validation confidence",
        "fraction",
        TIER_EPOCH,
        "Mean of the largest predicted probability over the validation data.",
    ),
    # What `sidestep run` finds besides: further validation data, and a validation on the data that is trained on.
    *(
        metric
        for split, data in (
            ("val_<number>", "a further set of validation data"),
            ("train_eval", "the training data, without a step"),
        )
        for metric in (
            Metric(f"{split}/loss_total", f"loss on {data}", "", TIER_EPOCH, f"Total loss on {data}.", "lower"),
            Metric(
                f"{split}/acc",
                f"accuracy on {data}",
                "fraction",
                TIER_EPOCH,
                f"Share of examples predicted right on {data}.",
                "higher",
            ),
            Metric(
                f"{split}/logits/confidence",
                f"confidence on {data}",
                "fraction",
                TIER_EPOCH,
                f"Mean of the largest predicted probability on {data}.",
            ),
        )
    ),
    Metric(
        "train/loss_std",
        "spread of the loss",
        "",
        TIER_EPOCH,
        "Standard deviation of the loss over the epoch's steps: noise of the gradient signal.",
    ),
    *(
        Metric(
            f"train/{which}_grad_norm",
            f"{name} gradient norm",
            "",
            TIER_EPOCH,
            f"{what} over the epoch of the L2 norm of the whole gradient: of every step where clipping is seen, else of sampled steps.",
            None,
            "max" if which == "max" else "mean",
        )
        for which, name, what in (("mean", "mean", "Mean"), ("min", "least", "Least"), ("max", "greatest", "Greatest"))
    ),
    Metric(
        "train/weight_change",
        "weight update magnitude",
        "",
        TIER_EPOCH,
        "Mean over the epoch's sampled steps of train/updates/relative_update_norm, ‖Δθ‖ / ‖θ‖; below 1e-6 with gradient norms below 0.01 gradients vanish.",
    ),
    *(
        Metric(
            f"{split}/num_batches",
            name,
            "batches",
            TIER_EPOCH,
            f"{what}: as the loader gave them, else records of the loss where there are several.",
            None,
            "sum",
        )
        for split, name, what in (
            ("train", "batches", "Batches of the epoch"),
            ("val", "validation batches", "Batches of the epoch's validation"),
        )
    ),
    Metric("train/lr", "learning rate", "", TIER_STEP, "Learning rate of the first parameter group."),
    Metric(
        "train/lr_<group>",
        "learning rate of a group",
        "",
        TIER_STEP,
        "Learning rate of parameter group <group>, from 1; of more than 16 groups, those with the same settings are told of once, by the first of them.",
    ),
    Metric("train/wd", "weight decay", "", TIER_STEP, "Weight decay of the first parameter group."),
    Metric(
        "train/wd_<group>",
        "weight decay of a group",
        "",
        TIER_STEP,
        "Weight decay of parameter group <group>, from 1; of more than 16 groups, those with the same settings are told of once, by the first of them.",
    ),
)
