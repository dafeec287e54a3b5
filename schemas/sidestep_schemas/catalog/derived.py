"""What the collector's analysers derive from numbers and small tensors that were shipped."""

from __future__ import annotations

from typing import Final

from sidestep_schemas.catalog.metric import Metric
from sidestep_schemas.wire import TIER_EPOCH, TIER_PERIODIC, TIER_STEP

METRICS: Final[tuple[Metric, ...]] = (
    Metric("val/loss_nats", "validation loss", "nats", TIER_EPOCH, "Validation loss in nats.", "lower"),
    Metric("val/loss_bits", "validation loss", "bits", TIER_EPOCH, "Validation loss in bits: nats / ln 2.", "lower"),
    Metric(
        "train/loss_ratio_fm",
        "share of flow matching",
        "fraction",
        TIER_STEP,
        "|L_FM| / |L_total|, from train/loss_fm and the total loss of one record.",
    ),
    Metric(
        "train/loss/contribution_h<k>",
        "share of a level",
        "fraction",
        TIER_STEP,
        "|L_k| / |L_total|, from train/loss/h<k> and the total loss of one record.",
    ),
    Metric(
        "train/stability/loss_smoothness",
        "smoothness of the loss",
        "",
        TIER_STEP,
        "Standard deviation of the differences of the last 100 losses over that of the losses: √2 for white noise, near 0 for a smooth curve; at each tenth loss.",
        "lower",
    ),
    Metric(
        "train/stability/loss_trend_slope",
        "trend of the loss",
        "1/step",
        TIER_STEP,
        "Theil-Sen slope of the last 100 losses, per step: median of the slopes of all pairs of the means of 20 blocks of neighbours; at each tenth loss.",
        "lower",
    ),
    Metric(
        "train/stability/loss_spike_ratio",
        "spike of the loss",
        "",
        TIER_STEP,
        "Last loss over the median of the last 100; at each tenth loss.",
        "lower",
    ),
    Metric(
        "noise/psd_tail",
        "noise of the loss by frequency",
        "",
        TIER_PERIODIC,
        "Slope of log power over log frequency in the upper half of the spectrum (Welch) of the losses of two epochs without their line, at most the last 8192: about 0 for white noise, far below 0 where neighbours are alike; each 2 epochs.",
    ),
    Metric(
        "noise/psd_tail_power",
        "power of the tail",
        "",
        TIER_PERIODIC,
        "Mean power spectral density in the upper half of that spectrum, frequency in cycles a record.",
    ),
    Metric(
        "noise/residual_power",
        "power around the trend",
        "",
        TIER_PERIODIC,
        "Variance of those losses around their least-squares line.",
        "lower",
    ),
    Metric(
        "noise/floor",
        "noise floor of the loss",
        "",
        TIER_PERIODIC,
        "1.4826 · MAD(differences) / √2 of those losses: standard deviation of the noise whatever the trend.",
        "lower",
    ),
    Metric(
        "train/flow/slope",
        "slope of the gradient profile",
        "decades per block",
        TIER_EPOCH,
        "Least-squares slope of log10 of the blocks' gradient norms by depth; norms are means over the epoch's last 64 records.",
    ),
    Metric(
        "train/flow/min_over_median",
        "weakest block",
        "",
        TIER_EPOCH,
        "Least gradient norm of a block over the median of all.",
        "higher",
    ),
    Metric(
        "train/flow/class",
        "class of the gradient profile",
        "",
        TIER_EPOCH,
        "0 uniform; 1 sparse: a quarter of the blocks below 0.1 of the median; 2 vanishing: median below 1e-8, or a rise of over 3 decades from first to last block; 3 exploding: a norm above 1e3 or not finite, or a fall of over 3 decades.",
        None,
        "max",
    ),
    Metric(
        "train/flow/bottleneck_count",
        "bottleneck blocks",
        "blocks",
        TIER_EPOCH,
        "Blocks whose gradient norm is below 0.1 of the median of all.",
        "lower",
        "max",
    ),
    Metric(
        "train/flow/bottleneck/<block>",
        "block is a bottleneck",
        "",
        TIER_EPOCH,
        "1 where the block's gradient norm is below 0.1 of the median of all, else 0; its mean over epochs says how often.",
        "lower",
        "max",
    ),
    Metric(
        "train/flow/bottleneck_share/<block>",
        "how often a block is a bottleneck",
        "fraction",
        TIER_EPOCH,
        "Share of the epoch's last 64 records in which the block's gradient norm is below 0.1 of the median of all.",
        "lower",
    ),
    Metric(
        "train/stability/<kind>_count",
        "alerts of a kind",
        "alerts",
        TIER_EPOCH,
        "Values so far that a rule of the run's profile, named as the kind, counts into its findings: explosion, vanishing, stagnation, loss_spike, memory. How many findings they make stands in the table findings.",
        "lower",
        "sum",
    ),
    *(
        Metric(f"{prefix}_{what}", name, unit, TIER_STEP, meaning, "lower" if what == "mean_similarity" else "higher")
        for prefix in ("<split>/<name>", "<split>/<group>/<name>")
        for what, name, unit, meaning in (
            (
                "mean_std_per_dim",
                "spread of features",
                "",
                "Mean over dimensions of the standard deviation over rows of the tensor <name>_features; below 0.01 is collapse.",
            ),
            (
                "min_std_per_dim",
                "least spread of features",
                "",
                "Least over dimensions of the standard deviation over rows; below 0.001 is collapse.",
            ),
            (
                "effective_rank",
                "effective rank",
                "dimensions",
                "exp(H(s / Σs)) of the singular values s of the tensor <name>_features, not centred (Roy & Vetterli 2007): from 1 to the number of dimensions or rows.",
            ),
            (
                "effective_rank_share",
                "effective rank, share",
                "fraction",
                "Effective rank over the number of dimensions; below 0.13 is collapse. Not given of fewer rows than a third of the dimensions.",
            ),
            (
                "mean_similarity",
                "similarity of features",
                "",
                "Mean cosine of all pairs of rows of the tensor <name>_features; above 0.7 is concerning.",
            ),
        )
    ),
    Metric(
        "feature_distributions/<name>",
        "distribution of features",
        "",
        TIER_STEP,
        "Histogram of the elements of the tensor <name>_features, 64 bins; of one whose name begins with val/ it is val_<name>.",
    ),
    *(
        Metric(
            f"{of}/{what}_ch<c>",
            f"{name} of a channel",
            "",
            TIER_PERIODIC,
            f"{name[0].upper()}{name[1:]} of channel <c> over the tensor {source}.",
        )
        for of, source in (("generated", "samples/generated_latents"), ("data", "samples/real_latents"))
        for what, name in (
            ("mean", "mean"),
            ("std", "standard deviation"),
            ("min", "least value"),
            ("max", "greatest value"),
        )
    ),
    Metric(
        "generated/mean_shift_ch<c>",
        "shift of a channel",
        "",
        TIER_PERIODIC,
        "Mean of the generated channel minus that of the real one, over the standard deviation of the real one.",
    ),
    Metric(
        "generated/std_ratio_ch<c>",
        "spread of a channel against the data",
        "",
        TIER_PERIODIC,
        "Standard deviation of the generated channel over that of the real one; 0.5 to 2 is usual.",
    ),
    Metric(
        "generated/distance_ch<c>",
        "distance to the data",
        "",
        TIER_PERIODIC,
        "Wasserstein-1 distance between generated and real values of a channel, over the standard deviation of the real ones.",
        "lower",
    ),
    Metric(
        "histograms/generated_latent_ch<c>",
        "distribution of a generated channel",
        "",
        TIER_PERIODIC,
        "Histogram of channel <c> of samples/generated_latents, 64 bins.",
    ),
    Metric(
        "samples/generated_grid",
        "generated samples",
        "",
        TIER_PERIODIC,
        "Image: of samples/generated_latents at most 8 samples as rows; as columns the axial, coronal and sagittal middle slices of the first 4 channels, on one grey scale from the 1st to the 99th percentile.",
    ),
    Metric(
        "samples/real_vs_generated",
        "real and generated",
        "",
        TIER_PERIODIC,
        "Image: axial middle slices of samples/real_latents above those of samples/generated_latents, samples as columns, the first 4 channels as rows, on one grey scale.",
    ),
    *(
        Metric(f"train/sampling/{what}", name, "", TIER_STEP, meaning)
        for what, name, meaning in (
            ("t_mean", "mean time", "Mean of the sampled times t, from the tensor train/sampling/t."),
            ("t_std", "spread of times", "Standard deviation of the sampled times t."),
            ("t_min", "least time", "Least of the sampled times t."),
            ("t_max", "greatest time", "Greatest of the sampled times t."),
            ("h_mean", "mean interval", "Mean of h = t - r, from the tensor train/sampling/h."),
            ("h_std", "spread of intervals", "Standard deviation of h = t - r."),
        )
    ),
    Metric(
        "train/sampling/h_zero_frac",
        "share of flow matching samples",
        "fraction",
        TIER_STEP,
        "Share of h = t - r with |h| < 1e-6.",
    ),
    Metric(
        "train/sampling/n_fm",
        "flow matching samples",
        "samples",
        TIER_STEP,
        "Number of h = t - r with |h| < 1e-6.",
        None,
        "sum",
    ),
    Metric(
        "train/sampling/n_mf",
        "average velocity samples",
        "samples",
        TIER_STEP,
        "Number of all other h = t - r.",
        None,
        "sum",
    ),
    Metric("histograms/t_distribution", "distribution of times", "", TIER_STEP, "Histogram of the sampled times t."),
    Metric("histograms/h_distribution", "distribution of intervals", "", TIER_STEP, "Histogram of h = t - r."),
)
