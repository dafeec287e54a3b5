"""torchtitan: `SidestepLogger` takes what its `MetricsProcessor` logs.

    trainer = config.build(...)
    sidestep.torchtitan.attach(trainer.metrics_processor, project="llama")

Imports nothing of torchtitan: its loggers are whatever has `log(metrics, step)` and `close()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidestep.adapters import checked, hold, tagged
from sidestep.run import Run
from sidestep.start import init


class SidestepLogger:
    """A logger as torchtitan's `BaseLogger`.

    Args:
        tag: put before each name, as torchtitan's own loggers do.
        **keywords: those of `sidestep.init`.

    Raises:
        UsageError: a keyword that it does not take.
    """

    def __init__(self, tag: str | None = None, **keywords: Any) -> None:
        known = checked(keywords, "SidestepLogger", watches=False)
        self._tag = tag
        self._held = hold(lambda: init(**known))

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Record named numbers."""
        run = self._held.run
        run.guard(lambda: self._log(run, metrics, step))

    def _log(self, run: Run, metrics: Mapping[str, Any], step: int) -> None:
        named = metrics if self._tag is None else {f"{self._tag}/{name}": value for name, value in metrics.items()}
        if named:
            run.log(tagged(named, "train"), step=step, split=None)

    def close(self) -> None:
        """End the run, if it was begun here."""
        self._held.finish()


def attach(processor: Any, tag: str | None = None, **keywords: Any) -> SidestepLogger:
    """Add a `SidestepLogger` to a `MetricsProcessor`, beside TensorBoard and others where these are enabled.

    Call it on the ranks whose metrics are wanted.

    Args:
        processor: has the `logger` that metrics go to.
        tag: put before each name.
        **keywords: those of `sidestep.init`.
    """
    logger = SidestepLogger(tag, **keywords)
    if hasattr(processor.logger, "add_logger"):
        processor.logger.add_logger(logger)
    else:  # none is enabled, and a logger that does nothing stands there
        processor.logger = logger
    return logger
