"""How gradients of the parts of a batch scatter: their mean and the squares about it, on a sample of coordinates.

With c_1 … c_m the gradients of m parts of equal size, g = Σ c_i their sum, and c̄ = g / m,

    V = m / (m - 1) · Σ_i |c_i - c̄|²           estimates tr Cov(g), the variance of the gradient of the whole batch
    |g|² - V                                    estimates |E g|², its signal

without bias; of a batch of B samples the simple noise scale tr Σ / |G|² is B · V / (|g|² - V), in samples. That is what
McCandlish et al. (An Empirical Model of Large-Batch Training, 2018, appendix A.1) estimate from norms of gradients of
batches of B / m and of B samples. Whether a loss is divided by m makes no difference to it.

Squares are summed over a sample of coordinates (`sidestep.probes.sample`), S(x) = Σ_p N_p / n_p Σ_j x_pj. For the
coordinates as a simple random sample, with v_pj = m / (m - 1) · Σ_i (c_ipj - c̄_pj)² and s_p² its variance over j, the
standard error of V that comes of the sample is √(Σ_p N_p² (1 - n_p / N_p) s_p² / n_p): about 3 % for one large
matrix. What the few parts leave uncertain comes on top.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidestep.probes.sample import Coordinates


class Scatter:
    """Gradients of parts of a batch, one after the other (Welford's recurrence).

    Args:
        coordinates: of the parameters of one device.

    Attributes:
        count: parts so far.
    """

    def __init__(self, coordinates: Coordinates) -> None:
        self.coordinates = coordinates
        self.count = 0
        self._now, self._mean, self._squares = (coordinates.rows().whole.zero_() for _ in range(3))
        self._weights = coordinates.weights()

    def add(self, number: int, sampled: Tensor) -> None:
        """Add to the gradient of one parameter, of the part under way."""
        self.coordinates.part(self._now, number).add_(sampled)

    def end_part(self) -> None:
        """The part under way is complete."""
        self.count += 1
        apart = self._now - self._mean
        self._mean.add_(apart, alpha=1 / self.count)
        self._squares.addcmul_(apart, self._now - self._mean)
        self._now.zero_()

    def sums(self) -> Tensor:
        """V and |g|² over the parameters, shape (2,); V is zero where there is one part."""
        variance = self._weights @ self._squares * (self.count / max(1, self.count - 1))
        return torch.stack((variance, self._weights @ self._mean**2 * self.count**2))
