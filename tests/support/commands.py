"""The command line in this process, where a test needs no other."""

from __future__ import annotations

import click
from click.testing import CliRunner


def call(command: click.Command, *arguments: object) -> str:
    """What a command prints; errors that it raises are raised, and it ends well otherwise."""
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output
