"""exp in integers with proven bounds, and what follows from it: silu, sigmoid and softmax, correctly rounded to fp32.

No math library is asked: their last bits differ from machine to machine. Each function encloses its exact value between
two rational numbers and rounds both ends; where they disagree it asks for twice the bits (Ziv's test). It ends, since
e^x is irrational for every rational x but 0, so the exact value is never halfway between two floats.
Sources: Ziv 1991, doi.org/10.1145/114697.116813; Lindemann 1882 for the irrationality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import torch

from .rational import nearest

FIRST_BITS = 96
GUARD = 32
UNDERFLOWS = -200  # 200 * e^-200 < 2^-280: silu of anything below rounds to -0 in fp32
SATURATES = 200  # and 1 + e^-200 is 1, to far more bits than a gate has


@lru_cache(maxsize=64)
def ln2_bounds(bits: int) -> tuple[int, int]:
    """Return whole numbers lo <= ln(2) * 2^bits <= hi, from ln 2 = sum 2 / ((2i+1) 3^(2i+1))."""
    total, power, i = 0, (2 << bits) // 3, 0
    while power:
        total += power // (2 * i + 1)
        power //= 9
        i += 1
    # Each of the i terms was cut twice, each time by less than one; the rest of the series is below one.
    return total, total + 2 * i + 2


def exp_bounds(x: Fraction, bits: int) -> tuple[int, int]:
    """Return whole numbers lo <= e^x * 2^bits <= hi.

    e^x = 2^n e^r with r = x - n ln 2 in [0, 1); e^r by its Taylor series, cut downwards and upwards.

    Args:
        x: |x| up to some thousands.
        bits: of the fraction; the bounds are a few units of 2^-bits apart, times e^x where that is large.
    """
    n = math.floor(float(x) / math.log(2))
    work = bits + max(n, 0) + GUARD
    low2, high2 = ln2_bounds(work)
    scaled_x = Fraction(x) * (1 << work)
    while True:
        r_low = math.floor(scaled_x) - (n * high2 if n >= 0 else n * low2)
        r_high = math.ceil(scaled_x) - (n * low2 if n >= 0 else n * high2)
        if r_low >= 0:
            break
        n -= 1  # the float estimate was one too high
    low, high, term_low, term_high, i = 1 << work, 1 << work, 1 << work, 1 << work, 0
    while term_low or term_high > 1:
        i += 1
        term_low = (term_low * r_low >> work) // i
        term_high = -(-term_high * r_high // (i << work))
        low, high = low + term_low, high + term_high
    high += 2  # later terms: each is below half the one before, which was at most one
    shift = bits - work + n
    if shift >= 0:
        return low << shift, high << shift
    return low >> -shift, -(-high >> -shift)


def silu_fp32(gate: float) -> float:
    """Return gate / (1 + e^-gate), correctly rounded to fp32.

    Args:
        gate: any float that fp32 holds; +-0 stays, -inf gives -0, +inf gives +inf.
    """
    if math.isnan(gate) or gate == 0 or gate > SATURATES:
        return gate
    return -0.0 if gate < UNDERFLOWS else _silu(gate)


@lru_cache(maxsize=1 << 17)  # not around silu_fp32: a cache takes -0 for +0
def _silu(gate: float) -> float:
    exact, bits = Fraction(gate), FIRST_BITS
    while True:
        low, high = exp_bounds(-exact, bits)
        one = 1 << bits
        ends = [nearest(exact * Fraction(one, one + e), torch.float32) for e in (low, high)]
        if ends[0] == ends[1]:
            return ends[0]
        bits *= 2


def sigmoid_fp32(x: Fraction | float) -> float:
    """Return 1 / (1 + e^-x), correctly rounded to fp32.

    Args:
        x: finite.
    """
    exact, bits = Fraction(x), FIRST_BITS
    if not exact:
        return 0.5
    if abs(exact) > SATURATES:
        return 1.0 if exact > 0 else 0.0
    while True:
        low, high = exp_bounds(-exact, bits)
        one = 1 << bits
        ends = [nearest(Fraction(one, one + e), torch.float32) for e in (low, high)]
        if ends[0] == ends[1]:
            return ends[0]
        bits *= 2


def softmax_fp32(logits: Sequence[float]) -> list[float]:
    """Return the softmax of one row, each score correctly rounded to fp32.

    Args:
        logits: any floats. A NaN or +inf anywhere, or -inf everywhere: every score is 0. -inf beside finite: 0 there.
    """
    top = max(logits)
    if not all(l < math.inf for l in logits) or top == -math.inf:  # NaN is not below infinity
        return [0.0] * len(logits)
    exact = [None if l == -math.inf else Fraction(l) - Fraction(top) for l in logits]
    known: dict[Fraction, float] = {}
    bits = FIRST_BITS
    while True:
        bounds = {d: exp_bounds(d, bits) for d in set(exact) if d is not None}
        low = sum(bounds[d][0] for d in exact if d is not None)
        high = sum(bounds[d][1] for d in exact if d is not None)
        for d, (e_low, e_high) in bounds.items():
            # The score itself is in the sum: e / (e + others).
            least = Fraction(e_low, e_low + high - e_high) if e_low else Fraction(0)
            most = Fraction(e_high, e_high + low - e_low)
            ends = nearest(least, torch.float32), nearest(most, torch.float32)
            if ends[0] == ends[1]:
                known[d] = ends[0]
        if len(known) == len(bounds):
            return [0.0 if d is None else known[d] for d in exact]
        bits *= 2
