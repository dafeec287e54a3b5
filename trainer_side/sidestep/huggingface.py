"""Hugging Face: `SidestepCallback` follows a `transformers.Trainer`.

Trainer(..., callbacks=[SidestepCallback(project="glue")])
"""

# ruff: noqa: ARG002 - the signatures are transformers'

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sidestep
from sidestep.adapters import Held, catch_up, checked, epoch_at, hold, mark_checkpoint, tagged, tell_of_checkpoints
from sidestep.errors import MissingExtraError

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
else:
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        raise MissingExtraError("sidestep.huggingface needs transformers: pip install transformers") from error

#: Other names go under `train/` as they are: at the end the Trainer logs `train_loss`, a mean, beside the last `loss`.
_PREFIXES: Final = {"eval_": "val", "test_": "test"}


class SidestepCallback(TrainerCallback):
    """Follows a training: watches model and optimizer, and records all that the Trainer logs, its arguments and saves.

    A training is a run of its own, unless the script has begun one.

    Args:
        **keywords: those of `sidestep.watch` and `sidestep.init`.

    Raises:
        UsageError: a keyword that they do not take.
    """

    def __init__(self, **keywords: Any) -> None:
        self._keywords = checked(keywords, "SidestepCallback", watches=True)
        self._held: Held | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch."""
        place: dict[str, Any] = {"rank": args.process_index, "world_size": args.world_size, **self._keywords}
        held = self._held = hold(lambda: sidestep.watch(kwargs["model"], kwargs["optimizer"], **place))
        tell_of_checkpoints()
        catch_up(held.run, state.global_step)
        held.run.guard(lambda: held.run.config.update(args.to_dict()))
        if getattr(kwargs["model"], "config", None) is not None:
            held.run.guard(lambda: held.run.config.update(model=kwargs["model"].config.to_dict()))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin an epoch, from 1."""
        if self._held is not None:
            self._held.run.epoch(int(state.epoch or 0) + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record named numbers: of an evaluation at their place in the epoch, others at their step."""
        if self._held is None or not logs or not state.is_world_process_zero:
            return
        run = self._held.run
        values = tagged({name: value for name, value in logs.items() if name != "epoch"}, "train", _PREFIXES)
        evaluated = {tag: value for tag, value in values.items() if not tag.startswith("train/")}
        trained = {tag: value for tag, value in values.items() if tag not in evaluated}
        if trained:
            run.log(trained, step=run.step, split=None)
        if evaluated:
            run.log(evaluated, step=run.step, split=None, epoch=epoch_at(state.epoch or 0.0))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record a checkpoint's size."""
        if self._held is None or not state.is_world_process_zero:
            return
        run = self._held.run
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            run.guard(lambda: mark_checkpoint(run, folder, epoch_at(state.epoch or 0.0)))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the run with the training. One that ends in an exception is ended, as failed, with the script."""
        held, self._held = self._held, None
        if held is not None:
            held.finish()
