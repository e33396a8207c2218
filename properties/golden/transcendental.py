"""exp in integers with proven bounds, and what follows from it: activations, sigmoid and softmax, rounded once to fp32.

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

from moeracle.ref.activation import Activation

from .rational import nearest

FIRST_BITS = 96
GUARD = 32
UNDERFLOWS = -200  # 200 * e^-200 < 2^-280: silu of anything below rounds to -0 in fp32
SATURATES = 200  # and 1 + e^-200 is 1, to far more bits than a gate has
GELU_ENDS = 15  # 15 * Phi(-15) < 2^-163, and with tanh it is less


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


def activated_fp32(gate: float, how: Activation) -> float:
    """Return what an activation makes of a gate, before any limit, correctly rounded to fp32.

    Args:
        gate: any float that fp32 holds; +-0 stays, -inf gives -0, +inf gives +inf. relu2 gives +0 for both.
        how: its kind and its alpha are read, alpha as the fp64 number that it is.
    """
    if math.isnan(gate):
        return gate
    if how.kind == "relu2":
        return nearest(Fraction(gate) ** 2, torch.float32) if 0 < gate < math.inf else max(gate, 0.0)
    ends = (UNDERFLOWS, SATURATES) if how.kind == "silu" else (-GELU_ENDS, GELU_ENDS)
    if gate == 0 or gate > ends[1]:
        return gate
    return -0.0 if gate < ends[0] else _activated(gate, how)


@lru_cache(maxsize=1 << 17)  # not around activated_fp32: a cache takes -0 for +0
def _activated(gate: float, how: Activation) -> float:
    exact, bits = Fraction(gate), FIRST_BITS
    factor = {"silu": _sigmoid_of, "gelu": _normal_of, "gelu_tanh": _tanh_of}[how.kind]
    while True:
        ends = [nearest(exact * f, torch.float32) for f in factor(exact, how.alpha, bits)]
        if ends[0] == ends[1]:
            return ends[0]
        bits *= 2


Bounds = tuple[Fraction, Fraction]


def _sigmoid_of(gate: Fraction, alpha: float, bits: int) -> Bounds:
    low, high = exp_bounds(-gate * Fraction(alpha), bits)
    one = 1 << bits
    return Fraction(one, one + high), Fraction(one, one + low)


def _tanh_of(gate: Fraction, alpha: float, bits: int) -> Bounds:
    """(1 + tanh w) / 2 is sigma(2w); w lies between two numbers, as the root of 2/pi does."""
    inner = 2 * (gate + Fraction(44715, 1_000_000) * gate**3)
    ends = [inner * root for root in roots_of_two_over_pi(bits)]
    bounds = [_sigmoid_of(end, 1.0, bits) for end in ends]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def _normal_of(gate: Fraction, alpha: float, bits: int) -> Bounds:
    """Phi(x) = 1/2 + e^(-x^2/2) / sqrt(2 pi) · (x + x^3/3 + x^5/15 + …): no two terms cancel."""
    x, one = abs(gate), 1 << bits
    square = x * x
    scaled_square = math.floor(square * one), math.ceil(square * one)
    low = total_low = math.floor(x * one)
    high = total_high = math.ceil(x * one)
    n = 1
    while high > 1 or n < 2 * square:  # from there on each term is below half the one before
        n += 2
        low = low * scaled_square[0] // (n * one)
        high = -(-high * scaled_square[1] // (n * one))
        total_low, total_high = total_low + low, total_high + high
    total_high += 2
    e_low, e_high = exp_bounds(-square / 2, bits)
    root_low, root_high = (root / 2 for root in roots_of_two_over_pi(bits))  # 1 / sqrt(2 pi)
    half = Fraction(1, 2)
    low_tail = Fraction(e_low * total_low, one * one) * root_low
    high_tail = Fraction(e_high * total_high, one * one) * root_high
    return (half + low_tail, half + high_tail) if gate > 0 else (max(half - high_tail, Fraction(0)), half - low_tail)


@lru_cache(maxsize=16)
def roots_of_two_over_pi(bits: int) -> Bounds:
    """Return fractions below and above sqrt(2/pi), some units of 2^-bits apart; pi by Machin's formula."""
    work = bits + GUARD
    sums = []
    for x in (5, 239):  # atan(1/x) = 1/x - 1/(3 x^3) + …, each term cut downwards
        term, total, i = (1 << work) // x, 0, 0
        while term:
            total += (-1) ** i * (term // (2 * i + 1))
            term //= x * x
            i += 1
        sums.append((total, 2 * i + 2))
    pi, slack = 4 * (4 * sums[0][0] - sums[1][0]), 4 * (4 * sums[0][1] + sums[1][1])
    one = 1 << work
    return (
        Fraction(math.isqrt((2 * one**3) // (pi + slack)), one),
        Fraction(math.isqrt((2 * one**3) // (pi - slack)) + 2, one),
    )


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
