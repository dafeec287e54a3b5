"""Bytes that were no frame of ours: a bounded sample of them is kept to be looked at."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

_SAMPLES: Final = 32
_BYTES: Final = 4096


class Quarantine:
    """Keeps the first bytes of the first few strange messages.

    Args:
        folder: where they go; made when the first comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept = len(list(folder.glob("*.bin"))) if folder.is_dir() else 0

    def keep(self, data: bytes) -> bool:
        """Keep a sample; False when there are enough, or no disk takes it."""
        if self._kept >= _SAMPLES:
            return False
        self._kept += 1
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = hashlib.sha256(data).hexdigest()[:16]
            (self._folder / f"{name}.bin").write_bytes(data[:_BYTES])
        except OSError:
            return False
        return True
