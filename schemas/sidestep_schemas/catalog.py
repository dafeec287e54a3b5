"""Every metric that sidestep itself produces or gives a meaning to, declared once.

`docs/metrics.md`, the `metrics` table, TensorBoard descriptions and the epoch document read it. A metric a
user makes up needs no entry: it is stored under its tag all the same, without unit or meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from sidestep_schemas.wire import TIER_EPOCH, TIER_PERIODIC, TIER_STEP

Better = Literal["lower", "higher"] | None


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, or a family of them where the tag has a `<placeholder>`.

    Attributes:
        tag: the exact name; `<block>` and the like stand for one part of it.
        name: for people.
        unit: as written after a number; "" where it has none.
        tier: how often it is taken by default: step, epoch or periodic.
        meaning: what it is, with its formula where it has one.
        better: which direction is better, where one is.
        reduction: how the values of several ranks become one: mean, sum, max, or root of the sum of squares.
    """

    tag: str
    name: str
    unit: str
    tier: str
    meaning: str
    better: Better = None
    reduction: Literal["mean", "sum", "max", "l2"] = "mean"


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
        "train/activations/<module>/rms",
        "size of activations",
        "",
        TIER_PERIODIC,
        "Root of the mean square of a module's output, of its first call in a step.",
    ),
    Metric(
        "train/activations/<module>/absmax",
        "largest activation",
        "",
        TIER_PERIODIC,
        "Largest absolute value of a module's output.",
        None,
        "max",
    ),
    Metric(
        "train/activations/<module>/zero_share",
        "zero activations",
        "fraction",
        TIER_PERIODIC,
        "Share of a module's output that is exactly zero.",
    ),
    Metric(
        "train/activations/<module>/dead_share",
        "dead units",
        "fraction",
        TIER_PERIODIC,
        "Share of a rectifier's units that are zero for the whole batch; units are the last dimension of an output with up to three, else the second.",
        "lower",
    ),
    Metric(
        "train/activations/<module>/saturated_share",
        "saturated activations",
        "fraction",
        TIER_PERIODIC,
        "Share of a bounded module's output within 1 % of half its range from an end of it (tanh: above 0.99).",
        "lower",
    ),
    Metric(
        "train/input/mean", "mean input", "", TIER_STEP, "Mean of the model's first argument of floats, of a batch."
    ),
    Metric(
        "train/input/std",
        "spread of the input",
        "",
        TIER_STEP,
        "Standard deviation of the model's first argument of floats, of a batch.",
    ),
    Metric(
        "train/input/absmax",
        "largest input",
        "",
        TIER_STEP,
        "Largest absolute value of the model's first argument of floats.",
        None,
        "max",
    ),
    Metric(
        "train/input/fingerprint",
        "fingerprint of a batch",
        "",
        TIER_STEP,
        "A weighted sum over at most 4096 elements of a batch, evenly spread: equal for equal batches.",
    ),
    Metric("train/logits/max", "largest logit", "", TIER_STEP, "Largest of a batch's logits.", None, "max"),
    Metric("train/logits/mean", "mean logit", "", TIER_STEP, "Mean of a batch's logits."),
    Metric("train/logits/std", "spread of logits", "", TIER_STEP, "Standard deviation of a batch's logits."),
    Metric(
        "train/logits/confidence",
        "confidence",
        "fraction",
        TIER_STEP,
        "Mean over a batch of the largest softmax probability.",
    ),
    Metric(
        "train/logits/entropy",
        "entropy of predictions",
        "nats",
        TIER_STEP,
        "Mean over a batch of the entropy of the softmax probabilities.",
    ),
    Metric(
        "train/logits/marginal_entropy",
        "entropy of the mean prediction",
        "nats",
        TIER_STEP,
        "Entropy of the softmax probabilities averaged over a batch: ln K where all of K classes are predicted alike, 0 where one is predicted for all.",
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
        "perf/loader_wait_frac",
        "share of an epoch spent waiting for data",
        "fraction",
        TIER_EPOCH,
        "Time between asking the loader for a batch and having it, over the time of the epoch.",
        "lower",
        "max",
    ),
    Metric(
        "perf/checkpoint_time_sec",
        "time of a checkpoint",
        "s",
        TIER_EPOCH,
        "Wall time of writing a checkpoint.",
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
    Metric(
        "perf/samples_per_sec",
        "samples",
        "1/s",
        TIER_STEP,
        "Samples trained on per second since the last report, on this rank.",
        "higher",
        "sum",
    ),
    Metric(
        "perf/steps_per_sec",
        "steps",
        "1/s",
        TIER_STEP,
        "Optimizer steps per second since the last report, on this rank.",
        "higher",
    ),
    Metric(
        "ema/param_divergence",
        "distance of the average",
        "",
        TIER_PERIODIC,
        "‖θ_ema - θ‖ / ‖θ‖ between the moving average of the weights and the weights, estimated from at most 1024 weights of each parameter.",
    ),
    Metric(
        "ema/magnitude_ratio",
        "size of the average",
        "",
        TIER_PERIODIC,
        "‖θ_ema‖ / ‖θ‖, estimated likewise: 0.95 to 1.05 is usual.",
    ),
    Metric(
        "curvature/lambda_max",
        "largest curvature",
        "",
        TIER_PERIODIC,
        "Largest eigenvalue of the Hessian of the loss on a fixed batch, by Lanczos; gradient descent is unstable above 2 / learning rate.",
    ),
    Metric(
        "curvature/lambda_min",
        "smallest curvature",
        "",
        TIER_PERIODIC,
        "Smallest eigenvalue of the Hessian of the loss on a fixed batch, by Lanczos; negative at a saddle.",
    ),
    Metric(
        "curvature/trace",
        "trace of the curvature",
        "",
        TIER_PERIODIC,
        "Trace of the Hessian of the loss on a fixed batch, as Hutch++ estimates it on the basis of Lanczos.",
    ),
    Metric(
        "curvature/trace_se", "error of the trace", "", TIER_PERIODIC, "Standard error of curvature/trace.", "lower"
    ),
    Metric(
        "perf/curvature_time_ms",
        "time for curvature",
        "ms",
        TIER_PERIODIC,
        "What measuring the curvature took; on a GPU by its own clock.",
        "lower",
        "max",
    ),
    Metric(
        "perf/step_time_ms",
        "step time",
        "ms",
        TIER_STEP,
        "From the end of the step before to the end of the optimizer's step; on a GPU by its own clock.",
        "lower",
        "max",
    ),
    Metric(
        "perf/data_loading_frac",
        "waiting for data",
        "fraction",
        TIER_STEP,
        "Share of a step's time on the host before its forward passes begin: getting a batch, moving it, clearing gradients.",
        "lower",
        "max",
    ),
    Metric(
        "train/performance/forward_time_ms",
        "forward time",
        "ms",
        TIER_STEP,
        "Time in the model's forward passes of a step; on a GPU by its own clock.",
        "lower",
        "max",
    ),
    Metric(
        "train/performance/backward_time_ms",
        "backward time",
        "ms",
        TIER_STEP,
        "From the gradient's arrival at the model's output to the end of the backward pass, over a step; on a GPU by its own clock.",
        "lower",
        "max",
    ),
    Metric(
        "train/performance/optimizer_time_ms",
        "optimizer time",
        "ms",
        TIER_STEP,
        "From the beginning of the first optimizer's step to the end of the last one's; on a GPU by its own clock.",
        "lower",
        "max",
    ),
    Metric(
        "perf/epoch_time_sec",
        "epoch time",
        "s",
        TIER_EPOCH,
        "Wall time from the beginning of an epoch to its end.",
        "lower",
        "max",
    ),
    Metric(
        "perf/gpu_mem_allocated_gb",
        "GPU memory allocated",
        "GB",
        TIER_STEP,
        "Peak of allocated device memory since the process began, or the script reset it.",
        None,
        "max",
    ),
    Metric(
        "perf/gpu_mem_reserved_gb",
        "GPU memory reserved",
        "GB",
        TIER_STEP,
        "Peak of reserved device memory since the process began, or the script reset it.",
        None,
        "max",
    ),
    Metric(
        "perf/host_rss_gb",
        "host memory",
        "GB",
        TIER_STEP,
        "Resident memory of the training process on the host.",
        None,
        "sum",
    ),
    Metric(
        "perf/micro_batches_per_step",
        "micro-batches",
        "",
        TIER_STEP,
        "Forward passes of the training model for each optimizer step since the last report: above 1 where gradients are accumulated or steps are skipped.",
    ),
    Metric("checkpoint_size_mb", "checkpoint size", "MB", TIER_EPOCH, "Bytes of a checkpoint on disk / 1e6."),
)

_EXACT: Final = {metric.tag: metric for metric in METRICS if "<" not in metric.tag}
_FAMILIES: Final = tuple(
    (
        re.compile(re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", re.escape(metric.tag).replace(r"\<", "<").replace(r"\>", ">"))),
        metric,
    )
    for metric in METRICS
    if "<" in metric.tag
)


def find(tag: str) -> Metric | None:
    """The declaration that a tag falls under; an exact one before a family; None for a user's own."""
    exact = _EXACT.get(tag)
    if exact is not None:
        return exact
    return next((metric for pattern, metric in _FAMILIES if pattern.fullmatch(tag)), None)


def block_of(tag: str) -> str | None:
    """The block of the network that a tag speaks of, where it is of such a family."""
    if tag in _EXACT:
        return None
    matches = (pattern.fullmatch(tag) for pattern, _ in _FAMILIES)
    return next((match["block"] for match in matches if match and "block" in match.groupdict()), None)
