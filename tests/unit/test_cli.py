"""The command line: one clear line and an exit code for whatever goes wrong."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from sidestep import cli, launch


@pytest.fixture
def sidestep(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sidestep", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return call


def test_help_lists_all_commands(sidestep):
    code, out, _ = sidestep("--help")
    assert code == 0
    for name in (
        "run",
        "up",
        "down",
        "sync",
        "demo",
        *(point.name for point in entry_points(group="sidestep.commands")),
    ):
        assert f"\n  {name} " in out


def test_an_unknown_command_is_one_clear_line(sidestep):
    code, _, err = sidestep("fly")
    assert code == 2
    assert "No such command 'fly'" in err


def test_the_version_is_told(sidestep):
    assert sidestep("--version")[:2] == (0, f"sidestep, version {cli.sidestep.__version__}\n")


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "sidestep", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sidestep, version")


class Point:
    name = "ls"

    def load(self):
        raise ImportError("No module named 'duckdb'")


def test_a_command_whose_extra_is_missing_says_what_to_install(sidestep, monkeypatch):
    monkeypatch.setattr(cli, "entry_points", lambda group, name="ls": [Point()] if name == "ls" else [])
    code, out, err = sidestep("ls", "--any", "thing")
    assert (code, out) == (3, "")
    assert (
        err
        == "sidestep: `sidestep ls` needs the collector (No module named 'duckdb'): pip install 'sidestep[collector]'\n"
    )


@pytest.mark.parametrize("arguments", [("up",), ("run", "--", sys.executable, "-c", "")])
def test_starting_a_collector_without_the_extra_says_what_to_install(sidestep, monkeypatch, arguments):
    monkeypatch.setattr(launch, "_NEEDED", ("no_such_package",))
    code, _, err = sidestep(*arguments)
    assert code == 3
    assert err.count("\n") == 1
    assert "pip install 'sidestep[collector]'" in err


def test_syncing_a_folder_without_journals_is_done_and_starts_nothing(sidestep, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "start", lambda *_: pytest.fail("started a collector"))
    code, out, err = sidestep("sync", str(tmp_path / "none"))
    assert (code, out, err) == (0, "0 records of 0 streams are stored (0.0 MB)\n", "")
    code, out, _ = sidestep("sync", "--json", "--dir", str(tmp_path))
    assert (code, json.loads(out)["streams"]) == (0, 0)
    assert not (tmp_path / "none").exists()


def test_a_folder_that_is_given_twice_cannot_be_meant(sidestep):
    code, _, err = sidestep("sync", "--dir", "a", "b")
    assert (code, err) == (2, "sidestep: give the data folder once: either --dir or as an argument\n")


def test_a_journal_that_cannot_be_read_makes_sync_fail_and_says_which(sidestep, tmp_path):
    stream = tmp_path / "journal" / "run" / "stream"
    stream.mkdir(parents=True)
    (stream / "lock").touch()
    (stream / "0.seg").write_bytes(b"garbage")
    code, _, err = sidestep("sync", "--dir", str(tmp_path), "--collector", "ipc:///nowhere")
    assert code == 1
    assert err == f"sidestep: {stream}: {stream}: no segment in it can be read\n"


def test_where_no_collector_runs_there_is_none_to_end(sidestep, tmp_path):
    assert sidestep("down", "--dir", str(tmp_path))[:2] == (0, f"no collector runs for {tmp_path}\n")
    code, out, _ = sidestep("down", "--json", "--dir", str(tmp_path))
    assert (code, json.loads(out)) == (0, {"stopped": False, "dir": str(tmp_path)})


def test_a_job_that_cannot_be_run_is_one_clear_line(sidestep):
    code, _, err = sidestep("run", "--", "no-such-command", "x")
    assert (code, err) == (2, "sidestep: no-such-command cannot be run: there is no such command\n")


def test_a_job_must_be_named(sidestep):
    code, _, err = sidestep("run")
    assert code == 2
    assert "COMMAND" in err
