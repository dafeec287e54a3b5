"""Pictures of `slope`: each a file, PNG or SVG by its name. Draws with matplotlib, which is loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from sidestep_collector.query.slope import RunSlope

#: Curves in one picture; with more they cover each other.
_CURVES_MAX: Final = 40


def draw_slopes(found: Sequence[RunSlope], folder: Path, *, kind: str = "png") -> list[Path]:
    """Draw what the runs give: curves, early slopes, exponents, burn-in, curvature against the slope.

    Args:
        found: what `analyse_slopes` found.
        folder: where the pictures go; made where it is missing.
        kind: "png" or "svg".

    Returns:
        The files; a picture that no run has numbers for is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Any, Sequence[RunSlope]], bool]] = {
        "curves": _curves,
        "early_slopes": _early_slopes,
        "exponents": _exponents,
        "burn_in": _burn_in,
        "curvature_against_slope": _curvature,
    }
    return [path for name, draw in pictures.items() if _drawn(draw, found, path := folder / f"slope_{name}.{kind}")]


def _drawn(draw: Callable[[Any, Sequence[RunSlope]], bool], found: Sequence[RunSlope], path: Path) -> bool:
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second that only pictures should cost

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    if not draw(axes, found):
        return False
    figure.savefig(path, dpi=120)
    return True


def _curves(axes: Any, found: Sequence[RunSlope]) -> bool:
    shown = found[:: max(1, -(-len(found) // _CURVES_MAX))]
    for run in shown:
        (line,) = axes.plot(run.curve.n, run.curve.values, linewidth=1, alpha=0.7)
        if run.law is not None and len(shown) <= 8:
            n = run.curve.n[run.burn_in.start if run.burn_in else 0 :]
            fitted = run.law.c + run.law.a * n**-run.law.b
            axes.plot(n, fitted, "--", color=line.get_color(), linewidth=1)
            line.set_label(f"{run.run}: b = {run.law.b:.3g} [{run.law.b_low:.3g}, {run.law.b_high:.3g}]")
    axes.set(xscale="log", yscale="log", xlabel="epochs done", ylabel=found[0].metric if found else "loss")
    axes.set_title(f"loss of {len(found)} runs" + (f", {len(shown)} shown" if len(shown) < len(found) else ""))
    if len(shown) <= 8:
        axes.legend(fontsize="small")
    return bool(found)


def _early_slopes(axes: Any, found: Sequence[RunSlope]) -> bool:
    early = sorted((run.early for run in found if run.early), key=lambda slope: slope.slope)
    if not early:
        return False
    at = np.arange(len(early))
    slopes = np.array([slope.slope for slope in early])
    reach = [[slope.slope - slope.low for slope in early], [slope.high - slope.slope for slope in early]]
    axes.errorbar(at, slopes, yerr=reach, fmt=".", markersize=4, elinewidth=0.8)
    axes.set(xlabel="runs, by their slope", ylabel="d log L / d log n", title="early slope, 95 % interval")
    return True


def _exponents(axes: Any, found: Sequence[RunSlope]) -> bool:
    laws = sorted((run.law for run in found if run.law), key=lambda law: law.b)
    if not laws:
        return False
    reach = [[law.b - law.b_low for law in laws], [law.b_high - law.b for law in laws]]
    axes.errorbar(np.arange(len(laws)), [law.b for law in laws], yerr=reach, fmt=".", markersize=4, elinewidth=0.8)
    axes.set(xlabel="runs, by their exponent", ylabel="b of L = c + a n^-b", yscale="log")
    axes.set_title("exponent of the power law, 95 % interval")
    return True


def _burn_in(axes: Any, found: Sequence[RunSlope]) -> bool:
    ends = [run.burn_in.at for run in found if run.burn_in]
    if not ends:
        return False
    axes.hist(ends, bins=min(30, max(5, len(ends) // 4)))
    axes.set(xlabel="epochs done", ylabel="runs", title="end of the burn-in, by AIC")
    return True


def _curvature(axes: Any, found: Sequence[RunSlope]) -> bool:
    both = [(run.curvature_peak_at, run.early.slope) for run in found if run.early and run.curvature_peak_at]
    if not both:
        return False
    axes.plot(*zip(*both, strict=True), ".", markersize=5)
    axes.set(xlabel="epochs done at the greatest curvature", ylabel="early slope")
    axes.set_title("when the curvature peaks, against how fast the loss falls")
    return True
