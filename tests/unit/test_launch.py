"""Finding a collector, and starting one where there is none."""

import fcntl
import json
import os
import sys

import pytest

from sidestep import launch
from sidestep.errors import FolderError, MissingExtraError
from sidestep_schemas.layout import default_address


@pytest.fixture
def running(tmp_path):
    """A folder that a collector holds and says so."""
    (tmp_path / "collector.json").write_text(json.dumps({"pid": 7, "address": "tcp://h:1"}))
    descriptor = os.open(tmp_path / "collector.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield tmp_path
    os.close(descriptor)


def test_a_collector_is_one_that_holds_the_folder_and_wrote_where_it_is(running):
    assert launch.find(running) == launch.Collector(7, "tcp://h:1")
    assert launch.ensure(running) == "tcp://h:1"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x", "address": "a"}', '{"pid": null}'])
def test_a_file_that_cannot_be_read_is_no_collector(running, text):
    (running / "collector.json").write_text(text)
    assert launch.find(running) is None


def test_a_file_that_a_dead_collector_left_is_no_collector(tmp_path):
    (tmp_path / "collector.json").write_text(json.dumps({"pid": 7, "address": "tcp://h:1"}))
    assert launch.find(tmp_path) is None
    (tmp_path / "collector.lock").touch()
    assert launch.find(tmp_path) is None
    assert not launch.is_locked(tmp_path)


def test_without_the_extra_none_is_started_and_a_command_says_what_mends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_NEEDED", ("json", "no_such_package"))
    assert launch.ensure(tmp_path) is None
    with pytest.raises(MissingExtraError, match=r"\(no_such_package missing\): pip install 'sidestep\[collector\]'"):
        launch.require_installed()


def test_one_is_started_detached_and_its_address_follows_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "command", lambda root, *options: [sys.executable, "-c", "print('up')"])
    assert launch.ensure(tmp_path / "data") == default_address(tmp_path / "data")
    assert (tmp_path / "data" / "collector.log").exists()


def test_its_output_goes_to_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "command", lambda root, *options: [sys.executable, "-c", f"print({options})"])
    process = launch.start(tmp_path, "--listen", "x")
    assert process.wait() == 0
    assert (tmp_path / "collector.log").read_text() == "('--listen', 'x')\n"


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"cannot be written .*choose another with --dir or SIDESTEP_DIR"):
        launch.start(tmp_path / "file" / "x")
