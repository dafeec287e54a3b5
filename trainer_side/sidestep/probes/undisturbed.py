"""A forward and backward pass beside the training, of which the training notices nothing."""

from __future__ import annotations

import random
import sys
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Eval mode for as long as it lasts; modes and random states are afterwards as they were.

    Attention is computed plainly meanwhile: its fast kernels cannot be differentiated twice.
    """
    modes = [(module, module.training) for module in model.modules()]
    plain, numpy = random.getstate(), sys.modules.get("numpy")
    state = None if numpy is None else numpy.random.get_state()
    devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    try:
        with torch.random.fork_rng(devices), sdpa_kernel(SDPBackend.MATH):
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(plain)
        if numpy is not None:
            numpy.random.set_state(state)
