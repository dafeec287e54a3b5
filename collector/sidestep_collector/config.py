"""What an operator can set, and where it comes from: flags, else the environment, else `sidestep.toml`.

Environment variables begin with `SIDESTEP_COLLECTOR_`; the file is `<dir>/sidestep.toml`, table `[collector]`.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sidestep_collector.profiles.spec import Override, Severity
from sidestep_schemas.errors import ConfigError
from sidestep_schemas.layout import default_address, keys_dir

ENVIRONMENT_PREFIX: Final = "SIDESTEP_COLLECTOR_"
FILE_NAME: Final = "sidestep.toml"


class Config(BaseModel):
    """Settings of a collector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field(default="", description="address; default an ipc socket that belongs to the data folder")
    insecure: bool = Field(default=False, description="let records come from other machines, without keys")
    keys: str = Field(default="", description="folder of the keys that say who may connect; default <dir>/keys")
    require_keys: bool = Field(default=False, description="ask for keys at a loopback address, too")
    flush_seconds: float = Field(default=1.0, gt=0, le=3600, description="how often rows are committed")
    flush_points: int = Field(default=100_000, ge=1, description="commit earlier when so many points wait")
    pending_bytes: int = Field(default=64 << 20, ge=1 << 20, description="beyond it nothing more is read")
    idle_exit: float | None = Field(default=None, gt=0, description="end after so many seconds without a stream")
    silent_seconds: float = Field(default=60.0, gt=0, description="a stream is looked after when so long silent")
    hang_seconds: float = Field(default=60.0, gt=0, description="no pause between steps that is shorter is a hang")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="port of /healthz, /readyz and /metrics over HTTP; 0 takes a free one"
    )
    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="address of that port; whoever reaches it is told names of runs"
    )
    take_leftovers: bool = Field(default=True, description="ship journals that dead processes left on this host")
    log_format: str = Field(default="text", pattern="^(text|json)$", description="text or json")
    analysers: tuple[str, ...] = Field(
        default=(), description="analysers of your own, module:Class, with commas between"
    )
    analyser_memory: dict[str, Annotated[int, Field(ge=1, le=1 << 20)]] = Field(
        default_factory=dict[str, int], description='values of a tag that an analyser looks at, as JSON: {"flow": 128}'
    )
    rules: dict[str, Override] = Field(
        default_factory=dict[str, Override], description='rules set otherwise, as JSON: {"frozen_block": false}'
    )
    webhook: str = Field(default="", pattern="^(https?://.+)?$", description="URL that findings are posted to")
    webhook_severity: Severity = Field(
        default="warning", description="least severity that is posted: info, warning or critical"
    )

    @field_validator("rules", "analyser_memory", mode="before")
    @classmethod
    def _from_json(cls, given: object) -> object:
        return json.loads(given) if isinstance(given, str) else given

    @field_validator("analysers", mode="before")
    @classmethod
    def _from_text(cls, given: object) -> object:
        return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given

    def address(self, root: Path) -> str:
        """The address to bind."""
        return self.listen or default_address(root)

    def keys_folder(self, root: Path) -> Path:
        """Where the keys lie that say who may connect."""
        return Path(self.keys).expanduser() if self.keys else keys_dir(root)


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
    from_file, problems = _from_file(root / FILE_NAME)
    for source, values in (
        (str(root / FILE_NAME), from_file),
        ("environment", _from_environment(environ)),
        ("command line", {key: value for key, value in flags.items() if value is not None}),
    ):
        for key, value in values.items():
            settings[key], origin[key] = value, source
    try:
        config = Config(**settings)
    except ValidationError as error:
        problems += [
            f"{'.'.join(map(str, problem['loc']))} ({origin.get(str(problem['loc'][0]), '?')}): {problem['msg']}"
            for problem in error.errors()
        ]
    else:
        if not problems:
            return config
    raise ConfigError(f"settings that cannot be used: {'; '.join(problems)}")


def sources(root: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Where each setting comes from that a collector of this folder would have without flags: the file or the variable;
    "default" for the rest."""
    from_file, _ = _from_file(root / FILE_NAME)
    variables = {key: f"{ENVIRONMENT_PREFIX}{key.upper()}" for key in _from_environment(environ)}
    known = {key: str(root / FILE_NAME) for key in from_file} | variables
    return {key: known.get(key, "default") for key in Config.model_fields}


def _from_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings of a file, and what is wrong with it beside them."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}, []
    except (OSError, ValueError) as error:
        return {}, [f"{path} cannot be read: {error}"]
    table = content.pop("collector", {})
    problems = [f"{name} ({path}): settings stand in [collector]" for name in sorted(content)]
    if not isinstance(table, dict):
        return {}, [*problems, f"collector ({path}): it is a table, [collector]"]
    return cast("dict[str, Any]", table), problems


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        key.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for key, value in environ.items()
        if key.startswith(ENVIRONMENT_PREFIX)
    }
