"""What an operator can set, and where it comes from: flags, else the environment, else `sidestep.toml`.

Environment variables begin with `SIDESTEP_COLLECTOR_`; the file is `<dir>/sidestep.toml`, table `[collector]`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sidestep_schemas.errors import ConfigError
from sidestep_schemas.layout import default_address

ENVIRONMENT_PREFIX: Final = "SIDESTEP_COLLECTOR_"
FILE_NAME: Final = "sidestep.toml"


class Config(BaseModel):
    """Settings of a collector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field(default="", description="address; default an ipc socket that belongs to the data folder")
    insecure: bool = Field(default=False, description="allow an address that other machines can reach")
    flush_seconds: float = Field(default=1.0, gt=0, le=3600, description="how often rows are committed")
    flush_points: int = Field(default=100_000, ge=1, description="commit earlier when so many points wait")
    pending_bytes: int = Field(default=64 << 20, ge=1 << 20, description="beyond it nothing more is read")
    idle_exit: float | None = Field(default=None, gt=0, description="end after so many seconds without a stream")
    take_leftovers: bool = Field(default=True, description="ship journals that dead processes left on this host")
    log_format: str = Field(default="text", pattern="^(text|json)$", description="text or json")

    def address(self, root: Path) -> str:
        """The address to bind."""
        return self.listen or default_address(root)


def load(root: Path, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Config:
    """Settle the settings.

    Args:
        root: data folder.
        flags: settings from the command line; None stands for "not given".
        environ: the environment.

    Raises:
        ConfigError: every unknown key and every bad value, all at once, each with where it comes from.
    """
    origin: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for source, values in (
        (str(root / FILE_NAME), _from_file(root / FILE_NAME)),
        ("environment", _from_environment(environ)),
        ("command line", {key: value for key, value in flags.items() if value is not None}),
    ):
        for key, value in values.items():
            settings[key], origin[key] = value, source
    try:
        return Config(**settings)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))} ({origin.get(str(problem['loc'][0]), '?')}): {problem['msg']}"
            for problem in error.errors()
        ]
        raise ConfigError("settings that cannot be used:\n  " + "\n  ".join(problems)) from None


def _from_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    unknown = sorted(set(content) - {"collector"})
    if unknown:
        raise ConfigError(f"{path}: unknown table {', '.join(unknown)}; settings stand in [collector]")
    table: dict[str, Any] = content.get("collector", {})
    return table


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        key.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for key, value in environ.items()
        if key.startswith(ENVIRONMENT_PREFIX)
    }
