"""Data recipes: bit patterns of activations, scales and biases, made to be hard in one way each.

    normal      bell-shaped, outputs about 1            outliers    a few columns 16 (fp16) or 64 (bf16) times larger
    cancelling  the second half of K undoes the first   wide        exponents spread over 32 (bf16) or 16 (fp16) binades
    subnormal   x, the scales or the output subnormal   codes16     every code in every nibble position
    integers    every order of summation is exact       onehot      reads single weights out
    samesign    integers, every product >= 0            stagnation  fp32 sums that stop growing at a rounding tie
    onehot2     reads single weights of w2 out          sweep       integers, and every column is reached
    allgates    every finite gate in turn

Patterns are made directly, or rounded once from few-bit fp32 values: no platform can disagree about them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.generator import FORMATS, Bits, Format, Stream, integer_bits, power_bits, round_bits
from .exact import GemmPlan

# What `subnormal` makes subnormal, by seed. PLAIN leaves this operand ordinary: another one is the subnormal one.
X_TINY, SCALES_TINY, OUTPUTS_TINY, PLAIN = 0, 1, 2, 3


def scale_exponent(K: int, spread: int = 2) -> int:
    """Return b so that scales of 2^b make outputs of about 1: 2^-b is about 2^spread * sqrt(K)."""
    return -((K.bit_length() + 1) // 2 + spread)


def activations(
    recipe: str,
    fmt: Format,
    rows: int,
    K: int,
    seed: int,
    *,
    plan: GemmPlan | None = None,
    variant: int = PLAIN,
    bits: int = 4,
) -> Bits:
    """Return the bit patterns [rows, K] of x under a recipe.

    Args:
        recipe: a data recipe's name.  fmt: the activation format.
        rows, K: shape.  seed: the case's.
        plan: what the exact recipes may hold.
        variant: what `subnormal` makes subnormal.
        bits: of the weight's codes.
    """
    stream = Stream(seed, "x")
    if plan is not None:
        return integers(stream, fmt, rows, K, plan, sweep=recipe == "sweep")
    if recipe == "subnormal":
        return _subnormal(stream, fmt, rows, K, variant, scale_exponent(K, bits - 2))
    return X_RECIPES.get(recipe, _normal)(stream, fmt, rows, K)


def bell(stream: Stream, fmt: Format, shape: tuple[int, ...], exponent: int = 0) -> Bits:
    """Return bell-shaped patterns, times 2^exponent."""
    values = stream.normal(shape, fine=fmt.mantissa == 23)
    return round_bits(values * np.float32(2.0**exponent) if exponent else values, fmt)


def spread_out(stream: Stream, fmt: Format, shape: tuple[int, ...], lo: int, hi: int) -> Bits:
    """Return patterns with random signs and mantissas and exponents uniform in lo..hi."""
    words = stream.bits(shape, 32).astype(np.int64)
    exponent = lo + (((words >> 11) & 0xFFFF) * (hi - lo + 1) >> 16)
    mantissa = (words & 0x3FF) << 13 >> (23 - fmt.mantissa)  # 10 random bits, the leading ones
    return ((words >> 31) * fmt.sign | (exponent + fmt.bias) << fmt.mantissa | mantissa).astype(fmt.uint)


def tiny(stream: Stream, fmt: Format, shape: tuple[int, ...], signed: bool = True, bits: int = 0) -> Bits:
    """Return subnormal patterns, none zero, of at most `bits` significant bits (0: as many as there are)."""
    words = stream.bits(shape, 32)
    field = np.uint32((1 << (bits or fmt.mantissa)) - 1)
    sign = (words >> np.uint32(31)) * np.uint32(fmt.sign if signed else 0)
    return (sign | np.maximum(words & field, np.uint32(1))).astype(fmt.uint)


def integers(stream: Stream, fmt: Format, rows: int, K: int, plan: GemmPlan, sweep: bool = False) -> Bits:
    """Return integers -amax..amax (0..amax if unsigned); with a chunk, one nonzero in each run of so many columns.

    With `sweep` that one moves by a step prime to the chunk from row to row, so that all columns have their turn.
    """
    amax, chunk = plan.amax, plan.chunk
    if chunk == 1:
        values = stream.below((rows, K), 2 * amax + 1 if plan.signed else amax + 1)
        return integer_bits(values - amax if plan.signed else values, 0, fmt)
    runs = -(-K // chunk)
    values = 1 + stream.below((rows, runs), amax)
    if plan.signed:
        values *= 1 - 2 * stream.below((rows, runs), 2)
    last = K - (runs - 1) * chunk  # the last run may be shorter
    place = stream.below((1 if sweep else rows, runs), chunk)
    if sweep:
        place = (place + np.arange(rows, dtype=np.int64)[:, None] * _prime_step(chunk)) % chunk
    place[:, -1] %= last
    out = np.zeros((rows, runs * chunk), np.int64)
    np.put_along_axis(out.reshape(rows, runs, chunk), place[:, :, None], values[:, :, None], 2)
    return integer_bits(out[:, :K], 0, fmt)


def _normal(stream: Stream, fmt: Format, rows: int, K: int) -> Bits:
    return bell(stream, fmt, (rows, K))


def _outliers(stream: Stream, fmt: Format, rows: int, K: int) -> Bits:
    values = stream.normal((rows, K))
    loud = np.zeros((1, K), bool)
    loud[0, stream.permutation(K)[: max(1, K // 64)]] = True
    factor = np.float32(16 if fmt.mantissa == 10 else 64)
    lone = stream.bits((rows, K), 8) == 0
    return round_bits(np.where(loud | lone, values * factor, values), fmt)


def _cancelling(stream: Stream, fmt: Format, rows: int, K: int) -> Bits:
    """x[K/2+i] = -x[i], or one ulp further: weights repeat after K/2, so sums grow and then vanish.

    Where K/2 is not a whole number of 8-column words, neighbours cancel instead.
    """
    half = K // 2
    first = bell(stream, fmt, (rows, half))
    second = (first ^ fmt.uint(fmt.sign)) + (stream.bits((rows, half), 8) & 1).astype(fmt.uint)
    out: Bits = np.zeros((rows, K), fmt.uint)
    if K % 16:
        out[:, 0 : 2 * half : 2], out[:, 1 : 2 * half : 2] = first, second
    else:
        out[:, :half], out[:, half:] = first, second
    return out


def _wide(stream: Stream, fmt: Format, rows: int, K: int) -> Bits:
    half = fmt.mantissa == 10
    base = stream.below((rows, 1), 7 if half else 32) - (6 if half else 16)
    spread = spread_out(stream, fmt, (rows, K), -8 if half else -16, 1 if half else 16)
    field = ((spread & (fmt.sign - 1)) >> fmt.mantissa).astype(np.int64)
    moved = np.maximum(field + base, 1)  # stay normal
    return (spread & (fmt.sign | (1 << fmt.mantissa) - 1)) | (moved << fmt.mantissa).astype(fmt.uint)


def _subnormal(stream: Stream, fmt: Format, rows: int, K: int, variant: int, b: int) -> Bits:
    if variant == X_TINY:
        return tiny(stream, fmt, (rows, K))
    if variant == SCALES_TINY:  # undo the scales, so that outputs are about 1
        return bell(stream, fmt, (rows, K), -fmt.lowest + b)
    if variant == OUTPUTS_TINY:  # scales of a few units: outputs of about 8 times the mean scale
        return bell(stream, fmt, (rows, K), 3 + b)
    return bell(stream, fmt, (rows, K))


def _prime_step(K: int) -> int:
    """A step prime to K, near the golden section of it."""
    return next(s for s in range(max(1, 618 * K // 1000), 0, -1) if math.gcd(s, K) == 1)


def _onehot(stream: Stream, fmt: Format, rows: int, K: int) -> Bits:
    """Row r is 1.0 at column (offset + r*step) mod K, with a step prime to K: K rows in a row visit every column."""
    column = (int(stream.below((1,), K)[0]) + np.arange(rows, dtype=np.int64) * _prime_step(K)) % K
    out: Bits = np.zeros((rows, K), fmt.uint)
    out[np.arange(rows), column] = power_bits(0, fmt)
    return out


def _onehot2(stream: Stream, fmt: Format, rows: int, K: int) -> Bits:
    """Row r is 1 at column r mod K, in every other run of K rows -1: `select` weights make a one-hot of it."""
    row = np.arange(rows)
    out: Bits = np.zeros((rows, K), fmt.uint)
    out[row, row % K] = power_bits(0, fmt) | ((row // K % 2) * fmt.sign).astype(fmt.uint)
    return out


def _stagnation(stream: Stream, fmt: Format, rows: int, K: int) -> Bits:
    """1, half its ulp, and 2^-24 elsewhere: the fp32 sum sticks to a tie of the stored format, the true sum does not.

    The 1 comes first in even rows and anywhere in odd ones.
    """
    out: Bits = np.full((rows, K), integer_bits(np.ones(1, np.int64), -24, fmt)[0], fmt.uint)
    row, first = np.arange(rows), stream.below((rows,), K)
    first[::2] = 0
    second = (first + 1 + stream.below((rows,), max(1, K - 1))) % K
    out[row, second] = power_bits(-fmt.mantissa - 1, fmt)
    out[row, first] = power_bits(0, fmt)
    return out


X_RECIPES: dict[str, Callable[[Stream, Format, int, int], Bits]] = {
    "outliers": _outliers,
    "cancelling": _cancelling,
    "wide": _wide,
    "onehot": _onehot,
    "onehot2": _onehot2,
    "stagnation": _stagnation,
}


def scales(
    recipe: str,
    fmt: Format,
    shape: tuple[int, ...],
    K: int,
    stream: Stream,
    variant: int = PLAIN,
    bits: int = 4,
) -> Bits:
    """Return the bit patterns [..., N, K/G] of an int4 or int8 weight's scales under a recipe.

    Args:
        recipe: a data recipe's name.  fmt: the activation format, which is the scales' too.
        shape: [..., N, K/G].
        K: length of the sums, which sets the size.
        stream: where the words come from.
        variant: what `subnormal` makes subnormal.
        bits: of a code: those of 8 are 16 times larger.
    """
    b = scale_exponent(K, bits - 2)
    if recipe == "cancelling":  # the second half of K must have the first half's scales
        own, gain = own_groups(shape[-1], K), 7 if fmt.mantissa == 10 else 4  # what cancelling takes away
        return np.tile(_around(stream, fmt, (*shape[:-1], own), b + gain), shape[-1] // own)
    if recipe == "wide":
        reach = 3 if fmt.mantissa == 10 else 8
        return spread_out(stream, fmt, shape, b - reach, b + reach) & fmt.uint(fmt.sign - 1)
    if recipe == "stagnation":
        return np.broadcast_to(power_bits(b + stream.below((*shape[:-1], 1), 3), fmt), shape)
    if recipe == "subnormal" and variant == X_TINY:
        return _around(stream, fmt, shape, b - fmt.lowest)
    if recipe == "subnormal" and variant in (SCALES_TINY, OUTPUTS_TINY):
        return tiny(stream, fmt, shape, signed=False, bits=0 if variant == SCALES_TINY else 3)
    return _around(stream, fmt, shape, b)


def int8_scales(recipe: str, act: Format, shape: tuple[int, ...], K: int, stream: Stream, variant: int) -> Bits:
    """Return the fp32 patterns [V, K/G] of an int8 weight's scales, for activations of format `act`; as `scales`."""
    fmt, b, half = FORMATS["fp32"], scale_exponent(K, 6), act.mantissa == 10
    if recipe == "wide":
        return spread_out(stream, fmt, shape, b - 6, b + 6) & fmt.uint(fmt.sign - 1)
    if recipe == "subnormal" and variant == X_TINY:
        return _around(stream, fmt, shape, b - act.lowest)
    if recipe == "subnormal" and variant == SCALES_TINY:
        return tiny(stream, fmt, shape, signed=False)
    if recipe == "subnormal" and variant == OUTPUTS_TINY:  # outputs are 2^7 times the scales
        return _around(stream, fmt, shape, -24) if half else tiny(stream, fmt, shape, signed=False, bits=14)
    return scales(recipe, fmt, shape, K << 8, stream)  # codes 16 times larger than int4's


def own_groups(groups: int, K: int) -> int:
    """Return after how many groups of K the scales and zero points of `cancelling` repeat.

    Where neighbours cancel (K % 16) and a group may part them (G odd), all groups are alike.
    """
    parted = K % 16 != 0 and (K // groups) % 2 != 0
    return groups // 2 if groups % 2 == 0 and not parted else 1


def power_scales(stream: Stream, fmt: Format, shape: tuple[int, ...], exponent: Any, spread: int) -> Bits:
    """Return the patterns of 2^exponent times 1, 2, … 2^(spread-1); `exponent` may be an array that broadcasts."""
    return np.broadcast_to(power_bits(exponent + stream.below(shape, spread), fmt), shape)


def _around(stream: Stream, fmt: Format, shape: tuple[int, ...], exponent: int) -> Bits:
    """Scales in [2^(exponent-1), 2^(exponent+1)) with every mantissa bit random."""
    words: NDArray[Any] = stream.bits(shape, fmt.width)
    field = fmt.uint((1 << (fmt.mantissa + 1)) - 1)
    return (words & field) + power_bits(exponent - 1, fmt)
