"""What a captured run is called: nothing that a user has settled in the environment is changed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final, cast

from torch import distributed

from sidestep.auto.environment import AUTO_VARIABLE, EVERY_VARIABLE
from sidestep.config import PROJECT_VARIABLE, RUN_VARIABLE
from sidestep.probes.cadence import BUDGET

#: Steps from one measurement to the next, where nothing else is asked for.
EVERY = 10

#: Names of a script's configuration, the likeliest first.
_CONFIGS: Final = ("config", "cfg", "hparams", "args")
#: Names that scripts of any project have, and folders in which scripts of any project lie.
_SCRIPTS: Final = frozenset({"main", "train"})
_FOLDERS: Final = frozenset({"src", "scripts", "bin", "tools"})


def every() -> tuple[int, float | None]:
    """Steps from one measurement to the next, and the share of the time that these may take where nobody has said."""
    given = os.environ.get(EVERY_VARIABLE, "")
    return (max(1, int(given)), None) if given.isdecimal() else (EVERY, BUDGET)


def init_arguments(parsed: Sequence[Any], environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Arguments of `sidestep.init` for this process.

    Args:
        parsed: what the script's argument parsers gave; the first is its configuration.
        environ: where a project or a run id of the user's would be.
    """
    arguments: dict[str, Any] = {}
    if not environ.get(PROJECT_VARIABLE):
        arguments["project"] = project_name()
    config = dict(vars(parsed[0])) if parsed else script_config()
    if config:
        arguments["config"] = config
    if "RANK" not in environ and distributed.is_available() and distributed.is_initialized():
        arguments |= {"rank": distributed.get_rank(), "world_size": distributed.get_world_size()}
        # Ranks that a script has spawned itself have nothing in common but the command that began it all.
        if not environ.get(RUN_VARIABLE) and "SLURM_JOB_ID" not in environ and distributed.get_world_size() > 1:
            arguments["id"] = f"job-{environ.get(AUTO_VARIABLE, '')}"
    return arguments


def script_config(main: ModuleType | None = None) -> dict[str, Any]:
    """What a script without a parser calls its configuration: a global mapping, or an object with attributes.

    Args:
        main: the script; default the one of this process.
    """
    names = vars(main if main is not None else sys.modules["__main__"])
    for name in _CONFIGS:
        given = names.get(name)
        if isinstance(given, Mapping):
            return {str(key): value for key, value in cast("Mapping[Any, Any]", given).items()}
        if isinstance(given, SimpleNamespace | argparse.Namespace) or (
            is_dataclass(given) and not isinstance(given, type)
        ):
            return dict(vars(given))
    return {}


def project_name(main: ModuleType | None = None) -> str | None:
    """The script's name, or that of its folder where it is called main.py or train.py.

    `vision` for vision.py, vision/train.py and vision/src/main.py; `pkg.train` for `python -m pkg.train`; None where
    there is no script.

    Args:
        main: the script; default the one of this process.
    """
    main = main if main is not None else sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    if not isinstance(file, str):
        return None
    path = Path(file).resolve()
    folders = [parent.name for parent in path.parents if parent.name and parent.name not in _FOLDERS]
    return folders[0] if path.stem in _SCRIPTS and folders else path.stem
