"""What gfx11 instructions compute and numpy has no operation for, on arrays of lanes; one rounding where AMD says one.

Special values first: NaNs stay NaN, their payloads are numpy's; signed zeros and subnormals are kept (clang's default,
float_denorm_mode 3). rcp, exp, log, rsq and sqrt are correctly rounded here, but for fp64's own error; silicon's
v_rcp_f32 is within 1 ulp, so a kernel that uses it is bit-equal to this model only where silicon rounds correctly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def f32(bits: Array) -> Array:
    """Read uint32 bits as fp32."""
    return bits.view(np.float32)


def bits_of(values: Array) -> Array:
    """Return fp32 values' bits as uint32."""
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def bf16_to_f32(half: Array) -> Array:
    """Widen bf16 bits (uint32, low 16 used) to fp32, exactly."""
    return ((half & np.uint32(0xFFFF)) << np.uint32(16)).view(np.float32)


def f16_to_f32(half: Array) -> Array:
    """Widen fp16 bits (low 16 used) to fp32, exactly."""
    return (half & np.uint32(0xFFFF)).astype(np.uint16).view(np.float16).astype(np.float32)


def f16_bits(values: Array) -> Array:
    """Round to fp16, nearest even, subnormals kept; return the bits as uint32."""
    return values.astype(np.float16).view(np.uint16).astype(np.uint32)


def sum_to_odd(p: Array, c: Array) -> Array:
    """Add two fp64 arrays, rounding to odd: a later rounding to 24 bits or fewer is then as if it were the only one.

    Source: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE Trans. Computers 57 (2008).
    """
    s = p + c
    b = s - p
    error = (p - (s - b)) + (c - b)
    bits = s.view(np.int64)
    fix = np.isfinite(s) & (error != 0) & ((bits & 1) == 0)
    away = (error > 0) == (s > 0)
    return np.where(fix, np.where(away, bits + 1, bits - 1), bits).view(np.float64)


def fma(a: Array, b: Array, c: Array) -> Array:
    """Return a*b + c in fp32 with one rounding."""
    product = a.astype(np.float64) * b.astype(np.float64)  # exact: 48 bits
    product, c64 = np.broadcast_arrays(product, c.astype(np.float64))
    return sum_to_odd(np.ascontiguousarray(product), np.ascontiguousarray(c64)).astype(np.float32)


def fma_f16(a: Array, b: Array, c: Array) -> Array:
    """Return a*b + c of fp16 values (held in fp32) with one rounding to fp16, held in fp32."""
    product = a.astype(np.float64) * b.astype(np.float64)
    product, c64 = np.broadcast_arrays(product, c.astype(np.float64))
    total = sum_to_odd(np.ascontiguousarray(product), np.ascontiguousarray(c64))
    return total.astype(np.float16).astype(np.float32)


def dot2(a_low: Array, b_low: Array, a_high: Array, b_high: Array, c: Array) -> Array:
    """Return fma(a_high, b_high, fma(a_low, b_low, c)): the order of AMD's pseudo-code for V_DOT2_F32_BF16 and _F16.

    That silicon rounds after each product is not verified here (ROCm/rocm-systems#12056 reports otherwise).
    """
    return fma(a_high, b_high, fma(a_low, b_low, c))


def to_int(x: Array, low: int, high: int) -> Array:
    """Truncate toward zero and clamp to [low, high]; NaN gives 0; as uint32 bits."""
    whole = np.trunc(np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=float(high), neginf=float(low)))
    return np.clip(whole, low, high).astype(np.int64).astype(np.uint32)


def count_leading_zeros(x: Array) -> Array:
    """Return the number of zero bits above the highest set one, and 2**32-1 for 0."""
    exponent = np.frexp(x.astype(np.float64))[1].astype(np.uint32)
    return np.where(x == 0, np.uint32(0xFFFFFFFF), np.uint32(32) - exponent)


def count_sign_bits(x: Array) -> Array:
    """Return the number of leading bits that equal the sign bit, the sign bit counted, and 2**32-1 for 0 and -1."""
    return count_leading_zeros(x ^ (np.uint32(0) - (x >> np.uint32(31))))


def count_trailing_zeros(x: Array) -> Array:
    """Return the place of the lowest set bit, and 2**32-1 for 0."""
    x = np.atleast_1d(x)
    lowest = x & (~x + np.uint32(1))
    exponent = np.frexp(lowest.astype(np.float64))[1].astype(np.uint32)  # 0 for 0, else at least 1
    return np.where(x == 0, np.uint32(0xFFFFFFFF), exponent - np.uint32(1))


def reverse_bits(x: Array) -> Array:
    """Return the 32 bits in reverse order."""
    out = np.zeros_like(x)
    for i in range(32):
        out |= ((x >> np.uint32(i)) & np.uint32(1)) << np.uint32(31 - i)
    return out


def popcount(x: Array) -> Array:
    """Return the number of set bits."""
    shape = np.shape(x)
    octets = np.ascontiguousarray(x, dtype=np.uint32).view(np.uint8)
    return np.unpackbits(octets).reshape(*shape, 32).sum(-1).astype(np.uint32)
