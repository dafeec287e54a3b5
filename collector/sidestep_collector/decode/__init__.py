"""Decode: from bytes of the network to typed records.

`decode_frame` opens a message, `Decoder` turns the record ranges of many streams into blocks of numpy arrays
and single items. Nothing here trusts a byte: every field has a type and a bound before memory is taken for
it. The room opens no socket and no file, and knows nothing of watermarks: which records are new is said by
the caller (`skip`).
"""

from __future__ import annotations

from sidestep_collector.decode.decoder import Decoded, Decoder
from sidestep_collector.decode.errors import NewerVersionError, UnknownKeySetError
from sidestep_collector.decode.frame import Frame, decode_frame

__all__ = ["Decoded", "Decoder", "Frame", "NewerVersionError", "UnknownKeySetError", "decode_frame"]
