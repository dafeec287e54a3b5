"""What a training reports of itself: losses, rates, gradients, updates, weights, the optimizer, mixed precision."""

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
        "train/loss_std",
        "spread of the loss",
        "",
        TIER_EPOCH,
        "Standard deviation of the loss over the epoch's steps: noise of the gradient signal.",
    ),
    Metric("train/lr", "learning rate", "", TIER_STEP, "Learning rate of the first parameter group."),
    Metric(
        "train/lr_<group>",
        "learning rate of a group",
        "",
        TIER_STEP,
        "Learning rate of parameter group <group>, from 1.",
    ),
    Metric("train/wd", "weight decay", "", TIER_STEP, "Weight decay of the first parameter group."),
    Metric(
        "train/wd_<group>", "weight decay of a group", "", TIER_STEP, "Weight decay of parameter group <group>, from 1."
    ),
    Metric(
        "train/gradients/global_norm", "gradient norm", "", TIER_STEP, "L2 norm of the whole gradient, before clipping."
    ),
    Metric(
        "train/gradients/<block>",
        "gradient norm of a block",
        "",
        TIER_STEP,
        "L2 norm of the gradient over the parameters of a block; at the optimizer's step, so after clipping where gradients are clipped.",
    ),
    Metric(
        "train/gradients_of/<parameter>",
        "gradient norm of a parameter",
        "",
        TIER_STEP,
        "L2 norm of the gradient of one parameter, by its name; only where the probe is set so.",
    ),
    Metric(
        "train/gradients/nonfinite_count",
        "non-finite gradients",
        "",
        TIER_STEP,
        "Number of parameters whose gradient has a norm that is no finite number.",
        "lower",
        "max",
    ),
    Metric(
        "train/gradients/zero_share",
        "zeros in the gradient",
        "fraction",
        TIER_STEP,
        "Share of the gradient's elements that are exactly zero, estimated from a sample of at most 1024 elements of each parameter.",
    ),
    Metric(
        "train/gradients/cosine_previous",
        "direction of the gradient",
        "",
        TIER_STEP,
        "Cosine between the gradient and the one sampled before it, estimated from at most 1024 elements of each parameter: near 0 where noise rules, near 1 where gradients are never cleared.",
    ),
    Metric(
        "train/gradient/global_norm_before_clip",
        "gradient norm before clipping",
        "",
        TIER_STEP,
        "L2 norm of the whole gradient before clipping.",
    ),
    Metric(
        "train/gradient/global_norm_after_clip",
        "gradient norm after clipping",
        "",
        TIER_STEP,
        "L2 norm of the whole gradient after clipping: min(norm, limit).",
    ),
    Metric(
        "train/gradient/clipped",
        "step was clipped",
        "",
        TIER_STEP,
        "1 where the gradient norm of a step exceeded the clipping limit, else 0; recorded at every step that clips.",
        None,
        "max",
    ),
    Metric(
        "train/gradients/clip_fraction",
        "share of clipped steps",
        "fraction",
        TIER_EPOCH,
        "Share of the epoch's steps whose gradient norm exceeded the clipping limit; below 0.1 is good, above 0.5 for long means the learning rate is too high.",
        "lower",
    ),
    Metric(
        "train/gradient/clipping_percentage",
        "clipped steps",
        "%",
        TIER_EPOCH,
        "100 times train/gradients/clip_fraction.",
        "lower",
    ),
    Metric(
        "train/updates/relative_update_norm",
        "relative update",
        "",
        TIER_STEP,
        "Norm of the weight change of a step over the norm of the weights: ‖Δθ‖ / ‖θ‖, estimated from at most 1024 weights of each parameter. Below 1e-7 is frozen, above 1e-2 unstable.",
    ),
    Metric(
        "train/updates/<block>",
        "relative update of a block",
        "",
        TIER_STEP,
        "‖Δθ‖ / ‖θ‖ over the parameters of a block, estimated from at most 1024 weights of each parameter.",
    ),
    Metric("weight_norm", "weight norm", "", TIER_EPOCH, "L2 norm of all weights."),
    Metric("train/weights/<block>", "weight norm of a block", "", TIER_EPOCH, "L2 norm of the weights of a block."),
    Metric(
        "train/weights/absmax", "largest weight", "", TIER_EPOCH, "Largest absolute value of a weight.", None, "max"
    ),
    Metric(
        "train/weights/distance_from_start",
        "distance from the start",
        "",
        TIER_EPOCH,
        "‖θ - θ₀‖ / ‖θ₀‖, with θ₀ the weights when they were first sampled, estimated from at most 1024 weights of each parameter.",
    ),
    Metric(
        "train/optimizer/momentum",
        "momentum",
        "",
        TIER_STEP,
        "Momentum of the first parameter group; β₁ of Adam and its family.",
    ),
    Metric("train/optimizer/beta2", "second beta", "", TIER_STEP, "β₂ of the first parameter group."),
    Metric(
        "train/optimizer/first_moment_norm",
        "norm of the first moment",
        "",
        TIER_EPOCH,
        "L2 norm of what the optimizer remembers of gradients: m of Adam and its family, the momentum buffer of SGD.",
    ),
    Metric(
        "train/optimizer/second_moment_max",
        "largest second moment",
        "",
        TIER_EPOCH,
        "Largest element of what the optimizer remembers of squared gradients: v of Adam and its family.",
        None,
        "max",
    ),
    Metric(
        "train/optimizer/corrected_step_size",
        "corrected step size",
        "",
        TIER_EPOCH,
        "Adam's step size after bias correction, lr √(1 - β₂ᵗ) / (1 - β₁ᵗ), of the first parameter group.",
    ),
    Metric(
        "train/amp/skipped",
        "steps left out",
        "steps",
        TIER_STEP,
        "Optimizer steps that the loss scaler left out since the last one that was taken: their gradients overflowed.",
        "lower",
        "max",
    ),
    Metric(
        "train/amp/scale",
        "loss scale",
        "",
        TIER_STEP,
        "What a GradScaler multiplies the loss by; it is halved when gradients are infinite.",
        None,
        "max",
    ),
)
