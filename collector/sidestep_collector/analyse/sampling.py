"""Sampling of times: what a batch of flow-matching times is like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from sidestep_collector.analyse.arrays import histogram
from sidestep_collector.analyse.protocol import Analyser, Floats, Given, Span, Values
from sidestep_collector.latents import floats

PREFIX: Final = "train/sampling/"
#: Intervals shorter than this are taken for 0: samples of plain flow matching.
ZERO: Final = 1e-6


def of_times(t: Floats) -> dict[str, float]:
    """Mean, standard deviation (of the population), least and greatest of times; shape (n,), finite, n >= 1."""
    return {"t_mean": float(t.mean()), "t_std": float(t.std()), "t_min": float(t.min()), "t_max": float(t.max())}


def of_intervals(h: Floats) -> dict[str, float]:
    """Mean, standard deviation and share of zeros of h = t - r, and how many samples are of flow matching (|h| < 1e-6)
    and of average velocity (all others); shape (n,), finite, n >= 1."""
    zeros = int((np.abs(h) < ZERO).sum())
    return {
        "h_mean": float(h.mean()),
        "h_std": float(h.std()),
        "h_zero_frac": zeros / len(h),
        "n_fm": float(zeros),
        "n_mf": float(len(h) - zeros),
    }


class Sampling(Analyser):
    """Of tensors `train/sampling/t` and `train/sampling/h`: `train/sampling/t_mean` and so on, and histograms."""

    name = "sampling"
    tensors = (f"{PREFIX}t", f"{PREFIX}h")
    gives = tuple(
        f"{PREFIX}{what}"
        for what in ("t_mean", "t_std", "t_min", "t_max", "h_mean", "h_std", "h_zero_frac", "n_fm", "n_mf")
    )

    def add(self, span: Span) -> Iterator[Given]:
        """See `Analyser`."""
        for tensor in span.tensors:
            array = floats(tensor)
            values = np.empty(0) if array is None else array[np.isfinite(array)]
            if len(values):
                letter = tensor.name.removeprefix(PREFIX)
                found = (of_times if letter == "t" else of_intervals)(values)
                yield Values.at(tensor.at, {f"{PREFIX}{what}": value for what, value in found.items()})
                shown = histogram(tensor.at, f"histograms/{letter}_distribution", values)
                if shown is not None:
                    yield shown
