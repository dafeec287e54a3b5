"""`sidestep profile`: the families of metrics that there are, what one says, and whether a file of one's own is right.

Exit codes: 0 done; 1 `lint` found something wrong; 2 there is no such profile or file.
"""

from __future__ import annotations

from pathlib import Path

import click

from sidestep_collector.commands.options import common
from sidestep_collector.commands.table import as_json as json_text
from sidestep_collector.commands.table import as_text
from sidestep_collector.profiles import COMMON, Profile, builtin, check, names, parse
from sidestep_schemas.errors import ProfileError

_FILE_ENDINGS = (".yaml", ".yml")


@click.group()
def profile() -> None:
    """Families of metrics: what they measure, when to worry, what to do.

    Exit codes: 0 done; 1 `lint` found something wrong; 2 there is no such profile or file.
    """


@profile.command("list")
@common
def list_(folder: str | None, *, as_document: bool) -> None:  # noqa: ARG001 - every command takes --dir
    """The profiles that come with sidestep."""
    found = [builtin(name) for name in (COMMON, *names())]
    rows = [(one.name, len(one.metrics), len(one.rules), one.title) for one in found]
    columns = ("profile", "metrics", "rules", "title")
    if as_document:
        click.echo(json_text([dict(zip(columns, row, strict=True)) for row in rows]))
    else:
        click.echo(as_text(columns, rows))


@profile.command()
@common
@click.argument("name")
def show(folder: str | None, name: str, *, as_document: bool) -> None:  # noqa: ARG001 - every command takes --dir
    """What the profile NAME, or the YAML file NAME, says."""
    found = parse(_text_of(name), name) if name.endswith(_FILE_ENDINGS) else builtin(name)
    if as_document:
        click.echo(json_text(found.model_dump(by_alias=True)))
    else:
        click.echo(_shown(found))


@profile.command()
@common
@click.argument("path")
@click.pass_context
def lint(context: click.Context, folder: str | None, path: str, *, as_document: bool) -> None:  # noqa: ARG001 - every command takes --dir
    """Say everything that is wrong with the profile in the file PATH, each with its line."""
    _, problems = check(_text_of(path), path)
    if as_document:
        click.echo(json_text([{"file": one.file, "line": one.line, "what": one.what} for one in problems]))
    else:
        for problem in problems:
            click.echo(str(problem))
        if not problems:
            click.echo(f"{path}: nothing is wrong with it")
    context.exit(1 if problems else 0)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} cannot be read: {error}") from error


def _shown(found: Profile) -> str:
    metrics = [
        (tag, spec.unit, spec.tier, spec.target.text if spec.target else "", spec.worry or "")
        for tag, spec in found.metrics.items()
    ]
    metrics += [
        (tag, "", "", judged.target.text if judged.target else "", judged.worry or "")
        for tag, judged in found.targets.items()
    ]
    rules = [(name, rule.severity, rule.fires()) for name, rule in found.rules.items()]
    parts = [
        f"{found.name}: {found.title}\n{found.meaning}",
        "metrics\n" + as_text(("metric", "unit", "taken", "target", "when to worry"), metrics),
        "rules\n" + as_text(("rule", "severity", "fires"), rules),
        "panels\n"
        + "\n".join(f"  {title}: {', '.join(c.title for c in charts)}" for title, charts in found.panels.items()),
    ]
    for name, playbook in found.playbooks.items():
        steps = "\n".join(
            f"  {at}. {step.look}: {step.means}\n     {step.do}" for at, step in enumerate(playbook.steps, start=1)
        )
        parts.append(f"playbook {name}: {playbook.title}\n{steps}")
    return "\n\n".join(parts)
