"""Keras: `SidestepCallback` records what `fit` computes. For Keras 3; made for its torch backend.

    model.fit(x, y, epochs=5, callbacks=[SidestepCallback(project="digits")])

An optimizer of Keras is none of torch's, so nothing is watched: losses, metrics and the learning rate are recorded.
"""

# ruff: noqa: ARG002 - the signatures are Keras'

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sidestep.adapters import Held, checked, hold, tagged
from sidestep.errors import MissingExtraError
from sidestep.start import init

if TYPE_CHECKING:
    from keras.callbacks import Callback
else:
    try:
        from keras.callbacks import Callback
    except ModuleNotFoundError as error:
        raise MissingExtraError("sidestep.keras needs Keras: pip install keras") from error


class SidestepCallback(Callback):
    """Records each batch (`train/loss`: as Keras shows it, the mean of the epoch so far), epoch and validation.

    A fit is a run of its own, unless the script has begun one.

    Args:
        **keywords: those of `sidestep.init`.

    Raises:
        UsageError: a keyword that it does not take.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self._keywords = checked(keywords, "SidestepCallback", watches=False)
        self._held: Held | None = None
        self._epoch = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begin the run, or take the one of this process."""
        held = self._held = hold(lambda: init(**self._keywords))
        held.run.guard(lambda: held.run.config.update({"fit": self.params, "optimizer": self._optimizer.get_config()}))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Begin an epoch, from 1."""
        self._epoch = epoch + 1
        if self._held is not None:
            self._held.run.epoch(self._epoch)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record a batch as a step."""
        if self._held is not None and logs:
            self._held.run.log(tagged(logs, "train"), split=None)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record an epoch: `train/loss_epoch`, `val/loss`, `train/lr`."""
        if self._held is None:
            return
        run = self._held.run
        trained = {f"{name}_epoch": value for name, value in (logs or {}).items() if not name.startswith("val_")}
        validated = {name: value for name, value in (logs or {}).items() if name.startswith("val_")}
        run.guard(lambda: trained.setdefault("lr", float(self._optimizer.learning_rate)))
        run.log(tagged({**trained, **validated}, "train"), step=run.step, split=None, epoch=self._epoch)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """End the run with the fit. One that ends in an exception is ended, as failed, with the script."""
        held, self._held = self._held, None
        if held is not None:
            held.finish()

    @property
    def _optimizer(self) -> Any:
        model: Any = self.model
        return model.optimizer
