"""The derived bounds: attained by adversarial data, kept by every order, and broken by every wrong contract."""

import pytest
import torch

from moeracle.ref.bounds.band import Band, exactly, lowest_bit, store, sum_band
from moeracle.ref.bounds.dot import DotWeights, cast_weights, exact_sums, magnitudes
from moeracle.ref.bounds.dot import dot_band as band_of_weights
from moeracle.ref.contracts.contract import Contract, contract
from moeracle.ref.rounding import round_in_fp64, round_to

BF16, FP16 = torch.bfloat16, torch.float16
FP32_ANY = Contract("any", weight="exact", accumulator="fp32")


def dot_band(a, w, rules, dtype, hoisted=None, exact=False):
    return band_of_weights(
        a, DotWeights(w.double(), w.abs() if hoisted is None else hoisted), rules, dtype, exact=exact
    )


def inside(value, band):
    return bool(((band.lo <= value) & (value <= band.hi)).all())


def sequential(products):
    """Add fp32 products one after another, nearest."""
    total = torch.zeros(products.shape[:-1])
    for k in range(products.shape[-1]):
        total = total + products[..., k]
    return total


def truncating(products):
    """Add one after another, each sum rounded toward zero to fp32."""
    total = torch.zeros(products.shape[:-1], dtype=torch.float64)
    for k in range(products.shape[-1]):
        total = round_in_fp64(total + products[..., k].double(), torch.float32, "rtz")
    return total.float()


def pairwise(products):
    while products.shape[-1] > 1:
        products = torch.nn.functional.pad(products, (0, products.shape[-1] % 2))
        products = products[..., 0::2] + products[..., 1::2]
    return products[..., 0]


def draw(seed, M=16, K=256, N=32, dtype=BF16):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(M, K, generator=g).to(dtype)
    q = torch.randint(-8, 8, (N, K), generator=g).float()
    s = (torch.rand(N, K // 32, generator=g) / 16 + 0.01).to(dtype).float().repeat_interleave(32, 1)
    return a, q * s


@pytest.mark.parametrize("K", [2, 64, 2048])
def test_the_any_order_bound_is_attained(K):
    a = torch.ones(1, K, dtype=torch.float64)
    w = torch.full((1, K), 2.0**-24)
    w[0, 0] = 1.0
    band = dot_band(exactly(a), w, FP32_ANY, BF16)
    got = sequential((a.float() * w).reshape(1, K))[0].double()
    error, bound = abs(float(got - (a @ w.double().T))), float(band.radius)
    assert error <= bound
    assert error > 0.998 * bound


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("add", [sequential, pairwise])
@pytest.mark.parametrize("weight", ["cast", "exact"])
def test_legal_orders_are_inside(dtype, add, weight):
    rules = Contract("c", weight=weight, accumulator="fp32")
    for seed in range(5):
        a, w = draw(seed, dtype=dtype)
        values = cast_weights(w, rules, dtype)
        got = add(a.float()[:, None, :] * values[None]).double()
        assert inside(got, dot_band(exactly(a), values, rules, dtype))


def test_truncating_adds_need_their_own_unit():
    a, w = draw(0, K=2048, M=4, N=8)
    a = a.abs()
    w = w.abs()
    got = truncating(a.float()[:, None, :] * w[None]).double()
    assert inside(got, dot_band(exactly(a), w, Contract("t", weight="exact", accumulator="truncating"), BF16))


def test_a_declared_depth_is_tighter_and_still_sound():
    a, w = draw(3, K=2048)
    shallow = Contract("d", weight="exact", accumulator="fp32", depth=11)
    got = pairwise(a.float()[:, None, :] * w[None]).double()
    tight, wide = dot_band(exactly(a), w, shallow, BF16), dot_band(exactly(a), w, FP32_ANY, BF16)
    assert inside(got, tight)
    assert float(tight.radius.mean()) < 0.05 * float(wide.radius.mean())


def test_one_k_dropped_or_counted_twice_is_outside():
    a, w = draw(1)
    band = store(dot_band(exactly(a), w, FP32_ANY, BF16), FP32_ANY, BF16)
    for change in (-1.0, 1.0):
        wrong = a.double() @ w.double().T + change * a[:, 7:8].double() * w[:, 7].double()
        got = round_to(wrong, BF16).double()
        assert float(((band.lo <= got) & (got <= band.hi)).double().mean()) < 0.6


def test_cast_fails_the_exact_contract_on_many_outputs():
    a, w = draw(2, M=64, N=64)
    cast, exact = contract("grouped"), Contract("e", weight="exact")
    stored = round_to(a.double() @ cast_weights(w, cast, BF16).double().T, BF16).double()
    legal = store(dot_band(exactly(a), w, exact, BF16), exact, BF16)
    assert 0.15 < float(((stored < legal.lo) | (stored > legal.hi)).double().mean()) < 0.5


def test_truncated_weights_are_the_rtz_contract():
    w = torch.tensor([[1 + 2**-8 + 2**-9, -(1 + 2**-8 + 2**-9)]])
    assert cast_weights(w, contract("grouped"), BF16).tolist() == [[1.0078125, -1.0078125]]
    assert cast_weights(w, contract("grouped,weight_rounding=rtz"), BF16).tolist() == [[1.0, -1.0]]


def test_integer_sums_have_one_legal_value():
    g = torch.Generator().manual_seed(0)
    a = torch.randint(-255, 256, (8, 4096), generator=g).double()
    w = torch.randint(-8, 8, (4, 4096), generator=g).float()
    band = dot_band(exactly(a), w, contract("grouped"), BF16, exact=True)
    assert torch.equal(band.lo, band.hi)
    assert torch.equal(band.lo, a @ w.double().T)
    not_exact = dot_band(exactly(a * 1.0001220703125), w, contract("grouped"), BF16, exact=True)  # 13 more bits
    assert bool((not_exact.lo < not_exact.hi).all())


def test_exactness_is_checked_not_believed():
    a = torch.tensor([[2.0**20, 2.0**-20]], dtype=torch.float64)
    w = torch.ones(1, 2)
    assert not bool(exact_sums(a, DotWeights(w.double(), w), magnitudes(a, w), contract("grouped"), BF16))
    a = torch.tensor([[2.0**20, 1.0]], dtype=torch.float64)
    assert bool(exact_sums(a, DotWeights(w.double(), w), magnitudes(a, w), contract("grouped"), BF16))


def test_lowest_bit():
    x = torch.tensor([1.0, 3.0, 12.0, -0.75, 0.0, 2.0**-149], dtype=torch.float64)
    assert lowest_bit(x).tolist() == [1.0, 1.0, 4.0, 0.25, float("inf"), 2.0**-149]


def test_sum_correction_needs_the_hoisted_contract():
    """sum a(128+u) - 136 sum a, in fp32, is legal when hoisted and illegal as an exact dot: u-8 is mostly 0."""
    g = torch.Generator().manual_seed(5)
    K = 1024
    a = torch.full((1, K), 1.0 + 2.0**-7, dtype=BF16)
    u = torch.full((64, K), 8.0)
    u[:, :4] = torch.randint(0, 16, (64, 4), generator=g).float()
    magic = sequential(a.float()[:, None, :] * (u + 128)[None])
    got = (magic - 136 * sequential(a.float())[:, None]).double()
    rules = contract("wmma,accumulator=fp32")
    hoisted = (u + 8 + 256) * 1.0
    assert inside(got, dot_band(exactly(a), u - 8, rules, BF16, hoisted=hoisted))
    assert not inside(got, dot_band(exactly(a), u - 8, FP32_ANY, BF16))


def test_ftz_may_lose_subnormals_and_only_then():
    a = torch.full((1, 8), 2.0**-130, dtype=torch.float64)
    w = torch.ones(1, 8)
    strict, flush = contract("grouped"), contract("grouped,ftz=true")
    assert not inside(torch.zeros(1, 1).double(), dot_band(exactly(a), w, strict, BF16))
    assert inside(torch.zeros(1, 1).double(), dot_band(exactly(a), w, flush, BF16))


def test_an_unstored_operand_widens_the_band():
    a, w = draw(7)
    a64 = a.double()
    wide = Band(a64 - 2.0**-9, a64 + 2.0**-9)
    band = dot_band(wide, w, FP32_ANY, BF16)
    assert inside(wide.lo @ w.double().T, band)
    assert inside((a64 + 2.0**-9 * torch.sign(torch.randn_like(a64))) @ w.double().T, band)


def test_sums_over_slots():
    y = torch.tensor([[[1.0], [2.0**-8], [2.0**-8]]], dtype=torch.float64)  # bf16: 1 + 2^-8 ties back to 1, twice
    in_fp32 = store(sum_band(Band(y, y), contract("grouped"), BF16, multiplied=False), contract("grouped"), BF16)
    in_dtype = sum_band(Band(y, y), contract("gptq_awq"), BF16, multiplied=False)
    assert in_fp32.lo.tolist() == [[1.0078125]]
    assert in_dtype.lo.tolist() == [[1.0]]


def test_large_magnitudes_bound_the_true_ones():
    a, w = draw(11, M=64, K=2048, N=1024)  # large enough for the fp32 product
    true = a.double().abs() @ w.double().abs().T
    bound = magnitudes(a.double(), w.abs())
    assert bool((bound >= true).all())
    assert float((bound / true).max()) < 1 + 2**-10
