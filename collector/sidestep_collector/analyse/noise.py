"""Noise of the loss over two epochs: its spectrum's tail, its variance around the trend, its floor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from sidestep_collector.analyse.protocol import Analyser, EpochEnd, Floats, Series, Span, Values
from sidestep_collector.analyse.stability import LOSSES

#: Epochs that are taken together; a value is given for each so many.
EPOCHS: Final = 2
#: The last values of two epochs that are looked at.
MEMORY: Final = 8192
LEAST: Final = 32
SEGMENT: Final = 256
#: Turns a median of absolute deviations into the standard deviation of a normal distribution.
MAD_TO_SD: Final = 1.4826


class Spectrum(NamedTuple):
    """One-sided power spectral density: frequencies in cycles a record, power; shape (segment // 2 + 1,) each."""

    frequency: Floats
    power: Floats


class Tail(NamedTuple):
    """The upper half of a spectrum: its log-log slope, NaN where there is no power, and its mean power."""

    slope: float
    power: float


def detrended(values: Floats) -> Floats:
    """Values without their least-squares line over the record number; shape (n,), n >= 2."""
    at = np.arange(len(values)) - (len(values) - 1) / 2
    return values - values.mean() - at * (at @ values / (at @ at))


def welch(values: Floats, segment: int = SEGMENT) -> Spectrum:
    """Power spectral density by Welch's method (1967): the mean periodogram of segments that overlap by half, each
    without its mean and under a Hann window; as `scipy.signal.welch` has it by default. Its own: importing that took
    0.7 s and 77 MB.

    Args:
        values: shape (n,), finite, n >= 2.
        segment: length of a segment, at most n is taken.
    """
    size = min(segment, len(values))
    window = np.hanning(size + 1)[:-1]
    parts = np.lib.stride_tricks.sliding_window_view(values, size)[:: size - size // 2]
    parts = (parts - parts.mean(axis=1, keepdims=True)) * window
    power = (np.abs(np.fft.rfft(parts, axis=1)) ** 2).mean(axis=0) / (window @ window)
    power[1 : None if size % 2 else -1] *= 2
    return Spectrum(np.arange(len(power)) / size, power)


def psd_tail(values: Floats) -> Tail:
    """Slope of log power over log frequency in the upper half of the frequencies, of values without their line, and
    the mean power there: a slope about 0 is white noise, one far below 0 a loss whose neighbours are alike.

    Args:
        values: shape (n,), finite, n >= `LEAST`.
    """
    frequency, power = welch(detrended(values))
    upper = frequency >= 0.25
    mean = float(power[upper].mean())
    upper &= power > 0
    if upper.sum() < 2:
        return Tail(np.nan, mean)
    x, y = np.log(frequency[upper]), np.log(power[upper])
    x = x - x.mean()
    return Tail(float(x @ y / (x @ x)), mean)


def residual_power(values: Floats) -> float:
    """Variance around the least-squares line, of the population; shape (n,), finite, n >= 2."""
    return float(np.mean(detrended(values) ** 2))


def floor(values: Floats) -> float:
    """Standard deviation of the noise, whatever the trend: 1.4826 · MAD(differences) / √2, the MAD around the median.

    Args:
        values: shape (n,), finite, n >= 2.
    """
    moves = np.diff(values)
    return MAD_TO_SD * float(np.median(np.abs(moves - np.median(moves)))) / np.sqrt(2.0)


class Noise(Analyser):
    """`noise/...` at the end of each second epoch: of epochs 0 and 1, 2 and 3, and so on."""

    name = "noise"
    reads = (*LOSSES, "train/loss_nats")
    gives = ("noise/psd_tail", "noise/psd_tail_power", "noise/residual_power", "noise/floor")
    memory = MEMORY
    when = "epochs"

    def add(self, span: Span) -> Iterator[Values]:
        """See `Analyser`."""
        if not span.series:
            return
        series = next(span.series[tag] for tag in self.reads if tag in span.series)
        for end in span.ended:
            values = _of_epochs(series, end)
            if len(values) >= LEAST:
                found = (*psd_tail(values), residual_power(values), floor(values))
                yield Values.at(end.at, dict(zip(self.gives, found, strict=True)))


def _of_epochs(series: Series, end: EpochEnd) -> Floats:
    """The finite ones of the last values of two epochs; none where it is not their turn, or the first has none."""
    if end.epoch % EPOCHS != EPOCHS - 1:
        return np.empty(0)
    stop = int(np.searchsorted(series.seq, end.at.seq, side="right"))
    last = slice(max(0, stop - MEMORY), stop)
    whole = np.floor(series.epoch[last])
    of_them = (whole > end.epoch - EPOCHS) & (whole <= end.epoch)
    has_both = bool((whole[of_them] < end.epoch).any())
    is_cut = len(whole) == MEMORY and bool(of_them.all())  # the first one's values lie further back than is looked
    if not (has_both or is_cut):
        return np.empty(0)
    values = series.values[last][of_them]
    return values[np.isfinite(values)]
