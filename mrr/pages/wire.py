"""Framing between the decoder and its child: a JSON header behind its length, then raw bytes.

Nothing is unpickled, so a child that a hostile file has taken over can send numbers and pixels
only. Every function raises EOFError where the other end has gone, ValueError where a frame
makes no sense.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import IO, Any

_LENGTH = struct.Struct(">I")
_MAX_HEADER_BYTES = 64 * 1024


def send(stream: IO[bytes], header: dict[str, Any], payload: Iterable[bytes] = ()) -> None:
    """Write one frame; the header says how long the payload is, in whatever terms suit it."""
    encoded = json.dumps(header).encode()
    stream.write(_LENGTH.pack(len(encoded)) + encoded)
    for part in payload:
        stream.write(part)
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any]:
    """Read one header; the caller reads its payload with read_exactly."""
    (nbytes,) = _LENGTH.unpack(read_exactly(stream, _LENGTH.size))
    if nbytes > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {nbytes} bytes")
    try:
        header = json.loads(read_exactly(stream, nbytes))
    except RecursionError:
        raise ValueError("a header that is nested too deep") from None
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    return header


def read_exactly(stream: IO[bytes], nbytes: int) -> bytes:
    """Read nbytes, however the pipe cuts them up."""
    data = stream.read(nbytes)  # a buffered reader blocks until it has them all, or the end
    if len(data) < nbytes:
        raise EOFError
    return data
