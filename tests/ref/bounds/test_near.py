"""What a fast unit returns lies in the Band, on data made to push it out; what may not, is not taken."""

import functools
from fractions import Fraction
from itertools import product

import pytest
import torch

from moeracle.ref.bitmodels.tensor_core import HOPPER, fused_dot
from moeracle.ref.bounds import near
from moeracle.ref.bounds.dot import dot_radius, dot_weights
from moeracle.ref.contracts.contract import contract
from moeracle.ref.weights.dense import DenseWeight
from moeracle.ref.weights.weight import Int4Weight, Int8Weight

BF16, FP16 = torch.bfloat16, torch.float16
DATA = ("normal", "cancelling", "growing", "subnormal", "tiny", "huge", "one large", "nan", "inf", "zero rows")
K = 640


def operands(data, dtype, seed=0):
    """Return a [5, K] and w [1, 4, K] of a dtype."""
    g = torch.Generator().manual_seed(seed)
    a, w = torch.randn(5, K, generator=g), torch.randn(1, 4, K, generator=g)
    if data == "cancelling":  # the second half takes away what the first one adds, but for the last place
        a[:, K // 2 :] = -a[:, : K // 2]
        w[..., K // 2 :] = w[..., : K // 2]
        a[:, -1] *= 1.01
    elif data == "growing":
        a *= torch.logspace(-6, 3, K)
    elif data == "subnormal":
        a *= torch.finfo(dtype).smallest_normal / 4
    elif data == "tiny":
        a, w = a * 2.0 ** (-8 if dtype == FP16 else -70), w * 2.0 ** (-8 if dtype == FP16 else -70)
    elif data == "huge":
        a, w = a * torch.finfo(dtype).max / 16, w * (2.0**10 if dtype == FP16 else 2.0**100)
    elif data == "one large":  # all others are cut below it
        a[:, 1:] *= 2.0**-13
        w[..., 1:] *= 2.0**-12
    elif data in ("nan", "inf"):
        a[1, 3] = float(data)
    elif data == "zero rows":
        a[[0, 3]] = 0
    return a.to(dtype), w.to(dtype)


@pytest.mark.parametrize(("size", "groups"), [(-1, 1), (96, 1), (95, 2), (64, 2), (32, 3), (1, 96)])
def test_a_weight_of_one_group_is_known_by_its_scales_also_where_the_last_group_is_short(size, groups):
    codes, g = torch.zeros(1, 8, 96, dtype=torch.uint8), size if size > 0 else 96
    for cls in (Int4Weight, Int8Weight):
        w = cls.from_codes(codes, torch.ones(1, 8, groups, dtype=BF16), layout="compressed_tensors", group_size=g)
        w = cls(w.packed, w.scale, None, w.layout, size)
        padded = torch.zeros(1, 8, 2 * w.packed.shape[-1], dtype=w.packed.dtype)[..., : w.packed.shape[-1]]
        assert (w.G == w.K) == (groups == 1)
        for one in (w, cls(padded, w.scale, None, w.layout, size)):
            for way in ("after_sum", "after_store"):
                assert (near.near_unit(one, contract(f"grouped,one_group={way}"), BF16) is None) == (groups == 1)


@functools.cache
def exactly(data, dtype):
    """Return the sums and the magnitudes' sums, as fractions, of operands' elements that are finite."""
    found, (a, w) = {}, operands(data, dtype)
    for (m, row), (n, column) in product(enumerate(a.double().tolist()), enumerate(w[0].double().tolist())):
        if all(abs(v) < float("inf") for v in (*row, *column)):
            terms = [Fraction(x) * Fraction(y) for x, y in zip(row, column, strict=True)]
            found[m, n] = sum(terms), sum(abs(term) for term in terms)
    return found


@pytest.fixture(params=["fp32", "hopper"])
def unit(request, monkeypatch):
    if request.param == "hopper":
        monkeypatch.setattr(near, "_multiply", lambda a, w, out: out.copy_(fused_dot(a, w, HOPPER)))
    return request.param


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_what_a_unit_returns_lies_in_the_band(unit, dtype):
    rules, taken = contract("grouped"), {}
    assert near._within(unit, K, rules, dtype)
    for data in DATA:
        a, w = operands(data, dtype)
        y = near.near_products(a, w.float() if unit == "fp32" else w, [len(a)])
        known = ~y.isnan()
        taken[data] = int(known.sum())
        for (m, n), (exact, t) in exactly(data, dtype).items():
            if known[m, n]:
                y64, t64 = (torch.tensor(float(v), dtype=torch.float64) for v in (exact, t))
                radius = float(dot_radius(y64, t64, K, rules, dtype))
                assert abs(Fraction(float(y[m, n])) - exact) <= Fraction(radius), (data, m, n)
        assert not known[1].any() or data not in ("nan", "inf")
    assert taken["normal"] == taken["cancelling"] == taken["growing"] == taken["one large"] == 20
    assert taken["zero rows"] == 20
    assert taken["tiny"] < 20 or dtype == FP16
    assert taken["nan"] == taken["inf"] == 16


def test_the_test_sees_an_error_of_the_radius():
    """A product that loses 2^-12 of T is outside: the assertion above is no empty one."""
    rules, (exact, t) = contract("grouped"), exactly("normal", BF16)[0, 0]
    radius = dot_radius(*(torch.tensor(float(v), dtype=torch.float64) for v in (exact, t)), K, rules, BF16)
    assert float(radius) < float(t) * 2.0**-12


def test_a_unit_is_taken_only_where_its_error_is_the_smaller():
    taken = {
        (unit, text): near._within(unit, 2048, contract(text), BF16)
        for unit in ("fp32", "hopper")
        for text in (
            "grouped", "grouped,accumulator=fp32", "grouped,accumulator=hopper", "grouped,accumulator=truncating",
            "grouped,accumulator=rdna", "grouped,depth=16", "grouped,depth=4000", "moe_wna16", "wvsplitk",
        )
    }  # fmt: skip
    assert sorted(text for (unit, text), yes in taken.items() if unit == "fp32" and not yes) == [
        "grouped,accumulator=fp32", "grouped,accumulator=hopper", "grouped,depth=16",
    ]  # fmt: skip
    refused = sorted(text for (unit, text), yes in taken.items() if unit == "hopper" and not yes)
    assert refused == ["grouped,accumulator=hopper", "grouped,depth=16"]


def weights():
    g = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (2, 16, 64), generator=g, dtype=torch.uint8)
    zero = torch.randint(0, 16, (2, 16, 2), generator=g, dtype=torch.uint8)
    scale = torch.rand(2, 16, 2, generator=g) * 0.1
    for layout, dtype in (("exllama", BF16), ("gptq", FP16), ("awq", BF16), ("int8", BF16), ("exllama", torch.float32)):
        for zeros in (None, zero):
            for form in ("unpacked", "gptq_v1") if zeros is not None else ("unpacked",):
                yield Int4Weight.from_codes(codes, scale.to(dtype), zeros, layout=layout, zero_layout=form)
    yield Int4Weight.from_codes(codes, (scale * 1e-38).to(BF16), zero, layout="exllama")
    yield Int4Weight.from_codes(codes, (scale * 60000).to(FP16), layout="exllama")
    wide = torch.randint(0, 256, (2, 16, 64), generator=g, dtype=torch.uint8)
    yield Int8Weight.from_codes(wide, scale.to(BF16), layout="gptq")
    order = torch.randperm(64, generator=g).int() // 32
    yield Int4Weight.from_codes(codes, scale.to(BF16), layout="exllama", group_of=order.expand(2, 64))


def test_near_values_are_the_weights_as_dots_have_them():
    seen = 0
    for w in weights():
        for text in ("grouped", "grouped,weight_rounding=rtz", "grouped,v1_zeros=plain", "grouped,scale_cast=true"):
            for dtype in (BF16, FP16):
                rules = contract(text)
                expected = dot_weights(w, rules, dtype).values
                for unit in ("fp32", "hopper"):
                    assert torch.equal(near.near_values(w, rules, dtype, unit).double(), expected), (w.layout, text)
                    seen += 1
        dense = DenseWeight(w.dequantize().to(BF16))
        assert torch.equal(near.near_values(dense, contract("grouped"), BF16, "hopper"), dense.values)
    assert seen > 200


def test_which_contracts_have_no_near_products():
    w = next(iter(weights()))
    assert near.near_unit(w, contract("grouped"), BF16) == "fp32"
    for text in ("wmma", "grouped,ftz=true", "grouped,schedule=fma", "grouped,parts=k32", "grouped,accumulator=fp32"):
        assert near.near_unit(w, contract(text), BF16) is None, text
    wide = next(w for w in weights() if w.bits == 8)
    assert near.near_unit(wide, contract("grouped"), BF16) == "fp32"
    assert near.near_unit(w, contract("grouped,weight=exact"), BF16) == "fp32"
    assert near.near_unit(wide, contract("grouped,weight=exact"), BF16) is None
    dense = DenseWeight(w.dequantize())
    assert near.near_unit(dense, contract("et_vecmat"), BF16) is None
    assert near.near_unit(dense, contract("grouped"), BF16) == "fp32"


def test_sums_of_rows_and_of_elements_are_those_of_fp64():
    a, w = operands("normal", BF16)
    w = torch.cat([w, w.flip(1)])
    y = torch.cat([a[:2].double() @ w[0].double().T, a[2:].double() @ w[1].double().T])
    t = torch.cat([a[:2].double().abs() @ w[0].double().abs().T, a[2:].double().abs() @ w[1].double().abs().T])
    rows = near.products_of_rows(a, w, [2, 3], True)
    m, n = torch.arange(5).repeat_interleave(4), torch.arange(4).repeat(5)
    elements = near.products_of_elements(a, w, m, (m >= 2).long(), n)
    for found, expected in ((rows[0], y), (elements[0].view(5, 4), y), (rows[1], t), (elements[1].view(5, 4), t)):
        assert torch.allclose(found, expected, rtol=2.0**-30, atol=2.0**-30)
    assert bool((rows[1] >= t * (1 - 2.0**-45)).all())
