"""The command line. Commands that need the [collector] extra are entry points and are loaded when asked for.

Exit codes: 0 done; 1 something failed; 2 a call or setting that cannot be meant; 3 an extra is missing; 4 an
address cannot be bound or reached; 5 a folder cannot be written or is taken; 6 a newer version wrote the data.
`run` ends with the exit code of its command, 128 + n for signal n.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import click

import sidestep
from sidestep import launch
from sidestep_schemas.claims import find_leftovers
from sidestep_schemas.errors import MissingExtraError, SidestepError, UsageError
from sidestep_schemas.keys import KEY_VARIABLE, read_client_key
from sidestep_schemas.layout import COLLECTOR_VARIABLE, data_dir, default_address

_EXTRA_COMMANDS = "sidestep.commands"

Command = Callable[..., Any]


class Commands(click.Group):
    """The commands of this package and those that the collector brings."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, by alphabet."""
        return sorted({*super().list_commands(ctx), *(point.name for point in entry_points(group=_EXTRA_COMMANDS))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; the collector's are imported only now."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for point in entry_points(group=_EXTRA_COMMANDS, name=cmd_name):
            try:
                return cast("click.Command", point.load())
            except ImportError as error:
                return _missing(cmd_name, str(error))
        return None


def main() -> None:
    """Run the command line; every error of ours is one line and an exit code."""
    try:
        code = cli.main(prog_name="sidestep", standalone_mode=False)
    except SidestepError as error:
        click.echo(f"sidestep: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sidestep.__version__, prog_name="sidestep")
def cli() -> None:
    """Training diagnostics that never get in the way of training."""


def common(command: Command) -> Command:
    """The two options that every command has."""
    command = click.option("--json", "as_json", is_flag=True, help="print one JSON document")(command)
    return click.option("--dir", "folder", default=None, help="data folder; default SIDESTEP_DIR, else sidestep-data")(
        command
    )


@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@common
@click.option("--project", default=None, help="project of the runs that COMMAND begins")
@click.option("--name", default=None, help="name of the run")
@click.option("--id", "run_id", default=None, help="id of the run; the same id again resumes it")
@click.option("--no-auto", is_flag=True, help="leave scripts alone that do not call sidestep themselves")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    folder: str | None,
    project: str | None,
    name: str | None,
    run_id: str | None,
    command: tuple[str, ...],
    *,
    as_json: bool,
    no_auto: bool,
) -> int:
    """Run COMMAND with a collector beside it; ends with COMMAND's exit code.

    Python scripts that train with PyTorch are captured as they are, unless they call sidestep themselves.
    """
    from sidestep.auto import environment  # noqa: PLC0415 - loaded when asked for
    from sidestep.beside import run_beside  # noqa: PLC0415 - loaded when asked for

    names = {"SIDESTEP_PROJECT": project, "SIDESTEP_NAME": name, "SIDESTEP_RUN_ID": run_id}
    auto = {environment.AUTO_VARIABLE: "0"} if no_auto else environment.variables(os.environ)
    given = {key: value for key, value in names.items() if value}
    return run_beside(data_dir(folder), command, given | auto, as_json=as_json)


@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@common
@click.option("--name", required=True, help="name of the sweep: the group of its runs")
@click.option("--grid", multiple=True, required=True, metavar="NAME=A,B,…", help="an axis; NAME=0..4 counts")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="how many run at once")
@click.option("--project", default=None, help="project of the runs")
@click.option("--again", is_flag=True, help="run also what has ended well before")
@click.option("--dry-run", is_flag=True, help="print the commands, run nothing")
@click.option("--no-auto", is_flag=True, help="leave scripts alone that do not call sidestep themselves")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def sweep(  # noqa: PLR0917 - click hands in options by name
    folder: str | None,
    name: str,
    grid: tuple[str, ...],
    jobs: int,
    project: str | None,
    command: tuple[str, ...],
    *,
    again: bool,
    dry_run: bool,
    as_json: bool,
    no_auto: bool,
) -> int:
    r"""Run COMMAND once for each setting of a grid, all attached to one collector.

    A setting goes to its {place} in COMMAND, or is added as --name=value. Called again, it runs what has not ended
    well.

    \b
    sidestep sweep --name lr --grid lr=0.1,0.01 --grid seed=0..3 --jobs 2 -- python train.py
    """
    from sidestep.sweep_command import sweep as run_all  # noqa: PLC0415 - loaded when asked for

    asked = command[1:] if command[:1] == ("--",) else command
    return run_all(
        data_dir(folder),
        name,
        asked,
        grid,
        project=project,
        at_once=jobs,
        again=again,
        dry_run=dry_run,
        no_auto=no_auto,
        as_json=as_json,
    )


@cli.command(context_settings={"ignore_unknown_options": True})
@common
@click.option("--foreground", is_flag=True, help="stay in the foreground, log to the terminal")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def up(folder: str | None, options: tuple[str, ...], *, as_json: bool, foreground: bool) -> int:
    """Start a collector for a data folder; OPTIONS are the collector's own (`sidestep up -- --help` lists them)."""
    from sidestep.beside import start_and_wait  # noqa: PLC0415 - loaded when asked for

    root = data_dir(folder)
    launch.require_installed()
    if foreground or "--help" in options:
        os.execv(sys.executable, launch.command(root, *options))  # noqa: S606 - we become the collector
    running = launch.find(root)
    known = running is not None
    collector = running or start_and_wait(root, *options)
    state = "was running already" if known else "started"
    _say({"pid": collector.pid, "address": collector.address, "dir": str(root), "started": not known}, as_json=as_json)
    if not as_json:
        click.echo(f"collector {state}: pid {collector.pid}, {collector.address}, data in {root}")
    return 0


@cli.command()
@common
@click.option("--timeout", default=20.0, show_default=True, help="seconds to wait for its end")
def down(folder: str | None, timeout: float, *, as_json: bool) -> int:
    """End the collector of a data folder; what it received is committed first."""
    from sidestep.beside import wait_for_end  # noqa: PLC0415 - loaded when asked for

    root = data_dir(folder)
    running = launch.find(root)
    if running is None:
        _say({"stopped": False, "dir": str(root)}, as_json=as_json)
        if not as_json:
            click.echo(f"no collector runs for {root}")
        return 0
    os.kill(running.pid, signal.SIGTERM)
    if not wait_for_end(root, running.pid, timeout):
        raise SidestepError(f"the collector (pid {running.pid}) did not end within {timeout:g} s; it may be stopped")
    _say({"stopped": True, "pid": running.pid, "dir": str(root)}, as_json=as_json)
    if not as_json:
        click.echo(f"collector ended (pid {running.pid})")
    return 0


@cli.command()
@common
@click.option("--collector", default=None, help="address to ship to; default the collector of the folder")
@click.option("--key", default=None, help="key file for that collector; default SIDESTEP_KEY")
@click.option("--timeout", default=30.0, show_default=True, help="seconds to wait for a collector that stands still")
@click.argument("directory", required=False)
def sync(
    folder: str | None, collector: str | None, key: str | None, timeout: float, directory: str | None, *, as_json: bool
) -> int:
    """Ship journals that ended processes left under DIRECTORY."""
    from sidestep.sync import sync as ship  # noqa: PLC0415 - loaded when asked for

    if folder and directory:
        raise UsageError("give the data folder once: either --dir or as an argument")
    root = data_dir(directory or folder)
    address = collector or os.environ.get(COLLECTOR_VARIABLE) or _collector_of(root, start=bool(find_leftovers(root)))
    given = key or os.environ.get(KEY_VARIABLE)
    shown = read_client_key(given) if given else launch.local_key(root, address)
    if as_json or not sys.stderr.isatty():
        report = ship(root, address, patience=timeout, key=shown)
    else:
        with click.progressbar(length=1, label="shipping", file=sys.stderr, show_pos=True) as bar:

            def show(stored: int, total: int) -> None:
                bar.length = max(total, 1)
                bar.update(stored - bar.pos)

            report = ship(root, address, patience=timeout, on_progress=show, key=shown)
    _say(report.as_dict(), as_json=as_json)
    if not as_json:
        click.echo(f"{report.records:,} records of {report.streams} streams are stored ({report.bytes / 1e6:.1f} MB)")
    for reason in report.reasons:
        click.echo(f"sidestep: {reason}", err=True)
    return 1 if report.pending_streams or report.damaged else 0


@cli.command()
@common
@click.option("--epochs", default=10, show_default=True, help="epochs of the training")
def demo(folder: str | None, epochs: int, *, as_json: bool) -> int:
    """Train a small network on handwritten digits, with a collector beside it."""
    from sidestep.beside import run_beside  # noqa: PLC0415 - loaded when asked for

    for name, package in (("torch", "torch==2.13.0"), ("sklearn", "scikit-learn")):
        if not launch.is_importable(name):
            raise MissingExtraError(f"the demo trains with {name}, which is not installed: pip install {package}")
    command = (sys.executable, str(_demo_script()), "--epochs", str(epochs))
    return run_beside(data_dir(folder), command, {}, as_json=as_json)


@cli.command("check-transforms")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
@click.argument("train")
@click.argument("val")
def check_transforms(train: str, val: str, *, as_json: bool) -> int:
    """See whether TRAIN and VAL, each a dataset as module:name or path.py:name, share what they must not.

    One dataset object for both, one transform, augmented validation, other scales, samples in both, other classes. The
    name may be a dataset, a loader, or a function without arguments that gives one. Ends with 1 where something is
    wrong.
    """
    from sidestep import transforms  # noqa: PLC0415 - loaded when asked for

    checks = transforms.check(transforms.load(train), transforms.load(val))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            click.echo(f"{check.severity:8}  {check.name}: {check.seen}")
            if check.change:
                click.echo(f"          {check.change}")
    return 1 if any(check.severity in {"warning", "critical"} for check in checks) else 0


def _collector_of(root: Path, *, start: bool) -> str:
    running = launch.find(root)
    if running is not None:
        return running.address
    if start and launch.is_installed():
        from sidestep.beside import start_and_wait  # noqa: PLC0415 - loaded when asked for

        return start_and_wait(root, "--idle-exit", "60", "--no-take-leftovers").address
    return default_address(root)


def _demo_script() -> Path:
    packaged = Path(__file__).parent / "_examples" / "digits.py"
    in_repository = Path(__file__).parents[2] / "examples" / "digits.py"
    return packaged if packaged.exists() else in_repository


def _say(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document))


def _missing(name: str, why: str) -> click.Command:
    def fail(**_: Any) -> None:
        raise MissingExtraError(f"`sidestep {name}` needs the collector ({why}): pip install 'sidestep[collector]'")

    return click.Command(
        name,
        callback=fail,
        help="Not here: it needs the collector, pip install 'sidestep[collector]'.",
        params=[click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
    )
