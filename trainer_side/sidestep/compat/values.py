"""What a script has of wandb's classes: images and histograms to log, settings, and what stands for the rest."""

# ruff: noqa: ARG002 - the signatures are wandb's

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from sidestep.compat.tensorboard import drawn
from sidestep.report import LoggedConfig


class AlertLevel:
    """How grave an alert is."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


class Image:
    """An image to log: a path, array, tensor, Pillow image or matplotlib figure."""

    def __init__(self, data_or_path: Any, mode: str | None = None, caption: str | None = None, **_: Any) -> None:
        self.data = data_or_path
        self.caption = caption

    def record(self, run: Any, name: str, step: int) -> None:
        """Record it, and its caption as a text."""
        data = self.data
        if isinstance(data, str) or hasattr(data, "__fspath__"):
            from PIL import Image as Pillow  # noqa: PLC0415 - whoever names a file of an image has Pillow

            with Pillow.open(data) as opened:
                data = opened.convert("RGBA")
        run.image(name, drawn(data) if hasattr(data, "savefig") else data, step=step)
        if self.caption:
            run.text(f"{name}/caption", self.caption, step=step)


class Histogram:
    """A histogram to log: of values, or as `numpy.histogram` returns it."""

    def __init__(self, sequence: Any = None, np_histogram: Any = None, num_bins: int = 64) -> None:
        self.sequence, self.counted, self.bins = sequence, np_histogram, num_bins

    def record(self, run: Any, name: str, step: int) -> None:
        """Record it."""
        if self.counted is None:
            run.histogram(name, self.sequence, bins=self.bins, step=step)
        else:
            run.histogram(name, counts=self.counted[0], edges=self.counted[1], step=step)


class Config:
    """Settings by attribute and by item; a change is recorded."""

    def __init__(self, entries: LoggedConfig) -> None:
        object.__setattr__(self, "_entries", entries)

    def update(self, d: Any = None, allow_val_change: bool | None = None, **more: Any) -> None:
        """Change several."""
        self._entries.update(mapping(d), **more)

    def setdefaults(self, d: Any) -> None:
        """Set those that there are not."""
        self.update({name: value for name, value in mapping(d).items() if name not in self._entries})

    def as_dict(self) -> dict[str, Any]:
        """All of them."""
        return dict(self._entries)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        entries: LoggedConfig = object.__getattribute__(self, "_entries")
        if name in ("get", "keys", "values", "items"):
            return getattr(entries, name)
        try:
            return entries[name]
        except KeyError:
            raise AttributeError(f"config has no {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._entries[name] = value

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._entries[name] = value

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Ignored:
    """What stands for something that sidestep has not: anything may be done with it, and nothing happens."""

    def __call__(self, *_: Any, **__: Any) -> Self:
        """Itself again."""
        return self

    def __getattr__(self, name: str) -> Self:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


def mapping(settings: Any) -> Any:
    """Settings as a mapping: one, or the attributes of parsed arguments or a dataclass, or nothing for None."""
    if settings is None or isinstance(settings, Mapping) or not hasattr(settings, "__dict__"):
        return settings or {}
    return dict(vars(settings))
