"""Matrix units bit by bit: hand-worked sums, a slow exact model in Fractions, special values, and models told apart."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
import torch

from moeracle.ref.bitmodels.tensor_core import (
    AMPERE,
    CDNA3,
    HOPPER,
    TENSOR_CORES,
    TensorCore,
    fused_dot,
)
from support.sums import bits, draw, float_bits, one

BF16, FP16 = torch.bfloat16, torch.float16
EMIN = {BF16: -126, FP16: -14}


# A slow model that shares nothing with the fast one: exact fractions, one output at a time.


def log2_floor(x):
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if x >= Fraction(2) ** e else e - 1


def truncated(x, unit):
    return math.trunc(x / unit) * unit


def floored(x, unit):
    return math.floor(x / unit) * unit


def to_fp32(x, store):
    if x == 0:
        return 0.0
    unit = Fraction(2) ** (max(log2_floor(abs(x)), -126) - 23)
    n = truncated(x, unit) if store == "rtz" else round(x / unit) * unit  # Fraction rounds half to even
    if abs(n) >= Fraction(2) ** 128:
        return math.copysign(math.inf, x)
    return float(n) if n else math.copysign(0.0, x) if store == "rne" else 0.0


def slow(a, w, core, acc=0.0, dtype=BF16):
    for k in range(0, len(a), core.products):
        pairs = [(Fraction(x), Fraction(y)) for x, y in list(zip(a, w, strict=True))[k : k + core.products]]
        terms = []
        for x, y in pairs:
            if x * y:
                if core.exponents == "product":
                    e = log2_floor(abs(x * y))
                else:
                    low = EMIN[dtype] if core.exponents == "operands" else -1000
                    e = max(log2_floor(abs(x)), low) + max(log2_floor(abs(y)), low)
                terms.append((x * y, e))
        c = Fraction(acc)
        c_exp = [max(log2_floor(abs(c)), -126)] if c else []
        least = [] if core.least_exponent is None else [core.least_exponent]
        tops = [e for _, e in terms] + least
        if not tops and not c:
            acc = 0.0
            continue
        cut = truncated if core.cut == "zero" else floored
        top = max(tops + (c_exp if core.sum_bits is None else []), default=-400)
        unit = Fraction(2) ** (top - core.bits)
        total = sum((cut(p, unit) for p, _ in terms), Fraction(0))
        if core.sum_bits is None:
            total += cut(c, unit)
        else:
            both = max([top, *c_exp])
            total = floored(total, Fraction(2) ** (both - core.sum_bits))
            total += floored(c, Fraction(2) ** (both - core.bits))
        acc = to_fp32(total, core.store)
    return acc


def agree(a, w, core, dtype=BF16):
    fast = fused_dot(a, w, core)
    want = [[slow(x, y, core, dtype=dtype) for y in w.double().tolist()] for x in a.double().tolist()]
    assert bits(fast) == bits(torch.tensor(want)), core


# By hand.


def test_a_term_loses_what_lies_below_the_kept_bits():
    tiny = 2.0**-25
    assert one([1.0, tiny], [1.0, 1.0]) == 0x3F800000  # kept in the sum (2^-25), lost in the store
    assert one([1.0] + [tiny] * 4, [1.0] * 5) == 0x3F800001  # four of them are an fp32 ulp
    assert one([1.0] + [tiny / 2] * 15, [1.0] * 16) == 0x3F800000  # 15 * 2^-26: each is cut before the sum
    assert one([1.0] + [tiny] * 4, [1.0] * 5, replace(HOPPER, bits=24)) == 0x3F800000
    assert one([1.0] + [tiny * 2] * 2, [1.0] * 3, replace(HOPPER, bits=24)) == 0x3F800001


def test_terms_are_cut_toward_zero_not_down():
    assert one([1.0, -(2.0**-26)], [1.0, 1.0]) == 0x3F800000
    assert one([1.0, -(2.0**-26)], [1.0, 1.0], replace(HOPPER, cut="floor")) == 0x3F7FFFFF
    assert one([-1.0, -(2.0**-25)], [1.0, 1.0]) == 0xBF800000
    assert one([1.0, -(2.0**-25)], [1.0, 1.0]) == 0x3F7FFFFF  # kept: 1 - 2^-25, cut to 24 bits


def test_a_products_exponent_is_its_operands():
    # 1.5*1.5 = 2.25 = 1.125*2^1, but it is aligned at 2^0: 2^-25 survives, and four of them make one unit of 2^-23;
    # 2.25's own fp32 unit is 2^-22, so eight are needed to be seen.
    a = [1.5] + [2.0**-25] * 8
    w = [1.5] + [1.0] * 8
    assert one(a, w) == 0x40100001
    assert one(a, w, replace(HOPPER, exponents="product")) == 0x40100000


def test_the_accumulator_is_aligned_with_the_products():
    assert one([1.0], [1.0], acc=2.0**25) == 0x4C000000
    assert one([1.0] * 4, [1.0] * 4, acc=2.0**25) == 0x4C000001
    assert one([0.5] * 8, [1.0] * 8, acc=2.0**25) == 0x4C000000  # below 2^(25-25)
    assert one([0.25] * 16, [1.0] * 16, acc=2.0**26) == 0x4C800000
    assert one([2.0**25, -(2.0**25)], [1.0, 1.0], acc=1.5) == 0x3F800000  # it loses its last bit as any term does
    assert one([2.0**24, -(2.0**24)], [1.0, 1.0], acc=1.5) == 0x3FC00000


def test_steps_follow_each_other_through_fp32():
    a, w = [1.0] + [2.0**-25] * 16, [1.0] * 17
    assert one(a, w) == 0x3F800003  # 15 units of 2^-25: 3 ulp and 3/4 lost; then one more is lost
    assert one(a, w, AMPERE) == 0x3F800000  # 24 bits: all are cut
    assert one(a, w, step=8) == 0x3F800003  # 7 units: 1 ulp; 8 units: 2 ulp; 1 unit: none


def test_subnormal_operands_count_as_their_smallest_exponent():
    sub = 2.0**-24  # fp16's smallest: stored exponent -14, so with 1 as partner E is -14 and 25 bits reach 2^-39
    a, w = [sub, 2.0**-14], [1.0, 2.0**-14]
    assert one(a, w, dtype=FP16) == float_bits(2.0**-24 + 2.0**-28)
    a, w = [sub, 2.0**-14], [2.0**-14, 2.0**-14]
    assert one(a, w, dtype=FP16) == float_bits(2.0**-28 + 2.0**-38)
    a, w = [2.0**-24, 2.0**-20], [1.0, 2.0**-20]  # 2^-40 lies below 2^-39, but only 16 bits below 2^-24
    assert one(a, w, dtype=FP16) == float_bits(2.0**-24)
    assert one(a, w, replace(HOPPER, exponents="normalized_operands"), dtype=FP16) == float_bits(2.0**-24 + 2.0**-40)


def test_cdna3_adds_products_by_themselves_and_rounds_to_nearest():
    assert one([1.0, 2.0**-24], [1.0, 1.0], CDNA3) == 0x3F800000  # a tie: to even
    assert one([1.0, 2.0**-24], [1.0, 1.0], CDNA3, acc=2.0**-23) == 0x3F800002  # 1.5 ulp, a tie: to even
    assert one([1.0, 2.0**-24, 2.0**-24], [1.0] * 3, CDNA3) == 0x3F800001
    assert one([2.0**-25], [1.0], CDNA3, acc=1.0) == 0x3F800000
    assert one([2.0**-24, 2.0**-30], [1.0, 1.0], CDNA3, acc=1.0) == 0x3F800001  # 31 bits of the sum: above the tie
    assert one([2.0**-24, 2.0**-32], [1.0, 1.0], CDNA3, acc=1.0) == 0x3F800000  # beyond them: a tie
    assert one([-(2.0**-40)], [1.0], CDNA3, acc=1.0) == 0x3F800000  # down by 2^-31, back by the rounding
    assert one([1.0], [1.0], CDNA3, acc=-(2.0**-40)) == 0x3F7FFFFF  # down by 2^-24, an fp32 value


# Against the slow model.


KINDS = ("normal", "wide", "outliers", "cancelling", "subnormal")
WRONG = [replace(HOPPER, exponents=e) for e in ("product", "normalized_operands")]
WRONG += [replace(HOPPER, cut="floor"), replace(HOPPER, store="rne"), replace(HOPPER, least_exponent=None)]


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_exact_fractions(kind, dtype):
    for seed, K in enumerate((1, 7, 16, 40, 64)):
        a, w = draw(seed, K, dtype, kind)
        for core in (*TENSOR_CORES.values(), *WRONG):
            agree(a, w, core, dtype)


@pytest.mark.parametrize("core", [TensorCore("tiny", 2, 8), TensorCore("floor", 2, 8, cut="floor"), CDNA3, HOPPER])
def test_every_sum_of_two_products_of_a_few_values(core):
    values = [0.0, -0.0, 1.0, -1.0, 1.9921875, -1.5, 2.0**-9, -(2.0**-8) * 1.25, 2.0**-130, 2.0**-62]
    pairs = torch.tensor(list(product(values, values)))
    agree(pairs.to(BF16), pairs[::7].to(BF16), core)
