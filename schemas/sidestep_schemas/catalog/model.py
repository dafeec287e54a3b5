"""What is seen in the model: activations, inputs, outputs, features, averages of the weights, curvature."""

from __future__ import annotations

from typing import Final

from sidestep_schemas.catalog.metric import Metric
from sidestep_schemas.wire import TIER_PERIODIC, TIER_STEP

METRICS: Final[tuple[Metric, ...]] = (
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
        "ema/param_divergence",
        "distance of the average",
        "",
        TIER_PERIODIC,
        "‖θ_ema - θ‖ / ‖θ‖ between the moving average of the weights and the weights, estimated from at most 1024 weights of each parameter.",
        sharded="rms:ema/weight_norm",
    ),
    Metric(
        "ema/magnitude_ratio",
        "size of the average",
        "",
        TIER_PERIODIC,
        "‖θ_ema‖ / ‖θ‖, estimated likewise: 0.95 to 1.05 is usual.",
        sharded="rms:ema/weight_norm",
    ),
    Metric(
        "ema/weight_norm",
        "weights that are averaged",
        "",
        TIER_PERIODIC,
        "‖θ‖ of this rank's part, as ema/param_divergence has it; only where the model is sharded.",
        sharded="l2",
    ),
    Metric(
        "noise/grad_variance",
        "variance of the gradient",
        "",
        TIER_PERIODIC,
        "Trace of the covariance of the gradient that this process accumulates in a step, from its micro-batches or from parts of a fixed batch: m / (m - 1) Σ|cᵢ - c̄|² over m parts, estimated from at most 1024 coordinates of each parameter.",
    ),
    Metric(
        "noise/grad_signal",
        "signal of the gradient",
        "",
        TIER_PERIODIC,
        "Squared norm of the expected gradient without bias, |g|² - noise/grad_variance; negative where noise drowns it.",
    ),
    Metric(
        "noise/gns",
        "simple noise scale",
        "samples",
        TIER_PERIODIC,
        "tr Σ / |G|² of McCandlish et al. (2018): samples of the step times noise/grad_variance over noise/grad_signal. Batches far below it gain from growing. One sample of it is uncertain: divide means of its two parts.",
    ),
    Metric(
        "noise/samples",
        "samples behind the noise",
        "samples",
        TIER_PERIODIC,
        "Samples of the batch that the noise was measured on, of one process.",
        None,
        "sum",
    ),
    Metric(
        "noise/local_grad_norm",
        "gradient norm of a rank",
        "",
        TIER_PERIODIC,
        "L2 norm of a process's gradient of a step before it is reduced over ranks, estimated from at most 1024 coordinates of each parameter.",
        None,
        "l2",
    ),
    Metric(
        "noise/global_grad_norm",
        "gradient norm of all ranks",
        "",
        TIER_PERIODIC,
        "L2 norm of the reduced gradient of the same step, from the same coordinates, clipping taken back. Over W ranks its variance is (mean of noise/local_grad_norm² - its square) / (W - 1).",
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
)
