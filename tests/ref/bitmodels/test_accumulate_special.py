"""Matrix units at the edges: special values, mistakes, wrong models told apart, and the derived bounds kept."""

import math
from dataclasses import replace

import pytest
import torch

from moeracle.ref.bitmodels.tensor_core import AMPERE, CDNA3, HOPPER, TURING, VOLTA, TensorCore, fused_dot
from moeracle.ref.bounds.dot import dot_radius
from moeracle.ref.contracts.contract import Contract
from support.sums import bits, draw, float_bits, one

BF16, FP16 = torch.bfloat16, torch.float16


KINDS = ("normal", "wide", "outliers", "cancelling", "subnormal")
# Special values.


def test_infinities_and_nan():
    inf, nan, big = math.inf, math.nan, 2.0**127
    assert one([inf, 1.0], [1.0, 1.0]) == 0x7F800000
    assert one([inf, 1.0], [-1.0, 1.0]) == 0xFF800000
    assert one([inf, inf], [1.0, -1.0]) == 0x7FFFFFFF
    assert one([inf, 1.0], [0.0, 1.0]) == 0x7FFFFFFF
    assert one([nan, 1.0], [0.0, 1.0]) == 0x7FFFFFFF
    assert one([nan], [1.0], CDNA3) == 0x7FC00000
    assert one([1.0], [1.0], acc=-inf) == 0xFF800000
    assert one([inf], [1.0], acc=-inf) == 0x7FFFFFFF
    assert one([big, big], [1.0, 1.0]) == 0x7F800000
    assert one([-big, -big], [1.0, 1.0]) == 0xFF800000
    assert one([big] * 17, [1.0] * 16 + [-1.0]) == 0x7F800000  # an accumulator at infinity stays there
    assert one([65504.0] * 16, [65504.0] * 16, dtype=FP16) == float_bits(16 * 65504.0**2)


def test_a_cancelling_product_beyond_fp32_is_finite_on_nvidia_and_not_on_cdna3():
    a, w = [2.0**100, -(2.0**100), 1.0], [2.0**100, 2.0**100, 2.0**127]
    assert one(a, w) == 0  # 2^127 lies 73 bits below 2^200: cut
    assert one([2.0**64, -(2.0**64), 1.0], [2.0**64, 2.0**64, 2.0**120]) == float_bits(2.0**120)
    assert one(a, w, CDNA3) == 0x7FC00000
    assert one(a[:1], w[:1], CDNA3) == one(a[:1], w[:1]) == 0x7F800000


def test_zeros_and_underflow():
    assert one([0.0], [1.0]) == one([-0.0], [1.0], acc=-0.0) == 0
    assert one([-0.0, -0.0], [1.0, 1.0], acc=-0.0) == 0
    assert one([1.0, -1.0], [1.0, 1.0]) == 0
    assert one([2.0**-75], [2.0**-74]) == 0x00000001
    assert one([2.0**-75], [2.0**-75]) == 0x00000000
    assert one([-(2.0**-75)], [2.0**-75]) == 0x00000000  # cut to zero: +0, as the H200 gave
    assert one([-(2.0**-75)], [2.0**-76], CDNA3) == 0x80000000  # rounded to zero: the sign stays
    assert one([2.0**-133], [2.0**-10]) == 0x00000040  # a subnormal operand, a subnormal result
    assert one([3 * 2.0**-75], [2.0**-75], CDNA3) == 0x00000002  # 1.5 of the smallest: a tie, to even


def test_below_the_least_exponent_nothing_is_gained():
    # As an H200 gave: products down to 2^(-133-25) = 2^-158 count, although 2^-149 is fp32's least.
    assert one([2.0**-76] * 4, [2.0**-75] * 4) == 1
    assert one([2.0**-76] * 4, [2.0**-76] * 4) == 0  # 2^-150 in all: below fp32
    assert one([2.0**-76] * 8, [2.0**-76] * 8) == 1
    assert one([2.0**-76] * 16, [2.0**-76] * 16) == 2
    assert one([2.0**-77] * 16, [2.0**-76] * 16) == 1
    a, w = [2.0**-76] * 8, [2.0**-76] * 8
    assert one(a, w, replace(HOPPER, least_exponent=-126)) == 0
    a, w = [2.0**-75, 2.0**-79, -(2.0**-79)], [2.0**-74, 2.0**-79, 2.0**-80]
    assert one(a, w) == 1
    assert one([2.0**-75, -(2.0**-80)], [2.0**-74, 2.0**-79]) == 1  # 2^-159 is cut
    assert one([2.0**-75, -(2.0**-79)], [2.0**-74, 2.0**-79]) == 0  # 2^-158 is not, and the store cuts the rest
    assert one([2.0**-75, -(2.0**-80)], [2.0**-74, 2.0**-79], replace(HOPPER, least_exponent=None)) == 0


def test_a_subnormal_accumulator_is_aligned_as_stored():
    # With the accumulator at -126, products below 2^-151 no longer count.
    tiny = 2.0**-149
    assert one([2.0**-76] * 16, [2.0**-76] * 16, acc=tiny) == 1
    assert one([2.0**-76] * 16, [2.0**-75] * 16, acc=tiny) == 5


def test_empty_shapes():
    assert bits(fused_dot(torch.zeros(2, 0, dtype=BF16), torch.zeros(1, 0, dtype=BF16), HOPPER)) == [0, 0]
    assert fused_dot(torch.zeros(0, 4, dtype=BF16), torch.zeros(3, 4, dtype=BF16), HOPPER).shape == (0, 3)


def test_mistakes_are_named():
    x = torch.ones(1, 4)
    with pytest.raises(ValueError, match=r"a, w: got torch.float32 .* must both be torch.bfloat16"):
        fused_dot(x, x, HOPPER)
    with pytest.raises(ValueError, match=r"step: got 17, must be 1 to 16 \(hopper\)"):
        fused_dot(x.to(BF16), x.to(BF16), HOPPER, step=17)
    with pytest.raises(ValueError, match=r"cut: got 'flor', .* did you mean 'floor'"):
        TensorCore("x", 8, 24, cut="flor")
    with pytest.raises(ValueError, match="bits: got 53"):
        TensorCore("x", 8, 53)


# A wrong model is seen, and every model keeps its bound.


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_models_differ_where_they_should(dtype):
    a, w = draw(3, 512, dtype, "normal", 32, 32)
    right = fused_dot(a, w, HOPPER)
    others = [replace(HOPPER, bits=24), replace(HOPPER, bits=26), replace(HOPPER, exponents="product"), AMPERE]
    others += [replace(HOPPER, products=8), replace(HOPPER, products=32), replace(HOPPER, store="rne"), CDNA3, VOLTA]
    for other in others:
        same = (fused_dot(a, w, other) == right).float().mean()
        assert same < 0.998, other  # the exponents' rule shows least: 99 % agree on such data
    assert torch.equal(fused_dot(a, w, AMPERE), fused_dot(a, w, TURING))  # the same numbers under two names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("core", [HOPPER, AMPERE], ids=lambda c: c.name)
def test_results_lie_within_the_derived_bound(core, dtype, kind):
    rules = Contract("c", accumulator=core.name)
    for seed, K in ((0, 16), (1, 256), (2, 1024)):
        a, w = draw(seed, K, dtype, kind, 16, 16)
        y, t = a.double() @ w.double().T, a.double().abs() @ w.double().abs().T
        radius = dot_radius(y.clone(), t, K, rules, dtype)
        assert bool(((fused_dot(a, w, core).double() - y).abs() <= radius).all())
