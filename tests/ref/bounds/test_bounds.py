"""The derived bounds in numbers: every term of docs/numerics.md, computed here from fractions, one constant at a time.

The other tests say that legal kernels are inside and wrong ones outside; a bound a little too wide passes both.
"""

from fractions import Fraction

import pytest
import torch

from moeracle.ref import Int4Weight, pack_int4
from moeracle.ref.bounds.band import Band, exactly
from moeracle.ref.bounds.dot import SMALL, DotWeights, dot_band, dot_radius, dot_weights, exact_sums, magnitudes
from moeracle.ref.contracts.contract import Contract, contract

BF16, FP16 = torch.bfloat16, torch.float16
TINY = 2.0**-149


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(got, want):
    return abs(float(got) - float(want)) <= 1e-12 * float(want)


def of(**fields):
    return Contract("c", **fields)


ANY = of(weight="exact")
# contract, dtype, -log2 u, n/K, multiplications m, (products, loss) of a block, what one of n terms may flush
BOUNDS = [
    (of(weight="exact", accumulator="fp32"), BF16, 24, 1, 0, None, 0),
    (of(weight="cast", accumulator="fp32"), FP16, 24, 1, 0, None, 0),
    (of(weight="exact", accumulator="fp32"), FP16, 24, 1, 1, None, 0),
    (of(weight="post", accumulator="fp32"), FP16, 24, 1, 1, None, 0),
    (of(weight="hoisted", accumulator="fp32"), BF16, 24, 2, 2, None, 0),
    (of(accumulator="tensor_core"), BF16, 23, 1, 0, None, 0),
    (of(accumulator="truncating"), BF16, 23, 1, 0, None, 0),
    (of(accumulator="rdna"), BF16, 22, 1, 0, None, 0),
    (of(accumulator="hopper"), BF16, 23, 1, 0, (16, Fraction(21, 4)), 0),
    (of(accumulator="ampere"), BF16, 23, 1, 0, (8, Fraction(11, 2)), 0),
    (of(accumulator="hopper", weight="hoisted"), BF16, 23, 2, 2, (16, Fraction(21, 4)), 0),
    (of(accumulator="dtype"), BF16, 8, 1, 1, None, 2 * 2.0**-134),
    (contract("grouped,accumulator=dtype"), FP16, 11, 1, 1, None, 2 * 2.0**-25),
    (of(accumulator="dtype", weight="post"), BF16, 8, 1, 2, None, 2 * 2.0**-134),
    (of(accumulator="dtype", weight="exact"), FP16, 11, 1, 2, None, 2 * 2.0**-25),
    (of(weight="exact", accumulator="fp32", ftz=True), BF16, 24, 1, 0, None, 2 * 2.0**-126),
    (of(weight="hoisted", accumulator="fp32", ftz=True), BF16, 24, 2, 2, None, 2 * 2.0**-126),
]


@pytest.mark.parametrize("K", [1, 17, 40, 2048])
@pytest.mark.parametrize(("rules", "dtype", "bits", "twice", "m", "block", "flushed"), BOUNDS)
def test_dot_radius_is_the_formula(rules, dtype, bits, twice, m, block, flushed, K):
    u, n = Fraction(1, 2**bits), twice * K
    g = (1 + u) ** (n + m) - 1
    for y, t in ((Fraction(3, 4), Fraction(5, 2)), (Fraction(0), Fraction(2)), (-Fraction(2), Fraction(2))):
        M = (t + abs(y)) / 2
        accumulated = (n - 1) * u * (M + g * t)
        if block:
            products, loss = block
            accumulated = min(accumulated, -(-n // products) * loss * Fraction(1, 2**23) * M * (1 + g))
        want = accumulated + m * u * t * (1 + g) + K * Fraction(1, 2**53) * t
        assert close(dot_radius(f64([float(y)]), f64([float(t)]), K, rules, dtype), want + Fraction(n * flushed))
    nothing = dot_radius(f64([0.0]), f64([0.0]), K, rules, dtype)
    assert float(nothing) == (K + 1) * TINY + n * flushed  # underflow alone


def test_a_declared_depth_is_the_formula_where_it_is_the_smaller():
    u, K, t = Fraction(1, 2**24), 64, Fraction(2)
    slack = K * Fraction(1, 2**53) * t
    deep, shallow = (of(weight="exact", accumulator="fp32", depth=depth) for depth in (1000, 3))
    g = (1 + u) ** K - 1
    assert close(dot_radius(f64([1.0]), f64([2.0]), K, deep, BF16), (K - 1) * u * (Fraction(3, 2) + g * t) + slack)
    assert close(dot_radius(f64([1.0]), f64([2.0]), K, shallow, BF16), ((1 + u) ** 3 - 1) * t + slack)
    assert float(dot_radius(f64([0.0]), f64([0.0]), K, shallow, BF16)) == (K + 1) * TINY


def test_magnitudes_are_exact_or_inflated_by_what_fp32_may_lose():
    K, N = 512, 65
    ones, w = torch.ones(3, K, dtype=torch.float64), torch.ones(N, K)
    assert N * K > SMALL
    inflated = K * (1 + (K + 2) * 2.0**-23)
    assert set(magnitudes(-ones, w).flatten().tolist()) == {inflated}
    assert set(magnitudes(ones, w.double()).flatten().tolist()) == {float(K)}  # fp64 sizes are not taken to fp32
    assert set(magnitudes(ones, w[: SMALL // K]).flatten().tolist()) == {float(K)}  # nor small weights
    holes = ones.clone()
    holes[1] = 0
    assert magnitudes(holes, w)[:, 0].tolist() == [inflated, K * 2.0**-126, inflated]
    for scale in (2.0**-80, 2.0**130):  # what fp32 may have flushed or overflowed is computed in fp64
        assert set(magnitudes(ones * scale, w).flatten().tolist()) == {K * scale}
    wide = torch.cat([ones, ones * 2.0**130, 0 * ones])
    assert magnitudes(wide, w)[::3, 0].tolist() == [K, K * 2.0**130, 0]
    tiny = torch.cat([ones, ones * 2.0**-80, 0 * ones])
    assert magnitudes(tiny, w)[::3, 0].tolist() == [K, K * 2.0**-80, 0]


def exact(a, w, rules=ANY, dtype=BF16, sizes=None):
    a, w = f64(a), torch.tensor([w])
    weights = DotWeights(w.double(), w.abs() if sizes is None else torch.tensor([sizes]))
    return bool(exact_sums(a, weights, magnitudes(a, weights.sizes), rules, dtype))


def test_exact_up_to_2_24_units_and_not_beyond():
    full = 2.0**24 - 1
    assert exact([full, 1.0], [1.0, 1.0])  # partial sums up to 2^24 are representable
    assert not exact([full, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert exact([3.0, 5.0], [full / 8 + 1 / 8, 0.0])
    assert exact([2.0 * full, 2.0], [0.25, 0.25])  # in units of the lowest bits
    assert not exact([full, 1.0], [1.0, 1.0], sizes=[1.0, 1.5])  # the hoisted sum is finer and larger
    partial = of(accumulator="dtype")
    assert exact([255.0, 1.0], [1.0, 1.0], partial)
    assert not exact([255.0, 1.0, 1.0], [1.0, 1.0, 1.0], partial)
    assert exact([2047.0, 1.0], [1.0, 1.0], partial, FP16)
    assert not exact([2047.0, 1.0, 1.0], [1.0, 1.0, 1.0], partial, FP16)


def test_rdna_is_exact_where_all_products_have_one_sign():
    rdna, hoisted = of(accumulator="rdna"), of(accumulator="rdna", weight="hoisted")
    assert exact([3.0, -5.0], [2.0, -4.0], rdna)
    assert exact([-3.0, -5.0], [2.0, 4.0], rdna)
    assert not exact([3.0, -5.0], [2.0, 4.0], rdna)
    assert exact([3.0, 5.0], [2.0, -4.0], hoisted, sizes=[20.0, 20.0])  # its factors are 8+u and 16
    assert exact([-3.0, -0.5], [2.0, -4.0], hoisted, sizes=[20.0, 20.0])
    assert exact([3.0, 0.5], [2.0, -4.0], hoisted, sizes=[20.0, 20.0])
    assert exact([0.0, 0.0], [2.0, -4.0], hoisted, sizes=[20.0, 20.0])
    assert not exact([3.0, -5.0], [2.0, -4.0], hoisted, sizes=[20.0, 20.0])


def test_a_band_of_operands_adds_its_radius_times_the_weights():
    rules = of(weight="exact", accumulator="fp32")
    w = DotWeights(f64([3.0, -5.0]), torch.tensor([[3.0, 5.0]]))
    a = Band(f64([1.0, 0.5]), f64([2.0, 1.5]))  # 1.5 ± 0.5 and 1 ± 0.5
    band = dot_band(a, w, rules, BF16)
    want = float(dot_radius(f64([-0.5]), f64([2.0 * 3 + 1.5 * 5]), 2, rules, BF16)) + 4.0 * (1 + 2 * 2.0**-52)
    assert float(band.mid) == -0.5
    assert float(band.hi) == -0.5 + want
    assert float(band.lo) == -0.5 - want
    same = dot_band(Band(a.lo, a.lo.clone()), w, rules, BF16, exact=True)  # no width: the exact tier holds
    assert (float(same.lo), float(same.hi)) == (0.5, 0.5)
    half = dot_band(Band(f64([1.0, 0.5]), f64([1.0, 1.5])), w, rules, BF16, exact=True)
    assert float(half.lo) < -2 - 2.5 - 2.0**-24  # the middle is exact, the rest of the Band is not
    assert float(half.hi) > -2 + 2.5 + 2.0**-24


def test_ftz_loses_the_products_of_subnormal_operands():
    rules = of(weight="exact", accumulator="fp32", ftz=True)
    normal, below = 2.0**-126, 2.0**-128

    def lost(a, w):
        weights = DotWeights(f64([w]), torch.tensor([[w]]).abs())
        band = dot_band(exactly(f64([a])), weights, rules, BF16)
        plain = dot_radius(f64([a * w]), f64([abs(a * w)]), 1, rules, BF16)
        return float((band.hi - a * w) - plain), float((a * w - band.lo) - plain)

    grain = 2.0**-126 * 2.0**-40
    for a, w, want in ((below, -3.0, 3 * below), (-3.0, below, 3 * below), (normal, 1.0, 0.0), (1.0, -normal, 0.0)):
        assert lost(a, w) == pytest.approx((want, want), abs=grain)
    for a, w in ((normal * 0.99, 1.0), (1.0, normal * 0.99)):
        assert lost(a, w)[0] == pytest.approx(normal * 0.99, abs=grain)


def weight(code, zero, scale, dtype=BF16):
    codes = torch.full((1, 32), code, dtype=torch.uint8)
    codes[0, 16:] = 15 - code
    zeros = None if zero is None else torch.tensor([[zero, 15]], dtype=torch.uint8)
    scales = torch.tensor([[scale, -2 * scale]]).to(dtype)
    return Int4Weight(pack_int4(codes, "exllama"), scales, zeros, "exllama", 16)


def test_hoisted_sizes_are_the_two_sums_magnitudes():
    for declared, dtype, offset in ((0, BF16, 0), (128, BF16, 128), (1024, FP16, 1024), (1024, BF16, 128)):
        rules = of(weight="hoisted", zero_offset=declared)
        sizes = dot_weights(weight(3, None, 0.5), rules, dtype).sizes
        assert sizes[0, [0, 31]].tolist() == [0.5 * (3 + 8 + 2 * offset), 1.0 * (12 + 8 + 2 * offset)]
        weights = dot_weights(weight(3, 5, 0.5), rules, dtype)
        values, sizes = weights.values, weights.sizes
        assert values[0, [0, 31]].tolist() == [-1.0, 3.0]
        assert sizes[0, [0, 15, 16, 31]].tolist() == [0.5 * (8 + 2 * offset)] * 2 + [1.0 * (27 + 2 * offset)] * 2
    largest = 2.0**126
    sizes = dot_weights(weight(15, 15, largest / 2), of(weight="hoisted", zero_offset=128), BF16).sizes
    assert sizes.dtype == torch.float64  # fp32 would overflow
    assert sizes[0, [0, 31]].tolist() == [largest / 2 * (30 + 256), largest * (15 + 256)]


def test_buffers_are_filled_and_returned():
    w = weight(3, None, 0.5)
    buffers = DotWeights(torch.empty(1, 32, dtype=torch.float64), torch.empty(1, 32))
    filled, fresh = dot_weights(w, of(), BF16, into=buffers), dot_weights(w, of(), BF16)
    assert filled.values is buffers.values
    assert torch.equal(filled.values, fresh.values)
    assert torch.equal(filled.sizes, fresh.sizes)
    assert torch.equal(fresh.sizes, fresh.values.abs().float())


@pytest.mark.parametrize("schedule", ["wgmma.k16.sm90/t64", "fma"])
def test_a_schedule_s_experts_have_the_sums_that_each_has_alone(schedule):
    rules, generator = contract(f"grouped,schedule={schedule}"), torch.Generator().manual_seed(7)
    counts = [3, 0, 9, 1, 8, 3, 2]
    words = torch.randint(-(2**31), 2**31, (len(counts), 24, 16), generator=generator).int()
    scale = torch.rand(len(counts), 24, 4, generator=generator).bfloat16()
    w = Int4Weight(words, scale, None, "exllama", 32)
    a = exactly(torch.randn(sum(counts), 128, generator=generator).bfloat16())
    got = dot_band(a, dot_weights(w, rules, torch.bfloat16), rules, torch.bfloat16, counts=counts).lo
    for e, rows in enumerate(a.lo.split(counts)):
        alone = dot_band(Band(rows, rows), dot_weights(w.expert(e), rules, torch.bfloat16), rules, torch.bfloat16)
        assert torch.equal(got[sum(counts[:e]) : sum(counts[: e + 1])], alone.lo)
