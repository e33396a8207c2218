"""MessagePack, the kinds that LLVM writes into a code object's metadata."""

from __future__ import annotations

from typing import Any


def unpack(data: bytes) -> Any:
    """Return the value that the bytes hold.

    Raises:
        ValueError: they end too early, or hold a kind that LLVM does not write.
    """
    try:
        return _value(data, 0)[0]
    except (IndexError, UnicodeDecodeError, TypeError, RecursionError):
        raise ValueError("its metadata is no MessagePack") from None


def _value(data: bytes, at: int) -> tuple[Any, int]:
    kind = data[at]
    at += 1
    if kind < 0x80:
        return kind, at
    if kind < 0x90:
        return _pairs(data, at, kind & 15)
    if kind < 0xA0:
        return _items(data, at, kind & 15)
    if kind < 0xC0:
        return data[at : at + (kind & 31)].decode(), at + (kind & 31)
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind], at
    if 0xCC <= kind <= 0xD3:
        size = 1 << (kind & 3)
        return int.from_bytes(data[at : at + size], "big", signed=kind >= 0xD0), at + size
    if kind in (0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF):
        width = {0xD9: 1, 0xDB: 4, 0xDD: 4, 0xDF: 4}.get(kind, 2)
        count, at = int.from_bytes(data[at : at + width], "big"), at + width
        if kind <= 0xDB:
            return data[at : at + count].decode(), at + count
        return _items(data, at, count) if kind <= 0xDD else _pairs(data, at, count)
    if kind >= 0xE0:
        return kind - 256, at
    raise ValueError(f"its metadata holds a MessagePack value of kind {kind:#x}, which is not known here")


def _items(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    out = []
    for _ in range(count):
        value, at = _value(data, at)
        out.append(value)
    return out, at


def _pairs(data: bytes, at: int, count: int) -> tuple[dict[Any, Any], int]:
    flat, at = _items(data, at, 2 * count)
    return dict(zip(flat[::2], flat[1::2], strict=True)), at
