"""Integer operations of vector instructions that numpy has no name for, on uint32 or int32 arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

U, I = np.uint32, np.int32


def shift(x: Any) -> Any:
    return x & x.dtype.type(31)


def bfe_u(x: Any, start: Any, width: Any) -> Any:
    one = np.uint64(1)
    return (
        (x.astype(np.uint64) >> shift(start).astype(np.uint64)) & ((one << shift(width).astype(np.uint64)) - one)
    ).astype(U)


def bfe_i(x: Any, start: Any, width: Any) -> Any:
    width = shift(width).astype(np.int64)
    field = bfe_u(x.view(U), start, width.astype(U)).astype(np.int64)
    sign = np.int64(1) << np.maximum(width - 1, 0)
    return np.where(width == 0, 0, (field ^ sign) - sign).astype(I)


def high_product(signed: bool) -> Callable[[Any, Any], Any]:
    wide = np.int64 if signed else np.uint64
    return lambda a, b: ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(I if signed else U)


def perm(high: Any, low: Any, select: Any) -> Any:
    """V_PERM_B32: each byte of `select` picks one of the eight bytes of {high, low}, or a constant."""
    both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    out = np.zeros(np.broadcast_shapes(both.shape, select.shape), U)
    for i in range(4):
        pick = (select >> U(8 * i)) & U(0xFF)
        byte = ((both >> (np.minimum(pick, 7).astype(np.uint64) * np.uint64(8))) & np.uint64(0xFF)).astype(U)
        if np.any((pick > 7) & (pick < 12)):
            raise ValueError("v_perm_b32: sign-byte selectors 8..11 are not modelled")
        out |= np.where(pick == 12, U(0), np.where(pick > 12, U(0xFF), byte)) << U(8 * i)
    return out


def alignbit(high: Any, low: Any, count: Any) -> Any:
    both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    return (both >> shift(count).astype(np.uint64)).astype(U)


def i24(x: Any) -> Any:
    return ((x.astype(np.int64) & 0xFFFFFF) ^ 0x800000) - 0x800000


def u24(x: Any) -> Any:
    return x & U(0xFFFFFF)


def mad_i24(a: Any, b: Any, c: Any) -> Any:
    return (i24(a) * i24(b) + c.astype(np.int64)).astype(I)
