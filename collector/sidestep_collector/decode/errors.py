"""The two refusals that the collector answers in its own way, as leaves of the common tree.

VersionError
└── NewerVersionError    a frame of a newer sidestep; carries whom to answer
WireError
└── UnknownKeySetError   scalars whose key set this collector never saw; the stream is to rewind
"""

from __future__ import annotations

from sidestep_schemas.errors import VersionError, WireError


class NewerVersionError(VersionError):
    """A frame of a newer wire version. `run`, `rank`, `attempt`, `stream` say who sent it."""

    def __init__(self, message: str, *, version: int, run: bytes, rank: int, attempt: int, stream: bytes) -> None:
        super().__init__(message)
        self.version = version
        self.run = run
        self.rank = rank
        self.attempt = attempt
        self.stream = stream


class UnknownKeySetError(WireError):
    """A record of scalars at `seq` names the key set `key_set_id`, which its stream never declared here."""

    def __init__(self, message: str, *, key_set_id: int, seq: int) -> None:
        super().__init__(message)
        self.key_set_id = key_set_id
        self.seq = seq
