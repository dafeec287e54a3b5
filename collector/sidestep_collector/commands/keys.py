"""`sidestep keys`: who may connect to a collector that asks for keys. A running collector notices within a second."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from sidestep_collector.commands.options import Command, common
from sidestep_collector.config import load
from sidestep_collector.keys import KeyRing, public_of, write_private
from sidestep_schemas.errors import FolderError
from sidestep_schemas.layout import data_dir


def _ring(folder: str | None, keys: str | None) -> KeyRing:
    root = data_dir(folder)
    return KeyRing(load(root, {"keys": keys}).keys_folder(root))


def _options(command: Command) -> Command:
    command = click.option("--keys", "place", default=None, help="folder of the keys; default <dir>/keys")(command)
    return common(command)


@click.group()
def keys() -> None:
    """Keys of those who may connect to a collector over a network."""


@keys.command()
@_options
@click.option("--out", default=None, metavar="FILE", help="default NAME.key here; - prints it")
@click.argument("name")
def new(folder: str | None, place: str | None, out: str | None, name: str, *, as_document: bool) -> None:
    """Make a key for NAME, and allow it: one file, to hand to whoever is to connect with it."""
    ring = _ring(folder, place)
    key = ring.new(name)
    text = (
        f"# sidestep: lets {name} connect; SIDESTEP_KEY is this file, or its last line. Keep it secret.\n{key.text}\n"
    )
    file = None if out == "-" else Path(out or f"{name}.key").absolute()
    if file is not None:
        try:
            write_private(file, text)
        except OSError as error:
            raise FolderError(f"{file} cannot be written ({error.strerror}): choose another with --out") from error
    ring.allow(name, key)
    if as_document:
        document = {"name": name, "file": str(file) if file else None, "public": public_of(key.secret).hex()}
        click.echo(json.dumps(document if file else {**document, "key": key.text}))
    elif file is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"{file} lets {name} connect: SIDESTEP_KEY={file} where the training runs")


@keys.command("list")
@_options
def list_keys(folder: str | None, place: str | None, *, as_document: bool) -> None:
    """All keys that were made, and whether they are still allowed."""
    clients = _ring(folder, place).clients()
    if as_document:
        click.echo(
            json.dumps(
                [
                    {
                        "name": client.name,
                        "public": client.public.hex(),
                        "allowed": client.is_allowed,
                        "since": client.since,
                    }
                    for client in clients
                ]
            )
        )
        return
    for client in clients:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(client.since))
        state = "allowed" if client.is_allowed else "revoked"
        click.echo(f"{client.name:24}  {state} since {day}  {client.public.hex()[:8]}")


@keys.command()
@_options
@click.argument("name")
def revoke(folder: str | None, place: str | None, name: str, *, as_document: bool) -> None:
    """Let NAME connect no more. What it has sent stays; what it has not sent stays in its journal."""
    ring = _ring(folder, place)
    ring.revoke(name)
    if as_document:
        click.echo(json.dumps({"name": name, "allowed": False}))
    else:
        click.echo(f"{name} is revoked: a running collector cuts its connections within a second or two")
