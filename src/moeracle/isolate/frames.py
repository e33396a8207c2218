"""Messages between the judge and a kernel's process: the length in four bytes, then JSON."""

from __future__ import annotations

import json
import struct
from typing import Any

MOST_MESSAGE = 1 << 24


class WireError(ValueError):
    """A message that is none, or says what cannot be."""


def packed(message: dict[str, Any]) -> bytes:
    """Return a message's bytes."""
    body = json.dumps(message).encode()
    return struct.pack("<I", len(body)) + body


def unpacked(buffer: bytes) -> tuple[dict[str, Any] | None, bytes]:
    """Return the first message of a buffer, or None if it is not whole yet, and the bytes after it.

    Raises:
        WireError: it is too long, or not JSON.
    """
    if len(buffer) < 4:
        return None, buffer
    (size,) = struct.unpack_from("<I", buffer)
    if size > MOST_MESSAGE:
        raise WireError(f"a message of {size:,} bytes")
    if len(buffer) < 4 + size:
        return None, buffer
    try:
        message = json.loads(buffer[4 : 4 + size])
    except (ValueError, RecursionError):
        raise WireError("a message that is not JSON") from None
    if not isinstance(message, dict):
        raise WireError("a message that is no object")
    return message, buffer[4 + size :]
