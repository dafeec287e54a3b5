"""Flow matching with average velocity: the loss, the times it is taken at, and samples in one step.

A latent x and noise e are joined by z_t = (1 - t) x + t e, whose velocity is v = e - x. The network u(z, r, t) learns
the average velocity between r and t, which obeys u + (t - r) du/dt = v (Geng et al. 2025, "Mean Flows for One-step
Generative Modeling"); du/dt is taken along the path that the network itself expects, whose velocity is u(z, t, t).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MeanFlowLoss:
    """L = L_FM + λ L_MF.

    L_FM is the mean of |u(z, t, t) - v|^p over batch and elements, L_MF that of |V - v|^p with V = u + (t - r) du/dt;
    there samples count by their adaptive weight 1 / (error + eps), over the mean of those.

    Attributes:
        weight: λ.
        p: power of the error.
        eps: what keeps weights finite.
        derivative: how du/dt is taken: "jvp" (forward mode, exact) or "difference" (central, two passes more).
        delta: half of the interval of that difference.
    """

    weight: float = 1.0
    p: float = 2.0
    eps: float = 0.1
    derivative: Literal["jvp", "difference"] = "jvp"
    delta: float = 1e-2

    def __call__(
        self,
        model: Velocity,
        x: Tensor,
        noise: Tensor,
        r: Tensor,
        t: Tensor,
        *,
        return_diagnostics: bool = False,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            model: gives u of the shape of z.
            x: latents (N, C, ...).
            noise: likewise.
            r: times (N,), at most `t`.
            t: times (N,).
            return_diagnostics: also say how large each part is: detached, of what was computed anyway.

        Returns:
            `loss`, `loss_fm`, `loss_mf`; with diagnostics five norms, two moments of the weights, and
            `loss_per_channel` of shape (C,).
        """
        along = (-1,) + (1,) * (x.ndim - 1)
        z = (1 - t.view(along)) * x + t.view(along) * noise
        target = noise - x
        own = model(z, t, t)
        average, slope = self._with_slope(model, z, r, t, own.detach())
        compound = average + (t - r).view(along) * slope
        errors = (compound - target).abs().pow(self.p)
        error = errors.flatten(1).mean(1)
        weights = 1 / (error.detach() + self.eps)
        loss_fm = (own - target).abs().pow(self.p).mean()
        loss_mf = (weights / weights.mean() * error).mean()
        losses = {"loss": loss_fm + self.weight * loss_mf, "loss_fm": loss_fm, "loss_mf": loss_mf}
        if not return_diagnostics:
            return losses
        norms = {
            "jvp_norm": slope,
            "u_norm": average,
            "v_tilde_norm": own,
            "compound_v_norm": compound,
            "target_v_norm": target,
        }
        return {
            **losses,
            **{name: value.detach().flatten(1).norm(dim=1).mean() for name, value in norms.items()},
            "adaptive_weight_mean": weights.mean(),
            "adaptive_weight_std": weights.std(correction=0),
            "loss_per_channel": errors.detach().transpose(0, 1).flatten(1).mean(1),
        }

    def _with_slope(self, model: Velocity, z: Tensor, r: Tensor, t: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """u(z, r, t), and du/dt along the path, which no gradient flows through."""
        if self.derivative == "jvp":
            tangents = (own, torch.zeros_like(r), torch.ones_like(t))
            average, slope = torch.func.jvp(model, (z, r, t), tangents)
            return average, slope.detach()
        step = self.delta
        with torch.no_grad():
            later, earlier = model(z + step * own, r, t + step), model(z - step * own, r, t - step)
        return model(z, r, t), (later - earlier) / (2 * step)


def sample_times(count: int, data_proportion: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times r <= t of shape (count,), logit-normal: 1 / (1 + exp(-x)) with x of mean -0.4 and deviation 1.

    A share `data_proportion` of them has r = t: samples of plain flow matching.
    """
    pair = torch.sigmoid(torch.randn(2, count, generator=generator) - 0.4)
    r, t = pair.amin(0), pair.amax(0)
    same = torch.arange(count) < round(data_proportion * count)
    return torch.where(same, t, r), t


@torch.no_grad()
def sample(model: nn.Module, noise: Tensor) -> Tensor:
    """Latents from noise in one step: x = e - u(e, 0, 1)."""
    zeros = noise.new_zeros(len(noise))
    return noise - model(noise, zeros, zeros + 1)
