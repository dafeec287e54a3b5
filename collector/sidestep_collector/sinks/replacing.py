"""Files that are replaced as a whole, and what all sinks of such files have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sidestep_collector.blocks import Batch


class FileSink(Protocol):
    """A sink whose files depend on what was recorded alone, so that writing a batch again changes nothing."""

    def write(self, batch: Batch) -> None:
        """Writes the files of a batch.

        Raises:
            OSError: a file cannot be written. Call again with the same batch.
        """
        ...


def replace(file: Path, content: bytes) -> None:
    """Writes a file beside its place and renames it: a reader sees the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(file)
