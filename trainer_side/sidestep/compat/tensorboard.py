"""`SummaryWriter`: the calls of `torch.utils.tensorboard.SummaryWriter`, recorded by sidestep. Writes no file."""

# ruff: noqa: ARG002, SLF001 - the signatures are torch's; writers of one run know each other

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sidestep.adapters import checked, hold
from sidestep.start import init

_open: Final[list[SummaryWriter]] = []


class SummaryWriter:
    """Records into the run of this process, which the first writer begins and the last one's `close` ends.

    Tags are kept as they are. A further writer with a `log_dir` of its own puts that folder's name before its tags,
    so that two writers for training and validation stay apart. Without `global_step` a value belongs to step 0, or
    to the step of a run that is watched.

    Args:
        log_dir: name of the run; nothing is written there.
        comment: added to the name where there is no `log_dir`.
        purge_step, max_queue, flush_secs, filename_suffix: taken and not needed.
        **keywords: those of `sidestep.init`.

    Raises:
        UsageError: a keyword that it does not take.
    """

    def __init__(  # noqa: PLR0917 - as torch has them
        self,
        log_dir: str | os.PathLike[str] | None = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: int = 120,
        filename_suffix: str = "",
        **keywords: Any,
    ) -> None:
        known: dict[str, Any] = {
            "name": str(log_dir or comment) or None,
            **checked(keywords, "SummaryWriter", watches=False),
        }
        self._held = hold(lambda: init(**known))
        self.log_dir = str(log_dir or self._held.run.name)
        is_apart = bool(_open) and self._held.run is _open[0]._held.run and _open[0].log_dir != self.log_dir
        self._prefix = f"{Path(self.log_dir).name}/" if is_apart else ""
        _open.append(self)

    def get_logdir(self) -> str:
        """The name that was given as `log_dir`."""
        return self.log_dir

    def add_scalar(
        self, tag: str, scalar_value: Any, global_step: Any = None, walltime: float | None = None, *_: Any, **__: Any
    ) -> None:
        """Record a number."""
        self._log(lambda: {tag: scalar_value}, global_step, walltime)

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, Any],
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Record numbers under `main_tag/`."""
        self._log(lambda: {f"{main_tag}/{tag}": tag_scalar_dict[tag] for tag in tag_scalar_dict}, global_step, walltime)

    def add_hparams(
        self,
        hparam_dict: Mapping[str, Any],
        metric_dict: Mapping[str, Any],
        hparam_domain_discrete: Any = None,
        run_name: str | None = None,
        global_step: Any = None,
    ) -> None:
        """Take settings into the run's, and record numbers."""
        run = self._held.run
        run.guard(lambda: run.config.update(hparam_dict))
        self._log(lambda: metric_dict, global_step, None)

    def add_tensor(self, tag: str, tensor: Any, global_step: Any = None, walltime: float | None = None) -> None:
        """Record a small tensor."""
        self._held.run.tensor(f"{self._prefix}{tag}", tensor, step=self._step(global_step))

    def add_text(self, tag: str, text_string: str, global_step: Any = None, walltime: float | None = None) -> None:
        """Record a text."""
        self._held.run.text(f"{self._prefix}{tag}", text_string, step=self._step(global_step))

    def add_histogram(  # noqa: PLR0917 - as torch has them
        self,
        tag: str,
        values: Any,
        global_step: Any = None,
        bins: Any = "tensorflow",
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """Record a histogram, of 64 bins where none are asked for."""
        bins = 64 if isinstance(bins, str) and bins == "tensorflow" else bins
        self._held.run.histogram(f"{self._prefix}{tag}", values, bins=bins, step=self._step(global_step))

    def add_histogram_raw(  # noqa: PLR0917 - as torch has them
        self,
        tag: str,
        min: float,  # noqa: A002 - as torch has them
        max: float,  # noqa: A002
        num: int,
        sum: float,  # noqa: A002
        sum_squares: float,
        bucket_limits: Sequence[float],
        bucket_counts: Sequence[float],
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Record a histogram that was counted already."""
        run, edges = self._held.run, [min, *bucket_limits]
        run.histogram(f"{self._prefix}{tag}", counts=list(bucket_counts), edges=edges, step=self._step(global_step))

    def add_image(
        self,
        tag: str,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
    ) -> None:
        """Record an image; several (`N` in `dataformats`) side by side."""
        self._image(tag, global_step, lambda: _arranged(img_tensor, dataformats))

    def add_images(
        self,
        tag: str,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "NCHW",
    ) -> None:
        """Record images side by side."""
        self._image(tag, global_step, lambda: _arranged(img_tensor, dataformats))

    def add_figure(
        self, tag: str, figure: Any, global_step: Any = None, close: bool = True, walltime: float | None = None
    ) -> None:
        """Record matplotlib figures as images."""
        figures: list[Any] = figure if isinstance(figure, list) else [figure]
        for number, one in enumerate(figures):
            self._image(f"{tag}/{number}" if len(figures) > 1 else tag, global_step, lambda one=one: drawn(one))
            pyplot = sys.modules.get("matplotlib.pyplot")
            if close and pyplot is not None and isinstance(one, pyplot.Figure):
                pyplot.close(one)

    def add_embedding(self, *_: Any, **__: Any) -> None:
        """Refused: it is said once."""
        message = "SummaryWriter.add_embedding: sidestep has no projector; run.tensor(name, rows) keeps a small matrix"
        self._held.run.guard(lambda: self._held.run.complain("unsupported", "add_embedding", message))

    def flush(self) -> None:
        """Nothing to do: what is logged is on its way."""

    def close(self) -> None:
        """End the run, if a writer began it and none is open any more."""
        if self not in _open:
            return
        _open.remove(self)
        others = [writer for writer in _open if writer._held.run is self._held.run]
        if self._held.is_ours and others:
            others[0]._held = self._held
        elif not others:
            self._held.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._held.run.note_failure(error)
        self.close()

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("add_"):
            raise AttributeError(f"SummaryWriter has no attribute {name!r}")

        def nothing(*_: Any, **__: Any) -> None:
            run, message = self._held.run, f"SummaryWriter.{name} is not recorded by sidestep"
            run.guard(lambda: run.complain("unsupported", name, message))

        return nothing

    def _step(self, step: Any) -> Any:
        return max(0, self._held.run.step) if step is None else step

    def _log(self, values: Callable[[], Mapping[str, Any]], step: Any, walltime: float | None) -> None:
        run, step = self._held.run, self._step(step)

        def record() -> None:
            tags = {f"{self._prefix}{tag}": value for tag, value in values().items()}
            if walltime is None:
                run.log(tags, step=step, split=None)
                return
            numbers = [float(value) for value in tags.values()]
            run.record(tuple(tags), numbers, step=int(step), t_ns=int(walltime * 1e9))

        run.guard(record)

    def _image(self, tag: str, step: Any, image: Callable[[], Any]) -> None:
        run = self._held.run
        run.guard(lambda: run.image(f"{self._prefix}{tag}", image(), step=self._step(step)))


def drawn(figure: Any) -> bytes:
    """A figure with `savefig`, as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _arranged(images: Any, axes: str) -> Any:
    """Images of the named axes as one of (H, W, C), at most eight in a row."""
    import numpy as np  # noqa: PLC0415 - whoever has an image has numpy

    array = images.detach().cpu().numpy() if hasattr(images, "detach") else np.asarray(images)
    axes = axes.upper()
    if sorted(axes) not in (sorted("HW"), sorted("HWC"), sorted("NHW"), sorted("NHWC")) or array.ndim != len(axes):
        raise ValueError(f"an image of shape {array.shape} has no axes {axes!r}")
    array = array.transpose([axes.index(axis) for axis in "NHWC" if axis in axes])
    if "N" not in axes:
        return array
    array = array if "C" in axes else array[..., None]
    columns = min(8, len(array))
    empty = np.zeros((-len(array) % columns, *array.shape[1:]), array.dtype)
    rows = np.concatenate([array, empty]).reshape(-1, columns, *array.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
