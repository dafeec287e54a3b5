"""The folder whose name can be guessed: this user's alone, whoever makes it first."""

import stat
import tempfile
from pathlib import Path

import pytest
from support.journals import log, new_journal

from sidestep.push import Pusher
from sidestep_collector.receive import Sockets
from sidestep_schemas import layout
from sidestep_schemas.errors import AddressError
from sidestep_schemas.layout import ensure_private, guard_runtime, user_runtime_dir

NOBODY = 65534


@pytest.fixture
def runtime(monkeypatch):
    """A runtime folder of this test's own, not made yet."""
    with tempfile.TemporaryDirectory(prefix="s-") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield user_runtime_dir()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_is_made_for_this_user_alone(tmp_path):
    ensure_private(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700


def test_rights_of_others_are_taken_away(tmp_path):
    (tmp_path / "open").mkdir(mode=0o777)
    ensure_private(tmp_path / "open")
    assert mode(tmp_path / "open") == 0o700


def test_a_link_is_no_folder_and_what_it_leads_to_is_left_alone(tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("theirs")
    with pytest.raises(OSError, match="it is a link or a file"):
        ensure_private(tmp_path / "link")
    assert mode(tmp_path / "theirs") == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="it is a link or a file"):
        ensure_private(tmp_path / "file")


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir(mode=0o700)
    monkeypatch.setattr(layout.os, "getuid", lambda: NOBODY)
    with pytest.raises(PermissionError, match="belongs to another user"):
        ensure_private(tmp_path / "theirs")


def test_only_what_lies_in_the_runtime_folder_is_looked_at(runtime, tmp_path):
    guard_runtime(f"ipc://{tmp_path}/c")
    guard_runtime("tcp://127.0.0.1:1")
    assert not runtime.exists()
    guard_runtime(f"ipc://{runtime}/x/c")
    assert mode(runtime) == 0o700


def test_a_collector_mends_the_folder_and_its_sockets_are_its_users_alone(runtime):
    runtime.mkdir(mode=0o755)
    sockets = Sockets(f"ipc://{runtime}/c", b"b" * 16)
    try:
        assert mode(runtime) == 0o700
        assert {mode(path) for path in runtime.iterdir()} == {0o600}
    finally:
        sockets.close()


def test_a_collector_refuses_a_folder_that_is_a_link(runtime, tmp_path):
    runtime.symlink_to(tmp_path)
    with pytest.raises(AddressError, match="it is a link or a file"):
        Sockets(f"ipc://{runtime}/c", b"b" * 16)


def test_a_collector_refuses_a_folder_that_others_may_write(tmp_path):
    with tempfile.TemporaryDirectory(prefix="s-") as name:
        Path(name).chmod(0o777)
        with pytest.raises(AddressError, match="can be written by others"):
            Sockets(f"ipc://{name}/c", b"b" * 16)


def test_a_trainer_does_not_connect_through_a_folder_that_is_a_link(runtime, tmp_path, caplog):
    runtime.symlink_to(tmp_path)
    journal = new_journal(tmp_path / "run" / "stream")
    pusher = Pusher(journal, f"ipc://{runtime}/c")
    pusher.start()
    log(journal)
    assert not pusher.wait(1, 3600.0)
    assert "is not to be trusted" in pusher.delivery.refused
    assert caplog.text.count("is not to be trusted") == 1
    assert pusher.stop(20.0)
    journal.close(delivered=False)


def test_a_journal_in_the_runtime_folder_makes_it_private(runtime):
    runtime.mkdir(mode=0o755)
    journal = new_journal(runtime / "x" / "journal" / "run" / "stream")
    log(journal)
    assert journal.degraded == ""
    assert mode(runtime) == 0o700
    journal.close(delivered=True)


def test_a_journal_keeps_out_of_a_runtime_folder_that_is_a_link(runtime, tmp_path):
    (tmp_path / "theirs").mkdir()
    runtime.symlink_to(tmp_path / "theirs")
    journal = new_journal(runtime / "x" / "journal" / "run" / "stream")
    log(journal)
    assert "it is a link or a file" in journal.degraded
    assert list((tmp_path / "theirs").iterdir()) == []
    journal.close(delivered=True)
    assert runtime.is_symlink()
