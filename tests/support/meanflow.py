"""The example of average-velocity flow matching: how it is trained in tests, and what each of its steps must say."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from support.families import EXAMPLES, PATIENCE_SECONDS, SETTINGS, imported
from support.place import Place, ended

FOLDER: Final = EXAMPLES / "meanflow"
EPOCHS, SIZE, BATCH = 2, 64, 16
CHANNELS: Final = range(4)

data, loss, model = imported("meanflow", "data", "loss", "model")


def command(script: str, *arguments: str, **diagnostics: Any) -> tuple[str, ...]:
    settings = {"log_every_n_steps": 1, "every_n_epochs": EPOCHS, **diagnostics}
    small = ("--epochs", str(EPOCHS), "--size", str(SIZE), "--diagnostics", json.dumps(settings))
    return (str(FOLDER / script), *small, *arguments)


def run_to_its_end(place: Place, *words: str) -> str:
    """Run a training; what it printed."""
    return ended(place.start(sys.executable, *words, **SETTINGS), seconds=PATIENCE_SECONDS)


def folder(place: Place, run: str) -> Path:
    return place.root / "runs" / "meanflow" / run


# --- recomputed ------------------------------------------------------------------------------------------


def norm_of(array):
    return np.linalg.norm(array.reshape(len(array), -1), axis=1).mean()


def expected_of(net, x, noise, r, t):
    """What a step must say, from the formulas: float64, du/dt by a finite difference."""
    net = copy.deepcopy(net).double()
    x, noise, r, t = (array.double() for array in (x, noise, r, t))
    at = t.view(-1, 1, 1, 1, 1)
    z, target = (1 - at) * x + at * noise, (noise - x).numpy()
    with torch.no_grad():
        own, average = net(z, t, t), net(z, r, t)
        later, earlier = (net(z + d * own, r, t + d) for d in (1e-5, -1e-5))
    slope = ((later - earlier) / 2e-5).numpy()
    own, average, h = own.numpy(), average.numpy(), (t - r).numpy()
    compound = average + h.reshape(-1, 1, 1, 1, 1) * slope
    errors = (compound - target) ** 2
    error = errors.reshape(len(h), -1).mean(1)
    weights = 1 / (error + 0.1)
    loss_fm = ((own - target) ** 2).mean()
    loss_mf = (weights / weights.mean() * error).mean()
    t = t.numpy()
    return {
        "train/loss_total": loss_fm + loss_mf,
        "train/loss_fm": loss_fm,
        "train/loss_mf": loss_mf,
        "train/loss_ratio_fm": loss_fm / (loss_fm + loss_mf),
        "train/meanflow/jvp_norm": norm_of(slope),
        "train/meanflow/u_norm": norm_of(average),
        "train/meanflow/v_tilde_norm": norm_of(own),
        "train/meanflow/compound_v_norm": norm_of(compound),
        "train/meanflow/target_v_norm": norm_of(target),
        "train/meanflow/adaptive_weight_mean": weights.mean(),
        "train/meanflow/adaptive_weight_std": weights.std(),
        **{f"train/channel/loss_ch{c}": errors[:, c].mean() for c in CHANNELS},
        "train/sampling/t_mean": t.mean(),
        "train/sampling/t_std": t.std(),
        "train/sampling/t_min": t.min(),
        "train/sampling/t_max": t.max(),
        "train/sampling/h_mean": h.mean(),
        "train/sampling/h_std": h.std(),
        "train/sampling/h_zero_frac": (h == 0).mean(),
        "train/sampling/n_fm": (h == 0).sum(),
        "train/sampling/n_mf": (h > 0).sum(),
    }


def block_norms(net):
    """Gradient norms by block in float64, from the parameters' names."""
    squares = dict.fromkeys(model.BLOCKS, 0.0)
    for name, parameter in net.named_parameters():
        [block] = [block for block, prefix in model.BLOCKS.items() if name.startswith(f"{prefix}.")]
        squares[block] += float((parameter.grad.double() ** 2).sum())
    return {block: math.sqrt(square) for block, square in squares.items()}


def vector(parameters):
    return torch.cat([parameter.detach().double().ravel() for parameter in parameters]).numpy()


def validated(net, val, noise, r, t):
    found = expected_of(net, val, noise, r, t)
    return {
        name.replace("train", "val"): found[name] for name in ("train/loss_total", "train/loss_fm", "train/loss_mf")
    }
