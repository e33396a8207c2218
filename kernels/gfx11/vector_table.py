"""What each vector instruction computes from its sources: name -> kinds of the sources, kind of the result, function.

Kinds: f32, f16 (values, as fp32 arrays), u32, i32, u16, i16, u64, i64 (values), b32, b64 (bits, unsigned), acc (the
destination's old value as f32). Results of f-kinds are rounded once, by the function or by the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import integers as k
from . import numbers as n

U, I, F = np.uint32, np.int32, np.float32


class Operation(NamedTuple):
    """Kinds of the sources and of the result, and the function between them."""

    sources: tuple[str, ...]
    result: str
    compute: Callable[..., Any]


def _rounding(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: fn(x.astype(np.float64)).astype(F)


def _med3(a: Any, b: Any, c: Any) -> Any:
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def _ldexp(x: Any, e: Any) -> Any:
    return np.ldexp(x.astype(np.float64), np.clip(e, -400, 400)).astype(F)


VECTOR: dict[str, Operation] = {}


def _add(kinds: str, **functions: Callable[..., Any]) -> None:
    *sources, result = kinds.split()
    for name, fn in functions.items():
        VECTOR[name] = Operation(tuple(sources), result, fn)


_add(
    "b32 b32",
    V_MOV_B32=lambda x: x,
    V_NOT_B32=lambda x: ~x,
    V_BFREV_B32=n.reverse_bits,
    V_CLZ_I32_U32=n.count_leading_zeros,
    V_CLS_I32=n.count_sign_bits,
    V_CTZ_I32_B32=n.count_trailing_zeros,
)
_add("b16 b16", V_MOV_B16=lambda x: x, V_NOT_B16=lambda x: ~x)
_add(
    "b32 b32 b32",
    V_AND_B32=lambda a, b: a & b,
    V_OR_B32=lambda a, b: a | b,
    V_XOR_B32=lambda a, b: a ^ b,
    V_XNOR_B32=lambda a, b: ~(a ^ b),
    V_ADD_NC_U32=lambda a, b: a + b,
    V_SUB_NC_U32=lambda a, b: a - b,
    V_SUBREV_NC_U32=lambda a, b: b - a,
    V_LSHLREV_B32=lambda s, x: x << k.shift(s),
    V_LSHRREV_B32=lambda s, x: x >> k.shift(s),
    V_MUL_LO_U32=lambda a, b: a * b,
    V_MUL_HI_U32=k.high_product(False),
    V_MUL_U32_U24=lambda a, b: k.u24(a) * k.u24(b),
    V_MIN_U32=np.minimum,
    V_MAX_U32=np.maximum,
    V_BCNT_U32_B32=lambda a, b: n.popcount(a) + b,
    V_PACK_B32_F16=lambda a, b: (a & U(0xFFFF)) | (b << U(16)),
)
_add(
    "b16 b16 b16",
    V_AND_B16=lambda a, b: a & b,
    V_OR_B16=lambda a, b: a | b,
    V_XOR_B16=lambda a, b: a ^ b,
    V_ADD_NC_U16=lambda a, b: a + b,
    V_SUB_NC_U16=lambda a, b: a - b,
    V_MUL_LO_U16=lambda a, b: a * b,
    V_LSHLREV_B16=lambda s, x: x << (s & U(15)),
    V_LSHRREV_B16=lambda s, x: x >> (s & U(15)),
)
_add(
    "i16 i16 i16",
    V_ADD_NC_I16=lambda a, b: a + b,
    V_SUB_NC_I16=lambda a, b: a - b,
    V_ASHRREV_I16=lambda s, x: x >> (s & I(15)),
)
_add(
    "i32 i32 i32",
    V_ADD_NC_I32=lambda a, b: a + b,
    V_SUB_NC_I32=lambda a, b: a - b,
    V_MIN_I32=np.minimum,
    V_MAX_I32=np.maximum,
    V_ASHRREV_I32=lambda s, x: x >> k.shift(s),
    V_MUL_HI_I32=k.high_product(True),
    V_MUL_I32_I24=lambda a, b: (k.i24(a) * k.i24(b)).astype(I),
)
_add(
    "b32 b32 b32 b32",
    V_AND_OR_B32=lambda a, b, c: (a & b) | c,
    V_OR3_B32=lambda a, b, c: a | b | c,
    V_XOR3_B32=lambda a, b, c: a ^ b ^ c,
    V_XAD_U32=lambda a, b, c: (a ^ b) + c,
    V_ADD3_U32=lambda a, b, c: a + b + c,
    V_LSHL_ADD_U32=lambda x, s, c: (x << k.shift(s)) + c,
    V_ADD_LSHL_U32=lambda a, b, s: (a + b) << k.shift(s),
    V_LSHL_OR_B32=lambda x, s, c: (x << k.shift(s)) | c,
    V_BFI_B32=lambda m, a, b: (m & a) | (~m & b),
    V_BFE_U32=k.bfe_u,
    V_MAD_U32_U24=lambda a, b, c: k.u24(a) * k.u24(b) + c,
    V_PERM_B32=k.perm,
    V_ALIGNBIT_B32=k.alignbit,
    V_ALIGNBYTE_B32=lambda a, b, c: k.alignbit(a, b, (c & U(3)) * U(8)),
    V_MAX3_U32=lambda a, b, c: np.maximum(np.maximum(a, b), c),
    V_MIN3_U32=lambda a, b, c: np.minimum(np.minimum(a, b), c),
    V_MED3_U32=_med3,
)
_add(
    "i32 i32 i32 i32",
    V_MAD_I32_I24=k.mad_i24,
    V_MED3_I32=_med3,
    V_MAX3_I32=lambda a, b, c: np.maximum(np.maximum(a, b), c),
    V_MIN3_I32=lambda a, b, c: np.minimum(np.minimum(a, b), c),
)
_add("i32 b32 b32 i32", V_BFE_I32=k.bfe_i)
_add(
    "b32 b64 b64",
    V_LSHLREV_B64=lambda s, x: x << (s.astype(np.uint64) & np.uint64(63)),
    V_LSHRREV_B64=lambda s, x: x >> (s.astype(np.uint64) & np.uint64(63)),
)
_add("b32 i64 i64", V_ASHRREV_I64=lambda s, x: x >> (s.astype(np.int64) & np.int64(63)))
_add(
    "f32 f32",
    V_RCP_F32=lambda x: (1.0 / x.astype(np.float64)).astype(F),
    V_RCP_IFLAG_F32=lambda x: (1.0 / x.astype(np.float64)).astype(F),
    V_EXP_F32=_rounding(np.exp2),
    V_LOG_F32=_rounding(np.log2),
    V_SQRT_F32=_rounding(np.sqrt),
    V_RSQ_F32=_rounding(lambda x: 1.0 / np.sqrt(x)),
    V_TRUNC_F32=np.trunc,
    V_FLOOR_F32=np.floor,
    V_CEIL_F32=np.ceil,
    V_RNDNE_F32=np.rint,
    V_FRACT_F32=lambda x: x - np.floor(x),
)
_add(
    "f32 f32 f32",
    V_ADD_F32=lambda a, b: a + b,
    V_SUB_F32=lambda a, b: a - b,
    V_SUBREV_F32=lambda a, b: b - a,
    V_MUL_F32=lambda a, b: a * b,
    V_MIN_F32=np.fmin,
    V_MAX_F32=np.fmax,
)
_add(
    "f32 f32 f32 f32",
    V_FMA_F32=n.fma,
    V_MED3_F32=_med3,
    V_MAX3_F32=lambda a, b, c: np.fmax(np.fmax(a, b), c),
    V_MIN3_F32=lambda a, b, c: np.fmin(np.fmin(a, b), c),
    V_FMAAK_F32=n.fma,
    V_FMAMK_F32=n.fma,
)
_add("f32 f32 acc f32", V_FMAC_F32=n.fma)
_add("f32 i32 f32", V_LDEXP_F32=_ldexp)
_add(
    "f16 f16 f16",
    V_ADD_F16=lambda a, b: a + b,
    V_SUB_F16=lambda a, b: a - b,
    V_SUBREV_F16=lambda a, b: b - a,
    V_MUL_F16=lambda a, b: a * b,
    V_MIN_F16=np.fmin,
    V_MAX_F16=np.fmax,
)
_add("f16 f16 f16 f16", V_FMA_F16=n.fma_f16)
_add("i32 f32", V_CVT_F32_I32=lambda x: x.astype(F))
_add(
    "b32 f32",
    V_CVT_F32_U32=lambda x: x.astype(F),
    **{f"V_CVT_F32_UBYTE{i}": (lambda x, i=i: ((x >> U(8 * i)) & U(255)).astype(F)) for i in range(4)},
)
_add(
    "f32 b32",
    V_CVT_U32_F32=lambda x: n.to_int(x, 0, 2**32 - 1),
    V_CVT_I32_F32=lambda x: n.to_int(x, -(2**31), 2**31 - 1),
)
_add("f16 f32", V_CVT_F32_F16=lambda x: x)
_add("f32 f16", V_CVT_F16_F32=lambda x: x)
_add("u16 f16", V_CVT_F16_U16=lambda x: x.astype(F))
_add("i16 f16", V_CVT_F16_I16=lambda x: x.astype(F))
_add("i16 i32", V_CVT_I32_I16=lambda x: x)
_add("u16 b32", V_CVT_U32_U16=lambda x: x)
