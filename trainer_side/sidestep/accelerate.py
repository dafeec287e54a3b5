"""Accelerate: `SidestepTracker` takes what `accelerator.log` is given.

accelerator = Accelerator(log_with=SidestepTracker(project="digits"))
accelerator.init_trackers("digits", config=vars(args))
"""

# ruff: noqa: ARG002 - the signatures are Accelerate's

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sidestep.adapters import Held, checked, hold, tagged
from sidestep.errors import MissingExtraError
from sidestep.run import Run
from sidestep.start import init

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker, on_main_process
else:
    try:
        from accelerate.tracking import GeneralTracker, on_main_process
    except ModuleNotFoundError as error:
        raise MissingExtraError("sidestep.accelerate needs accelerate: pip install accelerate") from error


class SidestepTracker(GeneralTracker):
    """Records on the main process. With `sidestep.watch` beside it, both record into one run, and ranks watch too.

    Args:
        **keywords: those of `sidestep.init`. Accelerate does not tell a tracker of one's own the project's name.

    Raises:
        UsageError: a keyword that it does not take.
    """

    name = "sidestep"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self._keywords = checked(keywords, "SidestepTracker", watches=False)
        self._held: Held | None = None

    @property
    def tracker(self) -> Run | None:
        """The run; None on other processes than the main one, and before `init_trackers`."""
        return None if self._held is None else self._held.run

    @on_main_process
    def start(self) -> None:
        """Begin the run, or take the one of this process."""
        if self._held is None:
            self._held = hold(lambda: init(**self._keywords))

    @on_main_process
    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Take settings into the run's."""
        if self._held is not None:
            run = self._held.run
            run.guard(lambda: run.config.update(values))

    @on_main_process
    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record numbers, texts, and mappings of them, by name."""
        if self._held is not None:
            run = self._held.run
            run.guard(lambda: _log(run, values, step))

    @on_main_process
    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record lists of images by name: arrays, tensors or Pillow's."""
        if self._held is not None:
            run = self._held.run
            run.guard(lambda: _log_images(run, values, step))

    @on_main_process
    def finish(self) -> None:
        """End the run, if it was begun here."""
        if self._held is not None:
            self._held.finish()


def _log(run: Run, values: Mapping[str, Any], step: int | None) -> None:
    numbers = dict(values)
    for name, value in values.items():
        if isinstance(value, str):
            run.text(name, numbers.pop(name), step=step)
        elif isinstance(value, Mapping):
            numbers.update({f"{name}/{inner}": number for inner, number in numbers.pop(name).items()})
    if numbers:
        run.log(tagged(numbers, "train"), step=step, split=None)


def _log_images(run: Run, values: Mapping[str, Any], step: int | None) -> None:
    for name, images in values.items():
        for number, image in enumerate(images):
            run.image(f"{name}/{number}", image, step=step)
