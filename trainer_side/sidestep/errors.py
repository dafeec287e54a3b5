"""The errors a script may meet: those of the shared tree that the trainer side raises, and only before training.

After `init` nothing raises into the loop: what goes wrong is counted and said once through `warnings`.
"""

from __future__ import annotations

from sidestep_schemas.errors import (
    AddressError,
    ConfigError,
    FolderError,
    MissingExtraError,
    SegmentError,
    SidestepError,
    UsageError,
    VersionError,
)

__all__ = [
    "AddressError",
    "ConfigError",
    "FolderError",
    "MissingExtraError",
    "SegmentError",
    "SidestepError",
    "SidestepWarning",
    "UsageError",
    "VersionError",
]


class SidestepWarning(UserWarning):
    """Something could not be recorded; training goes on. Said once for each cause."""
