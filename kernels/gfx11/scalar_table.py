"""What each scalar instruction computes, on uint32 [waves]: two operands and scc -> result and new scc."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import numbers as n

Array = NDArray[Any]
U, I = np.uint32, np.int32
Binary = Callable[[Array, Array, Array], tuple[Array, Array]]


def signed(x: Array) -> Array:
    return x.view(I)


def floats(x: Array) -> Array:
    return x.view(np.float32)


def _carry(total: Array) -> Array:
    return (total < 0) | (total >> 32 > 0)


def _add_u(a: Array, b: Array, scc: Array) -> tuple[Array, Array]:
    total = a.astype(np.int64) + b
    return total.astype(U), _carry(total)


def _sub_u(a: Array, b: Array, scc: Array) -> tuple[Array, Array]:
    total = a.astype(np.int64) - b
    return (total & 0xFFFFFFFF).astype(U), _carry(total)


def _addc(a: Array, b: Array, scc: Array) -> tuple[Array, Array]:
    total = a.astype(np.int64) + b + scc
    return (total & 0xFFFFFFFF).astype(U), _carry(total)


def _subb(a: Array, b: Array, scc: Array) -> tuple[Array, Array]:
    total = a.astype(np.int64) - b - scc
    return (total & 0xFFFFFFFF).astype(U), _carry(total)


def _overflow(sign: int) -> Binary:
    def run(a: Array, b: Array, scc: Array) -> tuple[Array, Array]:
        total = signed(a).astype(np.int64) + sign * signed(b).astype(np.int64)
        return (total & 0xFFFFFFFF).astype(U), (total > 2**31 - 1) | (total < -(2**31))

    return run


def _logic(fn: Callable[[Array, Array], Array]) -> Binary:
    def run(a: Array, b: Array, scc: Array) -> tuple[Array, Array]:
        out = fn(a, b)
        return out, out != 0

    return run


def _keep(fn: Callable[[Array, Array], Array]) -> Binary:
    return lambda a, b, scc: (fn(a, b), scc)


def shift_of(b: Array, bits: int = 32) -> Array:
    return b & b.dtype.type(bits - 1)


def _bfe_u(a: Array, b: Array) -> Array:
    start, width = (b & U(31)).astype(np.uint64), ((b >> U(16)) & U(127)).astype(np.uint64)
    return ((a.astype(np.uint64) >> start) & ((np.uint64(1) << width) - np.uint64(1))).astype(U)


def _bfe_i(a: Array, b: Array) -> Array:
    width = ((b >> U(16)) & U(127)).astype(np.int64)
    field = _bfe_u(a, b).astype(np.int64)
    sign = np.int64(1) << np.maximum(width - 1, 0)
    return (np.where(width == 0, 0, (field ^ sign) - sign) & 0xFFFFFFFF).astype(U)


def _wideshift_of(b: Array) -> Array:
    return b.astype(np.uint64) & np.uint64(63)


def _choose(first: Callable[[Array, Array], Array], view: Callable[[Array], Array]) -> Binary:
    def run(a: Array, b: Array, scc: Array) -> tuple[Array, Array]:
        chosen = first(view(a), view(b))
        return np.where(chosen, a, b), chosen

    return run


def _float(fn: Callable[[Array, Array], Array]) -> Binary:
    return lambda a, b, scc: (n.bits_of(fn(floats(a), floats(b))), scc)


def _shift_add(count: int) -> Binary:
    return lambda a, b, scc: _add_u(a << U(count), b, scc)


def _rounding(fn: Callable[[Array], Array]) -> Callable[[Array, Array], tuple[Array, Array]]:
    return lambda a, scc: (n.bits_of(fn(floats(a))), scc)


def _pack(a: Array, b: Array) -> Array:
    return (a & U(0xFFFF)) | (b << U(16))


TWO: dict[str, Binary] = {
    "ADD_U32": _add_u,
    "SUB_U32": _sub_u,
    "ADD_I32": _overflow(1),
    "SUB_I32": _overflow(-1),
    "ADDC_U32": _addc,
    "SUBB_U32": _subb,
    "AND_B32": _logic(lambda a, b: a & b),
    "OR_B32": _logic(lambda a, b: a | b),
    "XOR_B32": _logic(lambda a, b: a ^ b),
    "NAND_B32": _logic(lambda a, b: ~(a & b)),
    "NOR_B32": _logic(lambda a, b: ~(a | b)),
    "XNOR_B32": _logic(lambda a, b: ~(a ^ b)),
    "AND_NOT1_B32": _logic(lambda a, b: a & ~b),
    "OR_NOT1_B32": _logic(lambda a, b: a | ~b),
    "LSHL_B32": _logic(lambda a, b: a << shift_of(b)),
    "LSHR_B32": _logic(lambda a, b: a >> shift_of(b)),
    "ASHR_I32": _logic(lambda a, b: (signed(a) >> signed(shift_of(b))).view(U)),
    "BFE_U32": _logic(_bfe_u),
    "BFE_I32": _logic(_bfe_i),
    "BFM_B32": _keep(lambda a, b: ((U(1) << shift_of(a)) - U(1)) << shift_of(b)),
    "MUL_I32": _keep(lambda a, b: a * b),
    "MUL_HI_U32": _keep(lambda a, b: ((a.astype(np.uint64) * b) >> np.uint64(32)).astype(U)),
    "MUL_HI_I32": _keep(lambda a, b: ((signed(a).astype(np.int64) * signed(b)) >> 32 & 0xFFFFFFFF).astype(U)),
    "CSELECT_B32": lambda a, b, scc: (np.where(scc, a, b), scc),
    "PACK_LL_B32_B16": _keep(_pack),
    "MIN_I32": _choose(lambda a, b: a < b, signed),
    "MAX_I32": _choose(lambda a, b: a > b, signed),
    "MIN_U32": _choose(lambda a, b: a < b, lambda x: x),
    "MAX_U32": _choose(lambda a, b: a > b, lambda x: x),
    "ABSDIFF_I32": _logic(lambda a, b: (np.abs(signed(a).astype(np.int64) - signed(b)) & 0xFFFFFFFF).astype(U)),
    **{f"LSHL{i}_ADD_U32": _shift_add(i) for i in range(1, 5)},
    "ADD_F32": _float(lambda a, b: a + b),
    "SUB_F32": _float(lambda a, b: a - b),
    "MUL_F32": _float(lambda a, b: a * b),
    "MIN_F32": _float(np.fmin),
    "MAX_F32": _float(np.fmax),
}
TWO_WIDE: dict[str, Binary] = {
    "AND_B64": _logic(lambda a, b: a & b),
    "OR_B64": _logic(lambda a, b: a | b),
    "XOR_B64": _logic(lambda a, b: a ^ b),
    "AND_NOT1_B64": _logic(lambda a, b: a & ~b),
    "CSELECT_B64": lambda a, b, scc: (np.where(scc, a, b), scc),
    "LSHL_B64": _logic(lambda a, b: a << _wideshift_of(b)),
    "LSHR_B64": _logic(lambda a, b: a >> _wideshift_of(b)),
    "ASHR_I64": _logic(lambda a, b: (a.view(np.int64) >> _wideshift_of(b).view(np.int64)).view(np.uint64)),
}
NARROW_SECOND = ("LSHL_B64", "LSHR_B64", "ASHR_I64")
ONE: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "MOV_B32": lambda a, scc: (a, scc),
    "MOV_B64": lambda a, scc: (a, scc),
    "NOT_B32": lambda a, scc: (~a, ~a != 0),
    "BREV_B32": lambda a, scc: (n.reverse_bits(a), scc),
    "SEXT_I32_I8": lambda a, scc: ((((a & U(255)) ^ U(128)) - U(128)), scc),
    "SEXT_I32_I16": lambda a, scc: ((((a & U(0xFFFF)) ^ U(0x8000)) - U(0x8000)), scc),
    "ABS_I32": lambda a, scc: (np.abs(signed(a).astype(np.int64)).astype(U), a != 0),
    "BCNT1_I32_B32": lambda a, scc: (n.popcount(a), n.popcount(a) != 0),
    "CLZ_I32_U32": lambda a, scc: (n.count_leading_zeros(a), scc),
    "CLS_I32": lambda a, scc: (n.count_sign_bits(a), scc),
    "CTZ_I32_B32": lambda a, scc: (n.count_trailing_zeros(a), scc),
    **{
        f"{name}_F32": _rounding(fn)
        for name, fn in (("TRUNC", np.trunc), ("FLOOR", np.floor), ("CEIL", np.ceil), ("RNDNE", np.rint))
    },
    "CVT_F32_U32": lambda a, scc: (n.bits_of(a.astype(np.float32)), scc),
    "CVT_F32_I32": lambda a, scc: (n.bits_of(signed(a).astype(np.float32)), scc),
    "CVT_U32_F32": lambda a, scc: (n.to_int(floats(a), 0, 2**32 - 1), scc),
    "CVT_I32_F32": lambda a, scc: (n.to_int(floats(a), -(2**31), 2**31 - 1), scc),
}
RELATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "EQ": lambda a, b: a == b,
    "LG": lambda a, b: a != b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
}
