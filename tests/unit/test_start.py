"""Beginning a run: one a process, whatever forks, fails or stands in the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.journal_reader import read_records
from support.runs import begin

import sidestep
from sidestep import launch
from sidestep.errors import AddressError, ConfigError, UsageError
from sidestep_schemas.layout import run_dir

__all__ = ["begin"]


def train(folder: Path, script: str, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "SIDESTEP_DIR": str(folder), "SIDESTEP_MODE": "offline", **more}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], env=environ, capture_output=True, text=True, check=False
    )


def end_of(folder: Path) -> dict[str, object]:
    return json.loads(read_records(folder)[-1].fields[1])


def start_of(run) -> dict[str, object]:
    return json.loads(read_records(run.stats["journal"])[0].fields[1])


def test_a_process_has_one_run_until_it_is_finished(begin):
    run = begin(id="one")
    assert begin(id="two") is run
    assert sidestep.active_run() is run
    run.finish()
    other = begin(id="two")
    assert other is not run
    assert (other.id, other.is_live) == ("two", True)


def test_what_a_run_is_can_be_asked(begin):
    run = begin(project="p", id="i", name="n", rank=2)
    assert (run.project, run.id, run.name, run.rank) == ("p", "i", "n", 2)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"mode": "of"}, ConfigError),
        ({"mode": "on", "collector": "nowhere"}, AddressError),
        ({"rank": -1}, ConfigError),
        ({"config": [1, 2]}, UsageError),
    ],
)
def test_an_argument_that_cannot_be_meant_raises_before_the_training(begin, given, error):
    with pytest.raises(error):
        begin(**given)
    assert sidestep.active_run() is None


def test_resuming_is_forbidden_or_demanded(begin, tmp_path):
    with pytest.raises(UsageError, match="there is no run 'r' in project 'p'"):
        begin(project="p", id="r", resume="must")
    run_dir(tmp_path / "data", "p", "r").mkdir(parents=True)
    with pytest.raises(UsageError, match="resume='never' forbids it"):
        begin(project="p", id="r", resume="never")
    assert begin(project="p", id="r", resume="must").is_live


def test_two_starts_of_one_id_are_two_streams_of_one_run(begin):
    first = begin(id="r").finish().journal
    second = begin(id="r").finish().journal
    assert first != second
    assert Path(first).parent == Path(second).parent


def test_a_folder_that_cannot_be_written_begins_a_run_all_the_same(begin, tmp_path):
    (tmp_path / "file").write_text("")
    run = begin(dir=tmp_path / "file")
    run.log({"a": 1.0})
    assert "cannot be written" in run.stats["degraded"]


def test_without_the_extra_records_wait_in_the_journal(begin, monkeypatch):
    monkeypatch.setattr(launch, "is_installed", lambda: False)
    run = begin(mode="on")
    report = run.finish(timeout=3600.0)
    assert report.pending == report.sent == 2


def test_a_journal_of_a_network_folder_lies_on_this_machine(begin, tmp_path, monkeypatch):
    monkeypatch.setattr("sidestep.start.is_network_folder", lambda _: True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "local"))
    assert begin().stats["journal"].startswith(str(tmp_path / "local"))


def test_a_script_that_ends_without_a_word_is_finished(tmp_path):
    done = train(tmp_path, "import sidestep; sidestep.init().log({'a': 1.0})")
    assert (done.returncode, done.stderr) == (0, "")
    assert end_of(tmp_path) == {"status": "finished", "error": None}


def test_an_uncaught_exception_is_how_a_run_failed_and_is_shown_as_ever(tmp_path):
    done = train(tmp_path, "import sidestep; sidestep.init(); raise ValueError('too bad')")
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: too bad\n")
    assert {"status": "failed", "error": "ValueError: too bad"}.items() <= end_of(tmp_path).items()


FORKS = """
import os, sys, sidestep
run = sidestep.init(id="parent")
run.log({"a": 1.0})
child = os.fork()
if child == 0:
    for _ in range(1000):
        run.log({"a": 666.0})
    run.text("x", "y" * 100000)
    assert not run.is_live and run.finish().sent == 0
    assert sidestep.init(id="child") is not run
    sidestep.active_run().log({"c": 1.0})
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
run.log({"a": 2.0})
"""


def test_a_forked_child_records_nothing_into_its_parents_run_and_may_begin_its_own(tmp_path):
    done = train(tmp_path, FORKS)
    assert (done.returncode, done.stderr) == (0, "")
    streams = sorted(tmp_path.glob("journal/*/*"))
    assert len(streams) == 2
    by_id = {}
    for stream in streams:
        first, *rest = read_records(stream)
        by_id[json.loads(first.fields[1])["id"]] = [record.values for record in rest if record.values]
    assert by_id == {"parent": [{"train/a": 1.0}, {"train/a": 2.0}], "child": [{"train/c": 1.0}]}


def test_a_strict_script_ends_at_what_cannot_be_recorded(tmp_path):
    done = train(tmp_path, "import sidestep; sidestep.init().log({'a': 'x'})", SIDESTEP_STRICT="1")
    assert done.returncode == 1
    assert "UsageError: 'a' is no number" in done.stderr


def test_a_profile_and_rules_travel_with_the_start(begin):
    run = begin(profile="jepa", rules={"frozen_block": False, "exploding_block": {"above": 1e4}})
    said = start_of(run)
    assert said["profile"] == "jepa"
    assert said["rules"] == {"frozen_block": False, "exploding_block": {"above": 1e4}}
    assert "profile_text" not in said


def test_a_profile_of_ones_own_travels_as_text(begin, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\n", encoding="utf-8")
    said = start_of(begin(profile=path))
    assert (said["profile"], said["profile_text"]) == ("mine", "name: mine\n")


def test_a_profile_may_stand_in_the_environment(begin, monkeypatch):
    monkeypatch.setenv("SIDESTEP_PROFILE", "slope")
    assert start_of(begin())["profile"] == "slope"


def test_a_profile_that_cannot_be_read_is_an_error_at_once(begin):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml'.*cannot be read"):
        begin(profile="nowhere.yaml")


@pytest.mark.parametrize("rules", [["frozen_block"], {"frozen_block": 3}])
def test_rules_that_cannot_be_meant_are_an_error_at_once(begin, rules):
    with pytest.raises(ConfigError, match="it maps the name of a rule"):
        begin(rules=rules)
