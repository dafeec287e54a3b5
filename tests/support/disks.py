"""Disks of a test's own: a file with a file system in it, mounted, that can be frozen and thawed. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_TOOLS = ("mkfs.ext4", "mount", "umount", "fsfreeze")


@contextlib.contextmanager
def mounted(folder: Path, megabytes: int = 64) -> Iterator[Path]:
    """A file system of its own at `folder`; skips the test where none can be had."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"no file system can be made here: {', '.join(missing) or 'only root can mount one'}")
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    _run("mkfs.ext4", "-q", str(image))
    folder.mkdir()
    if subprocess.run(("mount", "-o", "loop", image, folder), capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        thaw(folder)
        _run("umount", "-l", str(folder))
        image.unlink()


def freeze(folder: Path) -> None:
    """From now on whoever writes to the file system waits, without being told."""
    _run("fsfreeze", "--freeze", str(folder))


def thaw(folder: Path) -> None:
    """Let those who wait go on; nothing where nobody does."""
    subprocess.run(("fsfreeze", "--unfreeze", folder), capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
