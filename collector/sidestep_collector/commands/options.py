"""The options that every command has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]


def common(command: Command) -> Command:
    """`--dir` and `--json`."""
    command = click.option("--json", "as_document", is_flag=True, help="print one JSON document")(command)
    return click.option("--dir", "folder", default=None, help="data folder; default SIDESTEP_DIR, else sidestep-data")(
        command
    )
