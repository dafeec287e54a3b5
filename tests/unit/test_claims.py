"""Who holds a stream's folder."""

import os
import subprocess
import sys

import pytest

from sidestep_schemas.claims import LOCK_NAME, claim, find_leftovers, is_claimed

HOLDER = """
import sys
from pathlib import Path
from sidestep_schemas.claims import claim
held = claim(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    stream = tmp_path / "journal" / "run" / "r0-a0"
    stream.mkdir(parents=True)
    (stream / "0.seg").write_bytes(b"")
    (stream / LOCK_NAME).touch()
    return stream


@pytest.fixture
def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_a_folder_that_another_process_holds_is_refused_until_it_dies(folder, holder):
    assert is_claimed(folder)
    with pytest.raises(BlockingIOError):
        claim(folder)
    with pytest.raises(BlockingIOError):
        claim(folder, patience_seconds=0.01)
    holder.kill()
    holder.wait()
    assert not is_claimed(folder)
    os.close(claim(folder))


def test_a_process_does_not_take_away_its_own_claim(folder):
    before = len(os.listdir("/proc/self/fd"))
    held = claim(folder)
    assert is_claimed(folder)
    with pytest.raises(BlockingIOError):
        claim(folder)
    script = "import sys, pathlib; from sidestep_schemas.claims import is_claimed; print(is_claimed(pathlib.Path(sys.argv[1])))"
    assert subprocess.check_output([sys.executable, "-c", script, folder], text=True) == "True\n"
    os.close(held)
    assert not is_claimed(folder)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_claim_can_be_taken_again_after_its_folder_was_made_anew(folder):
    held = claim(folder)
    (folder / LOCK_NAME).unlink()
    again = claim(folder)
    assert again != held
    os.close(held)
    os.close(again)


def test_looking_makes_no_lock_where_there_is_none(tmp_path):
    assert is_claimed(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_folders_with_segments_that_nobody_holds_oldest_first(tmp_path, folder):
    second = folder.parent / "r1-a0"
    second.mkdir()
    (second / LOCK_NAME).touch()
    assert find_leftovers(tmp_path) == [folder]
    (second / "0.seg").touch()
    os.utime(folder, (2, 2))
    os.utime(second, (1, 1))
    assert find_leftovers(tmp_path) == [second, folder]
    held = claim(second)
    assert find_leftovers(tmp_path) == [folder]
    os.close(held)


def test_a_folder_without_journals_has_no_leftovers(tmp_path):
    assert find_leftovers(tmp_path / "missing") == []
