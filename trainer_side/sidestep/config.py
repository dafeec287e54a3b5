"""What a run is to be: the arguments of `init`, else the environment, else defaults. Reads no file but a
profile of the user's."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import socket
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from sidestep.judged import read_profile, read_rules
from sidestep_schemas.diagnostics import Diagnostics
from sidestep_schemas.errors import ConfigError
from sidestep_schemas.keys import KEY_VARIABLE, ClientKey, read_client_key
from sidestep_schemas.layout import COLLECTOR_VARIABLE, DEFAULT_PROJECT, data_dir

Mode = Literal["on", "offline", "off"]
Resume = Literal["auto", "never", "must"]

MODE_VARIABLE: Final = "SIDESTEP_MODE"
PROJECT_VARIABLE: Final = "SIDESTEP_PROJECT"
RUN_VARIABLE: Final = "SIDESTEP_RUN_ID"
NAME_VARIABLE: Final = "SIDESTEP_NAME"
GROUP_VARIABLE: Final = "SIDESTEP_GROUP"
STRICT_VARIABLE: Final = "SIDESTEP_STRICT"
SYSTEM_VARIABLE: Final = "SIDESTEP_SYSTEM_SECONDS"
STACKS_VARIABLE: Final = "SIDESTEP_STACKS_ON_HANG"
HANG_VARIABLE: Final = "SIDESTEP_HANG_SECONDS"
JOURNAL_VARIABLE: Final = "SIDESTEP_JOURNAL_MB"
SHARED_VARIABLE: Final = "SIDESTEP_SHARED_MEMORY"

_RANK_VARIABLES: Final = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_WORLD_VARIABLES: Final = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LOCAL_VARIABLES: Final = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_RESTART_VARIABLES: Final = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
#: Seconds between samples of the machine.
_SYSTEM_SECONDS: Final = 10.0
#: No step in less is a hang.
_HANG_SECONDS: Final = 60.0
#: What the journals of a run may leave on the disk of a host.
_JOURNAL_MB: Final = 2048.0
_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"  # without l, o, 0, 1
_NAMESPACE: Final = uuid.UUID("5a9d7d1c-6f4c-4c3a-9b53-2f1d4f6b8e10")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that is settled before the first record.

    Attributes:
        uid: 16 bytes that follow from project and id alone, so ranks and resumes agree without asking.
        profile, profile_text: name of a family of metrics, and its text where it is a file of the user's.
        rules: rules that are set otherwise, by name.
        collector: address; None for the one that belongs to `dir`.
        key: shown to that collector; None for the one that the collector of `dir` gives to its neighbours, if any.
        attempt: which start of this run, as far as the environment tells; the collector settles it.
        system_seconds: from one sample of the machine to the next; 0 takes none.
        stacks_on_hang: whether all stacks are recorded when no step comes for long.
        hang_seconds: how long that is at least.
        journal_bytes: what the journal of this process may leave on disk: its share of what a run may on a host.
        in_shared_memory: whether segments in use lie in shared memory where there is some.
        diagnostics: which of them, and how often.
    """

    project: str
    id: str
    name: str
    group: str
    tags: tuple[str, ...]
    notes: str
    profile: str
    profile_text: str
    rules: Mapping[str, Any]
    dir: Path
    collector: str | None
    key: ClientKey | None
    mode: Mode
    resume: Resume
    rank: int
    world_size: int
    attempt: int
    strict: bool
    system_seconds: float
    stacks_on_hang: bool
    hang_seconds: float
    journal_bytes: int
    in_shared_memory: bool
    diagnostics: Diagnostics

    @property
    def uid(self) -> bytes:
        """128-bit identity of the run."""
        return uuid.uuid5(_NAMESPACE, f"{self.project}\0{self.id}").bytes


def resolve(
    *,
    project: str | None,
    name: str | None,
    id: str | None,  # noqa: A002 - the public name
    group: str | None,
    tags: tuple[str, ...],
    notes: str | None,
    dir: str | os.PathLike[str] | None,  # noqa: A002 - the public name
    collector: str | None,
    mode: str | None,
    resume: str,
    rank: int | None,
    world_size: int | None,
    profile: str | os.PathLike[str] | None,
    rules: Mapping[str, Any] | None = None,
    system_seconds: float | None = None,
    stacks_on_hang: bool | None = None,
    diagnostics: Mapping[str, Any] | None = None,
    key: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RunConfig:
    """Settle what a run is.

    Raises:
        ConfigError: a value that cannot be meant, with all that can.
    """
    wanted = Diagnostics.read(diagnostics)
    mode = _choice("mode", mode or environ.get(MODE_VARIABLE) or "on", ("on", "offline", "off"))
    mode = mode if wanted.enabled else "off"
    resume = _choice("resume", resume, ("auto", "never", "must"))
    ranks = _first_int(environ, _RANK_VARIABLES, 0) if rank is None else rank
    world = _first_int(environ, _WORLD_VARIABLES, 1) if world_size is None else world_size
    if not 0 <= ranks < 2**32 or world < 1:
        raise ConfigError(f"rank={ranks}, world_size={world}: rank counts from 0, world_size from 1")
    profile_name, profile_text = read_profile(profile, environ)
    run_id = id or environ.get(RUN_VARIABLE) or _job_id(environ) or new_id()
    return RunConfig(
        project=project or environ.get(PROJECT_VARIABLE) or DEFAULT_PROJECT,
        id=run_id,
        name=name or environ.get(NAME_VARIABLE) or run_id,
        group=group or environ.get(GROUP_VARIABLE) or "",
        tags=tags,
        notes=notes or "",
        profile=profile_name,
        profile_text=profile_text,
        rules=read_rules(rules),
        dir=data_dir(dir),
        collector=collector or environ.get(COLLECTOR_VARIABLE) or None,
        key=read_client_key(key or environ[KEY_VARIABLE]) if key or environ.get(KEY_VARIABLE) else None,
        mode=cast("Mode", mode),
        resume=cast("Resume", resume),
        rank=ranks,
        world_size=max(world, ranks + 1),
        attempt=_first_int(environ, _RESTART_VARIABLES, 0),
        strict=_is_set(environ, STRICT_VARIABLE),
        system_seconds=_seconds("system_seconds", system_seconds, SYSTEM_VARIABLE, _SYSTEM_SECONDS, environ),
        stacks_on_hang=_is_set(environ, STACKS_VARIABLE) if stacks_on_hang is None else stacks_on_hang,
        hang_seconds=_seconds("hang_seconds", None, HANG_VARIABLE, _HANG_SECONDS, environ),
        journal_bytes=_journal_bytes(environ),
        in_shared_memory=environ.get(SHARED_VARIABLE, "1") not in ("", "0"),
        diagnostics=wanted,
    )


def new_id() -> str:
    """Eight characters that no other run has, to be typed by people."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


def _job_id(environ: Mapping[str, str]) -> str | None:
    """An id that all ranks of a job, and its restarts, come to by themselves; None outside of jobs."""
    if "TORCHELASTIC_RUN_ID" in environ:
        if environ["TORCHELASTIC_RUN_ID"] != "none":
            return f"torchrun-{environ['TORCHELASTIC_RUN_ID']}"
        # torchrun without --rdzv-id: its agent is the parent of all ranks on this host
        place = f"{socket.gethostname()} {os.getppid()} {_started(os.getppid())} {environ.get('MASTER_PORT', '')}"
        if environ.get("LOCAL_WORLD_SIZE") != environ.get("WORLD_SIZE"):
            place = f"{environ.get('MASTER_ADDR', '')} {environ.get('MASTER_PORT', '')}"
        return f"torchrun-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    if "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" in environ:
        return f"slurm-{environ['SLURM_JOB_ID']}-{environ['SLURM_STEP_ID']}"
    if "SLURM_JOB_ID" in environ and environ.get("ENVIRONMENT") == "BATCH":
        # A batch script that starts python without srun: its commands tell one run of the job from another.
        command = "\0".join((str(Path.cwd()), *sys.argv))
        return f"slurm-{environ['SLURM_JOB_ID']}-{hashlib.sha256(command.encode()).hexdigest()[:8]}"
    return None


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _seconds(name: str, given: float | None, variable: str, default: float, environ: Mapping[str, str]) -> float:
    if given is None and not environ.get(variable):
        return default
    source = f"{name}={given!r}" if given is not None else f"{variable}={environ[variable]!r}"
    try:
        seconds = float(environ[variable] if given is None else given)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{source}: it is a number of seconds, or 0 for never")
    return seconds


def _journal_bytes(environ: Mapping[str, str]) -> int:
    given = environ.get(JOURNAL_VARIABLE) or str(_JOURNAL_MB)
    try:
        megabytes = float(given)
    except ValueError:
        megabytes = math.nan
    if not 16 <= megabytes < math.inf:
        raise ConfigError(f"{JOURNAL_VARIABLE}={given!r}: it is a number of megabytes, 16 at least")
    return int(megabytes * (1 << 20)) // max(1, _first_int(environ, _LOCAL_VARIABLES, 1))


def _is_set(environ: Mapping[str, str], variable: str) -> bool:
    return environ.get(variable, "") not in ("", "0")


def _choice(what: str, given: str, known: tuple[str, ...]) -> str:
    if given not in known:
        raise ConfigError(f"{what}={given!r}: it is one of {', '.join(known)}")
    return given


def _first_int(environ: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return default
