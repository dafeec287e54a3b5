"""Lightning: `SidestepCallback` follows a fit, `SidestepLogger` takes what a Trainer gives its loggers.

    Trainer(callbacks=[SidestepCallback(project="digits", every=10)])

Works with `lightning` and with `pytorch_lightning`, whichever is imported. The only part of Lightning used that is
not public is `_results.metrics`: what was logged in the last batch. Lightning shows it to nobody before its loggers
are due, by default every 50 steps.
"""

# ruff: noqa: ARG002 - the signatures are Lightning's

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import sidestep
from sidestep.adapters import Held, catch_up, checked, epoch_at, hold, mark_checkpoint, tagged, tell_of_checkpoints
from sidestep.errors import MissingExtraError
from sidestep.run import Run
from sidestep.start import active_run, init

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import rank_zero_experiment
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.utilities import rank_zero_only
else:
    _NAMES = ("lightning.pytorch", "pytorch_lightning")
    for _name in (*(name for name in _NAMES if name in sys.modules), *_NAMES):
        try:
            import_module(_name)
        except ModuleNotFoundError:
            continue
        Callback = import_module(_name).Callback
        Logger = import_module(f"{_name}.loggers.logger").Logger
        rank_zero_experiment = import_module(f"{_name}.loggers.logger").rank_zero_experiment
        rank_zero_only = import_module(f"{_name}.utilities").rank_zero_only
        break
    else:
        raise MissingExtraError("sidestep.lightning needs Lightning: pip install lightning")

#: Runs that a callback follows, and names that it has from validation batches: a logger of the run leaves both to it.
_followed: WeakKeyDictionary[Run, set[str]] = WeakKeyDictionary()


class SidestepCallback(Callback):
    """Follows a fit: watches module and optimizers, and records all that `self.log` is given, at every step.

    A fit is a run of its own, unless the script has begun one. Values of `trainer.validate` and `trainer.test` are
    recorded where a run of the script's is open.

    Args:
        **keywords: those of `sidestep.watch` and `sidestep.init`.

    Raises:
        UsageError: a keyword that they do not take.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self._keywords = checked(keywords, "SidestepCallback", watches=True)
        self._held: Held | None = None
        self._logged_step = -1
        self._val_batches: dict[int, int] = {}
        self._is_step_due = self._is_epoch_due = self._is_save_due = False
        self._before: dict[str, Any] = {}
        self._saved: set[tuple[Path, int]] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch, all ranks in one run."""
        place: dict[str, Any] = {"rank": trainer.global_rank, "world_size": trainer.world_size, **self._keywords}
        if trainer.world_size > 1 and trainer.global_rank > 0 and "id" not in place:
            place["id"] = trainer.strategy.broadcast(None)
        held = self._held = hold(lambda: sidestep.watch(pl_module, trainer.optimizers, **place))
        tell_of_checkpoints()
        _followed.setdefault(held.run, set())
        if trainer.world_size > 1 and trainer.global_rank == 0 and "id" not in place:
            trainer.strategy.broadcast(held.run.id)
        if pl_module.hparams:
            held.run.guard(lambda: held.run.config.update(pl_module.hparams))

    def on_train_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Go on from a checkpoint's step."""
        if self._held is not None:
            catch_up(self._held.run, trainer.global_step // max(1, len(trainer.optimizers)))
            self._logged_step = self._held.run.step

    def on_train_epoch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Begin an epoch, from 1."""
        self._settle(trainer)
        if self._held is not None:
            self._held.run.epoch(trainer.current_epoch + 1)

    def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Record the batch before: what was logged in hooks that ran after this callback's is there by now."""
        self._settle(trainer)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Remember that this batch is to be recorded."""
        self._is_step_due = True

    def on_train_epoch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Remember what is logged, to tell later what was new at the epoch's end."""
        self._settle(trainer)
        self._before = dict(trainer.logged_metrics)
        self._is_epoch_due = True

    def on_train_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Record the last epoch."""
        self._settle(trainer)

    def on_validation_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Record the batch before."""
        self._settle(trainer)
        self._before = dict(trainer.logged_metrics)

    def on_validation_batch_end(  # noqa: PLR0917 - the signature is Lightning's
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Record what is logged with `on_step=True`, by the number of validation batches as Lightning does."""
        if self._held is None or trainer.sanity_checking:
            return
        run, step = self._held.run, self._val_batches.get(dataloader_idx, 0)
        self._val_batches[dataloader_idx] = step + 1
        run.guard(lambda: self._log_val_batch(trainer, run, step))

    def on_validation_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Record a validation, at the epoch's share of batches that it comes after."""
        if not trainer.sanity_checking:
            self._log_evaluation(trainer, "val", self._position(trainer) if self._held is not None else None)

    def on_test_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Remember what is logged."""
        self._before = dict(trainer.logged_metrics)

    def on_test_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Record a test."""
        self._log_evaluation(trainer, "test", None)

    def on_save_checkpoint(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Remember that one is being written; nothing of this callback is in it."""
        self._is_save_due = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The run has failed."""
        self._end(trainer, exception)

    def teardown(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """End the run with the fit."""
        self._end(trainer)

    def _end(self, trainer: Trainer, error: BaseException | None = None) -> None:
        self._settle(trainer)
        held, self._held = self._held, None
        if held is not None:
            held.finish(error)

    def _settle(self, trainer: Trainer) -> None:
        if self._held is not None:
            self._held.run.guard(lambda: self._record_due(trainer))

    def _record_due(self, trainer: Trainer) -> None:
        assert self._held is not None
        run = self._held.run
        # While gradients are accumulated there is no step to belong to; Lightning's loggers leave these out too.
        is_step_due, self._is_step_due = self._is_step_due and run.step > self._logged_step, False
        if is_step_due:
            self._logged_step = run.step
            _log(run, _of_batch(trainer.fit_loop.epoch_loop), "train")
        is_epoch_due, self._is_epoch_due = self._is_epoch_due, False
        if is_epoch_due:
            _log(run, self._new(trainer), "train", epoch=run.current_epoch)
        is_save_due, self._is_save_due = self._is_save_due, False
        if is_save_due and trainer.is_global_zero:
            self._mark_saved(trainer, run)

    def _mark_saved(self, trainer: Trainer, run: Run) -> None:
        for path in {path for callback in trainer.checkpoint_callbacks for path in _paths(callback)}:
            if path.exists() and (path, path.stat().st_mtime_ns) not in self._saved:
                self._saved.add((path, path.stat().st_mtime_ns))
                mark_checkpoint(run, path, run.current_epoch)

    def _log_val_batch(self, trainer: Trainer, run: Run, step: int) -> None:
        values = _of_batch(trainer.fit_loop.epoch_loop.val_loop)
        _followed[run].update(values)
        _log(run, values, "val", step=step)

    def _log_evaluation(self, trainer: Trainer, split: str, epoch: float | None) -> None:
        run = active_run() if self._held is None else self._held.run
        if run is not None:
            run.guard(lambda: _log(run, self._new(trainer), split, step=run.step, epoch=epoch))

    def _new(self, trainer: Trainer) -> dict[str, Any]:
        # A value that was computed since is another object. Those of single batches are no callback's metrics.
        logged, known = trainer.logged_metrics, trainer.callback_metrics
        return {name: value for name, value in logged.items() if self._before.get(name) is not value and name in known}

    def _position(self, trainer: Trainer) -> float:
        total = trainer.num_training_batches
        share = (trainer.fit_loop.batch_idx + 1) / total if 0 < total < float("inf") else 1.0
        return epoch_at(trainer.current_epoch + min(share, 1.0))


class SidestepLogger(Logger):
    """Takes what a Trainer gives its loggers: at every `log_every_n_steps`-th step, validations, epochs, settings.

    Beside a `SidestepCallback`, which has all of `self.log`, it only takes what is logged to it directly. As
    other loggers it leaves the run open after a fit, for a test to follow: `logger.experiment.finish()` or the
    script's end ends it.

    Args:
        **keywords: those of `sidestep.init`.

    Raises:
        UsageError: a keyword that it does not take.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self._keywords = checked(keywords, "SidestepLogger", watches=False)
        self._held: Held | None = None
        self._epoch = -1

    @property
    @rank_zero_experiment
    def experiment(self) -> Run:
        """The run; begun when first asked for."""
        return self._run()

    @property
    def name(self) -> str:
        """Project."""
        return str(self._keywords.get("project") or self.experiment.project)

    @property
    def version(self) -> str:
        """Id of the run."""
        return str(self.experiment.id)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Take settings into the run's."""
        run = self._run()
        settings: Any = vars(params) if isinstance(params, Namespace) else params
        run.guard(lambda: run.config.update(settings))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record named numbers."""
        run = self._run()
        epoch = metrics.get("epoch")  # which Lightning puts beside what self.log was given
        if epoch is not None and run in _followed:
            return
        if epoch is not None and int(epoch) != self._epoch:
            self._epoch = int(epoch)
            run.epoch(self._epoch + 1)
        theirs = {"epoch", *_followed.get(run, ())}
        values = {name: value for name, value in metrics.items() if name not in theirs}
        run.guard(lambda: _log(run, values, "train", step=step))

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Record a checkpoint's size."""
        run = self._run()
        path = Path(getattr(checkpoint_callback, "last_model_path", "") or checkpoint_callback.best_model_path)
        if run not in _followed and path.name and path.exists():
            run.guard(lambda: mark_checkpoint(run, path))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run where the fit has failed."""
        if self._held is not None and self._held.is_ours and status == "failed":
            self._held.run.finish("failed")

    def _run(self) -> Run:
        if self._held is None:
            self._held = hold(lambda: init(**self._keywords))
        return self._held.run


def _log(
    run: Run, values: Mapping[str, Any], split: str, *, step: int | None = None, epoch: float | None = None
) -> None:
    if values:
        run.log(tagged(values, split), step=step, split=None, epoch=epoch)


def _of_batch(loop: Any) -> Mapping[str, Any]:
    return loop._results.metrics(on_step=True)["log"]  # noqa: SLF001 - see above


def _paths(checkpoint: Any) -> Iterator[Path]:
    best, last = getattr(checkpoint, "best_model_path", ""), getattr(checkpoint, "last_model_path", "")
    for path in (best, last, *getattr(checkpoint, "best_k_models", ())):
        if path:
            yield Path(path).resolve()
