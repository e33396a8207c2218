"""Operations on Bands in numbers: bias, weights, the sum over slots, the store; every constant and both ends."""

import math

import pytest
import torch

from moeracle.ref.bounds.band import Band, add_band, exactly, lowest_bit, store, sum_band, weigh_band
from moeracle.ref.contracts.contract import Contract, contract

BF16 = torch.bfloat16
TINY = 2.0**-149


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def of(**fields):
    return Contract("c", **fields)


def test_middle_and_radius():
    band = Band(f64(1.0, -2.0), f64(4.0, 3.0))
    assert band.mid.tolist() == [2.5, 0.5]
    assert band.radius.tolist() == [1.5, 2.5]


def test_bias_and_weights_are_one_fp32_rounding_of_each_end():
    band = Band(f64(1.0, -3.0, 2.0), f64(2.0, -1.0, 5.0))
    added = add_band(band, torch.tensor([0.5, 2.0, 2.0**-30]))
    assert added.lo.tolist() == [1.5, -1.0, 2.0]  # 2 + 2^-30 does not fit fp32
    assert added.hi.tolist() == [2.5, 1.0, 5.0]
    weighed = weigh_band(band, f64(0.5, -2.0, 1 + 2.0**-23 + 2.0**-30))
    assert weighed.lo.tolist() == [0.5, 2.0, 2 + 2.0**-22]
    assert weighed.hi.tolist() == [1.0, 6.0, 5 + 2.0**-21]


def test_lowest_bit_of_every_scale():
    x = f64(2.0**53 - 1, 2.0**53, 3 * 2.0**-1000, -(2.0**1000 + 2.0**948), 6.0)
    assert lowest_bit(x).tolist() == [1.0, 2.0**53, 2.0**-1000, 2.0**948, 2.0]


def slots(*terms):
    return f64([[t] for t in terms])


def test_the_sum_over_slots_is_the_formula():
    y = slots(1.0, -0.5, 0.25)
    for rules, u in ((of(accumulator="fp32"), 2.0**-24), (of(accumulator="truncating"), 2.0**-23)):
        for multiplied, rounded in ((False, 2), (True, 3)):
            band = sum_band(Band(y, y), rules, BF16, multiplied=multiplied)
            assert float(band.mid) == 0.75
            assert float(band.radius) == pytest.approx(1.75 * ((1 + u) ** rounded - 1), rel=1e-8)
            zeros = sum_band(Band(0 * y, 0 * y), rules, BF16, multiplied=multiplied)
            assert (float(zeros.lo), float(zeros.hi)) == (-rounded * TINY, rounded * TINY)
    two = sum_band(Band(0 * y[:, :2], 0 * y[:, :2]), of(), BF16, multiplied=True)
    assert float(two.radius) == 2 * TINY  # one addition, one multiplication
    flushed = sum_band(Band(0 * y, 0 * y), of(ftz=True), BF16, multiplied=False)
    assert float(flushed.radius) == 2 * TINY + 2 * 3 * 2.0**-126
    wide = sum_band(Band(y - 1, y + 2), of(), BF16, multiplied=False)  # |terms| up to 3, 1.5 and 2.25
    grown = 6.75 * math.expm1(2 * math.log1p(2.0**-24))
    assert float(wide.lo) == pytest.approx(-2.25 - grown, abs=1e-9)
    assert float(wide.hi) == pytest.approx(6.75 + grown, abs=1e-9)


def test_the_sum_over_slots_is_exact_up_to_2_24_units():
    full = 2.0**24 - 1
    for y, exactly_one in ((slots(full, 1.0), True), (slots(full, 2.0, 1.0), False), (slots(full, -0.5), False)):
        band = sum_band(Band(y, y), of(), BF16, multiplied=False, exact=True)
        assert bool(band.lo == band.hi) == exactly_one
    lo, hi = slots(1.0, 2.0), slots(1.0, 2.0 + 2.0**-30)  # the finer end counts
    assert float(sum_band(Band(lo, hi), of(), BF16, multiplied=False, exact=True).lo) < 3
    nothing = torch.zeros(2, 0, 3, dtype=torch.float64)
    for exact_data in (True, False):
        empty = sum_band(Band(nothing, nothing), of(), BF16, multiplied=False, exact=exact_data)
        assert not empty.lo.any()
        assert not empty.hi.any()


def test_the_sum_in_dtype_rounds_the_product_and_each_sum():
    vllm = contract("gptq_awq")
    assert float(sum_band(Band(*[slots(1.0, 2.0**-8)] * 2), vllm, BF16, multiplied=True).lo) == 1.0
    y = slots(256.0, 1 + 2.0**-8 + 2.0**-30, 2.0)  # the product is first rounded to fp32, then to even: 1.0
    band = sum_band(Band(y, y + 0), vllm, BF16, multiplied=True)
    assert (float(band.lo), float(band.hi)) == (258.0, 258.0)
    one = sum_band(Band(y[:, 1:], y[:, 1:]), vllm, BF16, multiplied=False)
    assert float(one.lo) == 3.0


def test_the_sum_in_dtype_of_one_slot_is_that_slot():
    band = sum_band(Band(slots(1.5), slots(2.5)), of(topk_sum="dtype"), BF16, multiplied=True)
    assert (float(band.lo), float(band.hi)) == (1.5, 2.5)


def test_ftz_stores_zero_or_the_subnormal():
    rules, normal = of(ftz=True), 2.0**-126
    lo = f64(normal / 2, normal, -normal / 2, -normal, -1.0, 0.0)
    hi = f64(1.0, 1.0, -normal / 4, -normal, -normal / 2, normal / 2)
    flushed, kept = store(Band(lo, hi), rules, BF16), store(Band(lo, hi), of(), BF16)
    assert flushed.lo.tolist() == [0.0, normal, -normal / 2, -normal, -1.0, 0.0]
    assert flushed.hi.tolist() == [1.0, 1.0, 0.0, -normal, 0.0, normal / 2]
    assert torch.equal(kept.lo, lo)
    assert torch.equal(kept.hi, hi)
    assert store(exactly(f64(normal / 2)), rules, BF16).hi.tolist() == [normal / 2]
