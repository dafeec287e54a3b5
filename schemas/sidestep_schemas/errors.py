"""The error tree. Every error that sidestep raises on purpose is a leaf of this tree.

SidestepError
├── UsageError           a call or a command line that cannot be meant
├── ConfigError          a setting that is unknown or out of range
├── ProfileError         a profile of metrics that cannot be used, or is unknown
├── MissingExtraError    an optional part is not installed
├── AddressError         an address that cannot be bound, reached or is refused
├── FolderError          a data folder that cannot be written or is taken by another collector
├── StoreWriteError      a commit that did not reach the disk; nothing of it is visible
├── VersionError         data written by a version that this one does not read
├── WireError            bytes from a socket that are no frame of ours
└── SegmentError         a journal file that cannot be read

Each carries the exit code that the command line ends with.
"""

from __future__ import annotations


class SidestepError(Exception):
    """Root of the tree. `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(SidestepError):
    """A call or a command line that cannot be meant."""

    exit_code = 2


class ConfigError(SidestepError):
    """A setting that is unknown, of the wrong type or out of range."""

    exit_code = 2


class ProfileError(SidestepError):
    """A profile of metrics that cannot be used, or is unknown."""

    exit_code = 2


class MissingExtraError(SidestepError):
    """An optional part of sidestep is not installed."""

    exit_code = 3


class AddressError(SidestepError):
    """An address that cannot be bound, cannot be reached, or is refused."""

    exit_code = 4


class FolderError(SidestepError):
    """A data folder that cannot be written, or that another collector holds."""

    exit_code = 5


class StoreWriteError(SidestepError):
    """A commit or a merge that did not reach the disk (full, say). Nothing of it is visible; it may be tried again."""

    exit_code = 5


class VersionError(SidestepError):
    """Data or a peer of a version that this one does not read."""

    exit_code = 6


class WireError(SidestepError):
    """Bytes that came over a socket and are no frame of ours."""


class SegmentError(SidestepError):
    """A journal file that cannot be read as one."""
