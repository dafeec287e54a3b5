"""Keys of collectors and of those who connect to them: how they are written down, and what is said of a refusal.

A key is Curve25519, 32 bytes a half. Each is one line of text behind a prefix that says whose it is, so that one
cannot be taken for another; lines that begin with # are for people.

sidestep-collector-1:…   secret of a collector, <dir>/keys/collector.key
sidestep-key-1:…         what a client holds: the collector's public half, then its own secret
sidestep-public-1:…      public half of a client that may connect, <dir>/keys/clients/NAME.pub
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from sidestep_schemas.errors import ConfigError

KEY_VARIABLE: Final = "SIDESTEP_KEY"
COLLECTOR_PREFIX: Final = "sidestep-collector-1:"
CLIENT_PREFIX: Final = "sidestep-key-1:"
PUBLIC_PREFIX: Final = "sidestep-public-1:"
KEY_BYTES: Final = 32

_KIND = re.compile(r"sidestep-[a-z]+-\d+:")

#: How a handshake fails: the key is not allowed; one side uses keys and the other does not; it ends without a word,
#: as it does where the collector's public half is not the collector's.
Failure = Literal["key", "mechanism", "silence"]


@dataclass(frozen=True, slots=True)
class ClientKey:
    """What a client needs to connect.

    Attributes:
        collector: the collector's public half, 32 bytes.
        secret: the client's own secret, 32 bytes.
    """

    collector: bytes
    secret: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """As one line."""
        return write_key(CLIENT_PREFIX, self.collector + self.secret)


def read_client_key(given: str | os.PathLike[str]) -> ClientKey:
    """A client's key, from its text or from the file that holds it.

    Raises:
        ConfigError: there is no such file, or it holds something else. Never shows what it read.
    """
    text = os.fspath(given).strip()
    if _KIND.match(text):
        source = f"the key that {KEY_VARIABLE} or key= gives"
    else:
        source, text = text, read_key_file(Path(text).expanduser())
    both = parse_key(CLIENT_PREFIX, text, source)
    return ClientKey(both[:KEY_BYTES], both[KEY_BYTES:])


def read_key_file(path: Path) -> str:
    """The line of a key file that is the key.

    Raises:
        ConfigError: it cannot be read, or has no such line.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is no text"
        raise ConfigError(f"the key file {path} cannot be read ({why})") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(keys) != 1:
        raise ConfigError(f"{path} holds {len(keys)} lines that could be a key; it must be one")
    return keys[0]


def write_key(prefix: str, key: bytes) -> str:
    """Bytes of a key as text."""
    return prefix + base64.urlsafe_b64encode(key).decode("ascii").rstrip("=")


def parse_key(prefix: str, text: str, source: str) -> bytes:
    """Bytes of a key from its text.

    Args:
        prefix: the kind that is meant.
        text: one line.
        source: where it comes from, for the error.

    Raises:
        ConfigError: it is no key, or one of another kind.
    """
    size = 2 * KEY_BYTES if prefix == CLIENT_PREFIX else KEY_BYTES
    if text.startswith(prefix):
        try:
            key = base64.b64decode(text.removeprefix(prefix) + "=" * (-4 * size // 3 % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) == size:
            return key
    kind = _KIND.match(text)
    what = f"a key of another kind ({kind[0]})" if kind and kind[0] != prefix else "no key, or a part of one"
    raise ConfigError(f"{source} holds {what}; what is meant begins with {prefix}")


def why_refused(address: str, failure: Failure, *, has_key: bool) -> str:
    """What a failed handshake means, and what to do."""
    if failure == "key":
        return (
            f"the collector at {address} does not allow this key (unknown, or revoked): "
            f"have one made there (`sidestep keys new NAME`) and give it with {KEY_VARIABLE}"
        )
    if failure == "mechanism" and not has_key:
        return (
            f"the collector at {address} takes nobody without a key: "
            f"have one made there (`sidestep keys new NAME`) and give it with {KEY_VARIABLE}"
        )
    if failure == "mechanism":
        return (
            f"the collector at {address} uses no keys, and a key that is given is never left out: "
            f"start it with --require-keys, or take {KEY_VARIABLE} away"
        )
    if has_key:
        return (
            f"the key does not fit the collector at {address}: "
            "it was made for another, or for its former key, or that one uses none"
        )
    return f"what listens at {address} ends every connection: it wants a key ({KEY_VARIABLE}), or is no collector"
