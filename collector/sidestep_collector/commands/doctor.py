"""`sidestep doctor`: whether this machine, its settings and its collector are as they should be."""

from __future__ import annotations

import json

import click

from sidestep_collector.commands.checkup import examine, settings
from sidestep_collector.commands.dial import ask, find, reaching
from sidestep_collector.commands.options import common
from sidestep_schemas.layout import data_dir


@click.command()
@common
@reaching
@click.option("--settings/--no-settings", "show_settings", default=True, help="print every setting, too")
def doctor(
    folder: str | None, collector: str | None, key: str | None, *, as_document: bool, show_settings: bool
) -> int:
    """Look at disks, keys, settings, versions, clocks and the collector; ends with 1 where something is wrong."""
    root = data_dir(folder)

    def answer() -> dict[str, object]:
        peer = find(folder, collector, key)
        return ask(peer.address, {"ask": "status"}, peer.key)

    checks = examine(root, answer)
    rows = settings(root) if show_settings else []
    if as_document:
        found = [
            {"name": check.name, "ok": check.is_well, "seen": check.seen, "change": check.change} for check in checks
        ]
        click.echo(json.dumps({"ok": all(check.is_well for check in checks), "checks": found, "settings": rows}))
    else:
        for check in checks:
            click.echo(f"{'ok   ' if check.is_well else 'WRONG'}  {check.name}: {check.seen}")
            if check.change:
                click.echo(f"       {check.change}")
        for row in rows:
            click.echo(f"  {row['name']} = {row['value'] or '(none)'}  ({row['source']})")
    return 0 if all(check.is_well for check in checks) else 1
