"""What a run is judged by: its profile, by name or as a file of the user's, and rules that are set otherwise.

The collector may be on another machine, so a file travels as text with the run's start. What it says is checked
there; `sidestep profile lint FILE` checks it here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sidestep import snapshot
from sidestep.errors import ConfigError

PROFILE_VARIABLE: Final = "SIDESTEP_PROFILE"
_ENDINGS: Final = (".yaml", ".yml")
#: Characters of a profile: it travels in one record.
_TEXT_MAX: Final = 1 << 20


def read_profile(given: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> tuple[str, str]:
    """The name of a profile, and its text where it is a file: what ends in .yaml or .yml.

    Raises:
        ConfigError: a file that cannot be read.
    """
    said = os.fspath(given) if given is not None else environ.get(PROFILE_VARIABLE, "")
    if not said.endswith(_ENDINGS):
        return said, ""
    path = Path(said)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"profile={said!r}: the file cannot be read ({error})") from error
    if len(text) > _TEXT_MAX:
        raise ConfigError(f"profile={said!r}: {len(text)} characters, and {_TEXT_MAX} can be sent")
    return path.stem, text


def read_rules(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Rules that are set otherwise: a name -> False, or what is different of it.

    Raises:
        ConfigError: it is no such mapping.
    """
    if given is None:
        return {}
    rules = snapshot.jsonable(given)
    if not isinstance(rules, dict) or not all(isinstance(said, (bool, dict)) for said in rules.values()):
        raise ConfigError(
            f"rules={given!r}: it maps the name of a rule to False, or to what is set otherwise: "
            '{"exploding_block": {"above": 1e4}}'
        )
    return {str(name): said for name, said in rules.items()}
