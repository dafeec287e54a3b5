"""`python -m sidestep_collector`: the collector in the foreground. `sidestep up` is the friendlier way."""

from __future__ import annotations

import sys
from typing import Any

import click

from sidestep_collector.config import Config, load
from sidestep_collector.daemon import serve
from sidestep_schemas.errors import SidestepError
from sidestep_schemas.layout import data_dir


def _options(command: Any) -> Any:
    """An option for each setting, so that there is one list of settings."""
    for name, field in reversed(Config.model_fields.items()):
        flag = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            flag = f"{flag}/--no-{name.replace('_', '-')}"
        command = click.option(flag, name, default=None, help=field.description)(command)
    return command


@click.command()
@click.option("--dir", "folder", default=None, help="data folder; default SIDESTEP_DIR, else sidestep-data")
@_options
def main(folder: str | None, **flags: Any) -> None:
    """Run a collector in the foreground."""
    root = data_dir(folder)
    try:
        serve(root, load(root, flags))
    except SidestepError as error:
        click.echo(f"sidestep: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
