"""`sidestep.init`: settle what the run is, open its journal, find or start a collector. One run a process."""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import sidestep
from sidestep import launch
from sidestep.config import RunConfig, resolve
from sidestep.ending import SignalTraces, notice_exits
from sidestep.errors import UsageError
from sidestep.hanging import StackWatch
from sidestep.journal import Journal, stream_folder
from sidestep.machine import Machine
from sidestep.push import Pusher
from sidestep.records import Identity
from sidestep.run import Run
from sidestep_schemas.host import boot_id, is_network_folder, oom_counters, process_space, process_start
from sidestep_schemas.layout import endpoints, journal_roots, run_dir

DIAGNOSTICS_VARIABLE: Final = "DIAGNOSTICS_DIR"

_active: Run | None = None
_signals: SignalTraces | None = None
_active_lock = threading.Lock()
_hooks_installed = False


def init(
    project: str | None = None,
    *,
    name: str | None = None,
    id: str | None = None,  # noqa: A002 - the name people know
    group: str | None = None,
    tags: Sequence[str] = (),
    notes: str | None = None,
    config: Mapping[str, Any] | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 - the name people know
    collector: str | None = None,
    mode: str | None = None,
    resume: str = "auto",
    rank: int | None = None,
    world_size: int | None = None,
    profile: str | os.PathLike[str] | None = None,
    rules: Mapping[str, Any] | None = None,
    system_seconds: float | None = None,
    stacks_on_hang: bool | None = None,
    diagnostics: Mapping[str, Any] | None = None,
    key: str | os.PathLike[str] | None = None,
) -> Run:
    """Begin a run, or return the one that this process has already.

    Never waits for the collector: what is logged before it listens is in the journal.

    Args:
        project: what the run belongs to; default `SIDESTEP_PROJECT`, else "default".
        name: for people; default the id.
        id: identity of the run in its project. The same id again is a new attempt of the same run. Default
            `SIDESTEP_RUN_ID`, else what torchrun or Slurm tell, else new.
        group: runs that belong together: a sweep.
        tags: words to find it by.
        notes: free text.
        config: the script's own settings: a mapping, a dataclass' dict, parsed arguments.
        dir: data folder; default `SIDESTEP_DIR`, else `sidestep-data`.
        collector: address; default `SIDESTEP_COLLECTOR`, else the collector of `dir`, which is started in the
            background where none runs.
        mode: "on"; "offline" (journal only, `sidestep sync` ships it); "off" (every call does nothing). Default
            `SIDESTEP_MODE`, else "on".
        resume: "auto"; "never" (an id that is known here is an error); "must" (one that is not is an error).
        rank: default from torchrun, Slurm or MPI, else 0.
        world_size: number of ranks; default likewise, else 1.
        profile: name of a family of metrics (`sidestep profile list`), or path to a YAML file of your own; default
            `SIDESTEP_PROFILE`.
        rules: rules that are set otherwise: a name to False (off), or to what is different of it:
            `{"exploding_block": {"above": 1e4}}`.
        system_seconds: from one sample of the machine (processors, memory, disks, network, GPU) to the next; 0 takes
            none. Default `SIDESTEP_SYSTEM_SECONDS`, else 10.
        key: file, or its text, that `sidestep keys new` made where the collector runs; for a collector that asks for
            one. Default `SIDESTEP_KEY`.
        stacks_on_hang: record the Python stacks of all threads, as the text `system/stacks`, when no step has come for
            ten times what nearly all took, and for `SIDESTEP_HANG_SECONDS` (60). Default `SIDESTEP_STACKS_ON_HANG`,
            else not.
        diagnostics: which diagnostics are wanted and how often, by name: docs/diagnostics.md. `run.diagnostics` has
            them, with what holds where nothing is said.

    Raises:
        ConfigError, UsageError, AddressError: an argument that cannot be meant.
    """
    global _active  # noqa: PLW0603 - one run a process is what it is about
    with _active_lock:
        if _active is not None and _active.is_live:
            return _active
        settings = resolve(
            project=project,
            name=name,
            id=id,
            group=group,
            tags=_tags(tags),
            notes=notes,
            dir=dir,
            collector=collector,
            mode=mode,
            resume=resume,
            rank=rank,
            world_size=world_size,
            profile=profile,
            rules=rules,
            system_seconds=system_seconds,
            stacks_on_hang=stacks_on_hang,
            diagnostics=diagnostics,
            key=key,
        )
        if settings.collector is not None:
            endpoints(settings.collector)
        if settings.mode == "off":
            _active = Run(settings, None, None, config)
            return _active
        _check_resume(settings)
        _install_hooks()
        _active = _start(settings, config)
        return _active


def active_run() -> Run | None:
    """The run of this process, where it has one."""
    return _active


def _start(settings: RunConfig, config: Mapping[str, Any] | None) -> Run:
    near, local = journal_roots(settings.dir)
    _make_folder(settings)
    root = local if is_network_folder(settings.dir) else near
    attempt = _next_attempt(settings, root)
    identity = Identity(settings.uid, settings.rank, attempt, secrets.token_bytes(8), boot_id())
    journal = Journal(
        stream_folder(root, identity),
        identity,
        in_shared_memory=settings.in_shared_memory,
        bytes_max=settings.journal_bytes,
    )
    address = None if settings.mode == "offline" else settings.collector or launch.ensure(settings.dir)
    machine = Machine(settings.system_seconds)
    stacks = StackWatch(settings.hang_seconds if settings.stacks_on_hang else 0.0)

    def tick() -> None:
        machine.tick()
        stacks.tick()

    pusher = Pusher(journal, address, tick, key=settings.key or launch.local_key(settings.dir, address))
    run = Run(settings, journal, pusher, config, machine)
    run.mark(
        "start",
        project=settings.project,
        id=settings.id,
        name=settings.name,
        group=settings.group,
        tags=settings.tags,
        notes=settings.notes,
        config=run.config,
        profile=settings.profile,
        **_judged_by(settings),
        **_named_folder(),
        world_size=settings.world_size,
        host=socket.gethostname(),
        pid=os.getpid(),
        boot=identity.boot.hex(),
        process_space=process_space(),
        process_start=process_start(os.getpid()),
        oom_counters=oom_counters(),
        started_ns=time.time_ns(),
        version=sidestep.__version__,
        python=platform.python_version(),
        command=sys.argv[:64],
    )
    machine.begin(run)
    run.at_finish(machine.end)
    stacks.begin(run)
    run.at_finish(stacks.end)
    _listen_for_signals(run, journal)
    pusher.start()
    return run


def _judged_by(settings: RunConfig) -> dict[str, Any]:
    said = {
        "profile_text": settings.profile_text,
        "rules": dict(settings.rules),
        "diagnostics": settings.diagnostics.said(),
    }
    return {name: value for name, value in said.items() if value}


def _named_folder() -> dict[str, Any]:
    """The folder that the user wants lines of epochs in, besides the run's own: the collector writes them."""
    named = os.environ.get(DIAGNOSTICS_VARIABLE)
    return {"diagnostics_dir": str(Path(named).expanduser().absolute())} if named else {}


def _next_attempt(settings: RunConfig, root: Path) -> int:
    """The number to propose: one more than any start of this rank that left a trace here.

    The collector settles it. But what a killed start left in its journal may reach the collector after this one
    has begun, and must not be taken for the later of the two.
    """
    rank = f"_rank_{settings.rank}" if settings.rank else ""
    traces = (
        (root / settings.uid.hex(), rf"r{settings.rank}-a(\d+)-.*"),
        (run_dir(settings.dir, settings.project, settings.id) / "tensorboard", rf"attempt_(\d+){rank}"),
    )
    known = [settings.attempt - 1]
    for folder, pattern in traces:
        with contextlib.suppress(OSError):
            known += [int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(pattern, path.name))]
    return max(known) + 1


def _make_folder(settings: RunConfig) -> None:
    # An unwritable folder does not end a training: the journal goes to memory and says so.
    with contextlib.suppress(OSError):
        settings.dir.mkdir(parents=True, exist_ok=True)


def _check_resume(settings: RunConfig) -> None:
    known = run_dir(settings.dir, settings.project, settings.id).exists()
    if settings.resume == "never" and known:
        raise UsageError(f"run {settings.id!r} exists in project {settings.project!r}, and resume='never' forbids it")
    if settings.resume == "must" and not known:
        raise UsageError(
            f"there is no run {settings.id!r} in project {settings.project!r} under {settings.dir}, and "
            "resume='must' asks for one"
        )


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    return (tags,) if isinstance(tags, str) else tuple(str(tag) for tag in tags)


def _install_hooks() -> None:
    global _hooks_installed  # noqa: PLW0603 - once a process
    if _hooks_installed:
        return
    _hooks_installed = True
    atexit.register(_finish_active)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_parent)
    previous = sys.excepthook

    def note_and_go_on(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if _active is not None and not issubclass(kind, SystemExit):
            _active.note_failure(error)
        previous(kind, error, trace)

    sys.excepthook = note_and_go_on
    notice_exits(_note_exit)


def _note_exit(error: SystemExit) -> None:
    if _active is not None:
        _active.note_failure(error)


def _listen_for_signals(run: Run, journal: Journal) -> None:
    global _signals  # noqa: PLW0603 - one run a process
    if journal.notes_folder is not None:
        _signals = SignalTraces(journal.notes_folder)
        _signals.begin()
        run.at_finish(_signals.end)


def _finish_active() -> None:
    if _active is not None:
        _active.finish()


def _leave_to_parent() -> None:
    # An inherited memory map would write over the parent's records, and an inherited socket loses what it takes.
    if _signals is not None:
        _signals.end()
    if _active is not None:
        _active.turn_off()
