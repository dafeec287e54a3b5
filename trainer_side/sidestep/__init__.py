"""sidestep: training diagnostics that never get in the way of training.

    import sidestep
    run = sidestep.watch(model, optimizer)      # hooks only; or sidestep.init() and run.log({...})

Importing this package loads nothing but the standard library; each name loads what it needs when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sidestep.clip import clip_grad_norm_
    from sidestep.errors import SidestepError, SidestepWarning
    from sidestep.report import DeliveryReport
    from sidestep.run import Run
    from sidestep.start import active_run, init
    from sidestep.watching import watch

__version__: Final = "0.1.0"

__all__ = [
    "DeliveryReport",
    "Run",
    "SidestepError",
    "SidestepWarning",
    "__version__",
    "active_run",
    "clip_grad_norm_",
    "init",
    "watch",
]

_HOME: Final = {
    "DeliveryReport": "sidestep.report",
    "Run": "sidestep.run",
    "SidestepError": "sidestep.errors",
    "SidestepWarning": "sidestep.errors",
    "active_run": "sidestep.start",
    "clip_grad_norm_": "sidestep.clip",
    "init": "sidestep.start",
    "watch": "sidestep.watching",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sidestep' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
