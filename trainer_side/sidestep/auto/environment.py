"""The environment that makes a command's Python processes capture themselves. Imports no torch."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

#: "1" or a token that all processes of one `sidestep run` share; "0", "" or nothing turn capture off.
AUTO_VARIABLE: Final = "SIDESTEP_AUTO"
#: Steps from one measurement to the next.
EVERY_VARIABLE: Final = "SIDESTEP_AUTO_EVERY"

ON_PATH: Final = Path(__file__).parent / "on_path"


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What to add to an environment so that scripts started in it are captured.

    Args:
        environ: the environment as it is; its PYTHONPATH stays in force behind our folder.
    """
    if environ.get(AUTO_VARIABLE) in {"", "0"}:  # turned off by the user
        return {}
    path = environ.get("PYTHONPATH")
    # An empty entry means the current folder, so none may come about.
    return {
        AUTO_VARIABLE: secrets.token_hex(4),
        "PYTHONPATH": f"{ON_PATH}{os.pathsep}{path}" if path else str(ON_PATH),
    }
