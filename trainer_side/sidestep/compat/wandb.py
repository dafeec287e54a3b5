"""`import sidestep.compat.wandb as wandb`: wandb's calls, recorded by sidestep. Nothing goes to any service.

Known are `init`, `log`, `watch`, `config`, `summary`, `run`, `finish`, `define_metric`, `alert`, `save`, `login`,
`Image`, `Histogram`; whatever else is asked for is said once, may be called, and does nothing. Names are kept as
they are; nested mappings become `outer/inner`.
"""

# ruff: noqa: ARG001, ARG002 - the signatures are wandb's

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

import sidestep
from sidestep.adapters import hold
from sidestep.compat.values import AlertLevel, Config, Histogram, Ignored, Image, mapping
from sidestep.complaints import Complaints
from sidestep.start import active_run
from sidestep.start import init as begin

_MODES: Final = {None: None, "online": "on", "shared": "on", "offline": "offline", "disabled": "off"}
_RESUMES: Final = {"never": "never", "must": "must"}
#: Arguments of wandb's `init` that change nothing here.
_NEEDLESS: Final = frozenset(
    {
        "allow_val_change",
        "anonymous",
        "config_exclude_keys",
        "config_include_keys",
        "entity",
        "force",
        "fork_from",
        "job_type",
        "monitor_gym",
        "resume_from",
        "save_code",
        "settings",
        "sync_tensorboard",
        "tensorboard",
    }
)
_complaints = Complaints(strict=False)
_current: Run | None = None


class Run:
    """A run as wandb's, made by `init`."""

    def __init__(self, begun: Any) -> None:
        self._held = begun
        self._run = begun.run
        self._next_step = 0
        self._hook: Any = None
        self.config = Config(self._run.config)
        self.summary: dict[str, Any] = {}
        self.id, self.name, self.project = self._run.id, self._run.name, self._run.project

    def records_into(self, run: Any) -> bool:
        """Whether it is this run of sidestep's."""
        return self._run is run

    @property
    def step(self) -> int:
        """The step that is next logged to."""
        return self._next_step

    def log(
        self, data: Mapping[str, Any], step: int | None = None, commit: bool | None = None, sync: Any = None
    ) -> None:
        """Record numbers, texts, images, histograms. A call is a step unless `step` or `commit` say otherwise."""
        self._run.guard(lambda: self._log(data, step))
        if commit or (commit is None and step is None):
            self._next_step += 1

    def watch(
        self,
        models: Any,
        criterion: Any = None,
        log: str | None = "gradients",
        log_freq: int = 1000,
        *_: Any,
        **__: Any,
    ) -> None:
        """Watch a model from its optimizer's first step on, every `log_freq`-th."""
        self._run.guard(lambda: self._watch(models, log_freq))

    def define_metric(self, name: str, *_: Any, **__: Any) -> None:
        """Nothing to do: minimum, maximum, mean and last of every metric are kept. The axis stays the step."""

    def alert(self, title: str, text: str, level: Any = None, wait_duration: Any = None) -> None:
        """Record an alert in the run's events."""
        self._run.mark("alert", title=title, text=text, level=str(level or AlertLevel.INFO))

    def save(self, glob_str: Any = None, *_: Any, **__: Any) -> None:
        """Record that a file is worth keeping; it stays where it is."""
        self._run.mark("save", path=str(glob_str))

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        """End the run, if it was begun here."""
        if self.summary:
            self._run.mark("summary", values=self.summary)
        if exit_code and self._held.is_ours:
            self._run.finish("failed")
        self._held.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._run.note_failure(error)
        self.finish()

    def __getattr__(self, name: str) -> Ignored:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unknown(f"run.{name}")

    def _log(self, data: Mapping[str, Any], step: int | None) -> None:
        if step is not None:
            self._next_step = int(step)
        numbers: dict[str, Any] = {}
        for name, value in _flat(data):
            if value is None or isinstance(value, Ignored):
                continue
            if isinstance(value, str):
                self._run.text(name, value, step=self._next_step)
            elif isinstance(value, Image | Histogram):
                value.record(self._run, name, self._next_step)
            elif hasattr(value, "savefig"):
                Image(value).record(self._run, name, self._next_step)
            else:
                numbers[name] = value
        if numbers:
            self._run.log(numbers, step=self._next_step, split=None)
            self.summary.update({name: value for name, value in numbers.items() if isinstance(value, int | float)})

    def _watch(self, models: Any, every: int) -> None:
        from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: PLC0415 - who has a model has torch

        model = models[0] if isinstance(models, list | tuple) else models
        ours = {id(parameter) for parameter in model.parameters()}

        def first(optimizer: Any, *_: Any) -> None:
            groups = optimizer.param_groups
            if self._hook is not None and any(id(entry) in ours for group in groups for entry in group["params"]):
                self._hook.remove()
                self._hook = None
                self._run.guard(lambda: sidestep.watch(model, optimizer, every=every) and None)

        self._hook = register_optimizer_step_pre_hook(first)


def init(
    project: str | None = None,
    *,
    name: str | None = None,
    id: str | None = None,  # noqa: A002 - as wandb has them
    group: str | None = None,
    tags: Any = None,
    notes: str | None = None,
    config: Any = None,
    dir: Any = None,  # noqa: A002
    mode: str | None = None,
    resume: bool | str | None = None,
    reinit: bool | str | None = None,
    **others: Any,
) -> Run:
    """Begin a run, or take the one of this process; with `reinit` one that is open is ended first.

    Raises:
        ConfigError, UsageError: an argument that cannot be meant.
    """
    global _current  # noqa: PLW0603 - wandb has one run a process
    for other in others.keys() - _NEEDLESS:
        _unknown(f"init({other}=…)")
    if reinit and _current is not None:
        _current.finish()
    held = hold(
        lambda: begin(
            project,
            name=name,
            id=id,
            group=group,
            tags=tags or (),
            notes=notes,
            config=mapping(config),
            dir=dir,
            mode=_MODES.get(mode, mode),
            resume=_RESUMES.get(str(resume), "auto"),
        )
    )
    if _current is None or not _current.records_into(held.run):
        _current = Run(held)
    return _current


def log(data: Mapping[str, Any], step: int | None = None, commit: bool | None = None, sync: Any = None) -> None:
    """Record into the run of `init`."""
    _run("log").log(data, step, commit)


def watch(models: Any, *args: Any, **kwargs: Any) -> None:
    """Watch a model from its optimizer's first step on."""
    _run("watch").watch(models, *args, **kwargs)


def define_metric(name: str, *_: Any, **__: Any) -> None:
    """Nothing to do."""


def alert(title: str, text: str, level: Any = None, wait_duration: Any = None) -> None:
    """Record an alert in the run's events."""
    _run("alert").alert(title, text, level)


def save(glob_str: Any = None, *_: Any, **__: Any) -> None:
    """Record that a file is worth keeping."""
    _run("save").save(glob_str)


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """End the run."""
    global _current  # noqa: PLW0603 - see init
    if _current is not None:
        _current.finish(exit_code)
        _current = None


def login(*_: Any, **__: Any) -> bool:
    """Nothing to do: there is no service."""
    return True


def __getattr__(name: str) -> Any:
    if name == "run":
        return _current
    if name in ("config", "summary") and _current is not None:
        return getattr(_current, name)
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _unknown(name)


def _run(call: str) -> Any:
    """The run, or what does nothing where there is none."""
    if _current is not None:
        return _current
    _complaints.add("order", call, f"wandb.{call}() before wandb.init() records nothing")
    return Ignored()


def _unknown(name: str) -> Ignored:
    run = active_run()
    complain = _complaints.add if run is None else run.complain
    complain("unsupported", name, f"wandb.{name} is not recorded by sidestep; it does nothing")
    return Ignored()


def _flat(data: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{outer}{name}/")
        elif isinstance(value, list | tuple) and value and all(isinstance(entry, Image) for entry in value):
            yield from ((f"{outer}{name}/{number}", entry) for number, entry in enumerate(value))
        else:
            yield f"{outer}{name}", value
