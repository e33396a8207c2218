"""Sums of parts: the total of every order lies in the Band, and few terms give exactly the hull of all orders."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
import torch

from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.bounds.band import Band, exactly, join_band
from moeracle.ref.bounds.dot import DotWeights, dot_band
from moeracle.ref.contracts.contract import contract
from moeracle.ref.contracts.parts import Parts
from moeracle.ref.rounding import round_in_fp64

BF16, FP16 = torch.bfloat16, torch.float16


def totals(terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The total of every order of adding terms [n, m] one after another, each addition rounded: [orders, m]."""
    add = lambda x, y: round_in_fp64(x + y, dtype)
    return torch.stack([functools.reduce(add, list(terms[list(o)])) for o in itertools.permutations(range(len(terms)))])


@pytest.mark.parametrize("dtype", [BF16, FP16, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_terms_in_any_order_have_exactly_the_hull_of_all_orders(n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n)
    terms = torch.randn(n, 50).to(BF16 if dtype is BF16 else FP16).double()
    every = totals(terms, dtype)
    band = join_band([exactly(t) for t in terms], "any", None if dtype is torch.float32 else dtype)
    assert torch.equal(band.lo, every.amin(0))
    assert torch.equal(band.hi, every.amax(0))
    if n > 2 and dtype is not torch.float32:
        assert bool((band.hi > band.lo).any())


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_many_terms_in_any_order_stay_within_half_an_ulp_an_addition(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    terms = torch.randn(9, 40).to(dtype).double()
    band = join_band([exactly(t) for t in terms], "any", dtype)
    add = lambda x, y: round_in_fp64(x + y, dtype)
    for seed in range(60):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
        total = functools.reduce(add, list(terms[order]))
        assert bool(((band.lo <= total) & (total <= band.hi)).all())
    wide = (band.hi - band.lo) / 2
    assert bool((wide < 9 * terms.abs().sum(0) * (2.0**-8 if dtype is BF16 else 2.0**-11)).all())


@pytest.mark.parametrize("n", [128, 300, 700])
@pytest.mark.parametrize("way", ["rne", "rtz"])
def test_hundreds_of_terms_in_bf16_stay_within_the_bound(n: int, way: str) -> None:
    """More terms than bf16 counts to: every addition may round up by as much as its term, and sums stagnate."""
    torch.manual_seed(n)
    signed = torch.randn(n, 20).to(BF16).double()
    up = torch.full((n, 1), 1.015625, dtype=torch.float64)  # beyond 256 each addition rounds up to 2
    up[0] = 256
    small = torch.rand(n, 20).to(BF16).double()
    terms = torch.cat([signed, up, small, -small], 1)
    band = join_band([exactly(t) for t in terms], "any", BF16, way)
    worst = torch.zeros(terms.shape[1], dtype=torch.float64)
    for seed in range(12):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        order = {0: torch.arange(n), 1: torch.arange(n).flip(0)}.get(seed, order)
        ordered = terms[order] if seed < 8 else terms.sort(0, descending=seed % 2 == 1).values
        total = functools.reduce(lambda a, b: round_in_fp64(a + b, BF16, way), list(ordered))
        assert bool(((band.lo <= total) & (total <= band.hi)).all())
        worst = torch.maximum(worst, (total - terms.sum(0)).abs())
    reach = (band.hi - band.lo) / 2
    assert float((worst / reach).max()) > 0.15  # nor is it vacuous
    assert float(reach[20]) <= (1.1 if way == "rne" else 4) * n


@pytest.mark.parametrize("order", ["sequential", "reversed", "pairwise", "halves"])
def test_a_known_order_of_known_terms_leaves_one_value(order: str) -> None:
    terms = torch.tensor([[256.0], [1.0], [1.0], [1.0], [-256.0]], dtype=torch.float64)
    # bf16 keeps 8 bits: 257 is a tie and goes to 256. halves: 256 + 1 and 1 - 256, then 256 + 1 again, then -255.
    by_hand = {"sequential": 0.0, "reversed": 3.0, "pairwise": 2.0, "halves": 1.0}
    band = join_band([exactly(t) for t in terms], order, BF16)
    assert band.lo.item() == band.hi.item()
    assert band.lo.item() == by_hand[order], order


def test_wide_terms_carry_their_width() -> None:
    one = Band(torch.tensor([1.0]).double(), torch.tensor([1.5]).double())
    band = join_band([one, one], "sequential", BF16)
    assert (band.lo.item(), band.hi.item()) == (2.0, 3.0)


def test_the_parts_of_k() -> None:
    runs = [slice(i, i + 64) for i in range(0, 448, 64)] + [slice(448, 480)]
    assert Parts.parse("8/up32/dtype").inputs(480) == runs
    assert Parts.parse("k128").inputs(200) == [slice(0, 128), slice(128, 200)]
    assert Parts.parse("3").inputs(2) == [slice(0, 1), slice(1, 2)]
    assert Parts.parse("2/deal4").inputs(18) == [[0, 1, 2, 3, 8, 9, 10, 11, 16, 17], [4, 5, 6, 7, 12, 13, 14, 15]]
    assert Parts.parse("3/deal8").inputs(8) == [[0, 1, 2, 3, 4, 5, 6, 7]]
    for text in ("8", "k64", "8/up32", "8/deal32/dtype", "k128/dtype/add=dtype", "k128+/dtype", "2/dtype/join=halves"):
        assert str(Parts.parse(text)) == text
    assert Parts.parse("k128+/dtype").inputs(200) == Parts.parse("k128").inputs(200)
    for text in ("8+", "k128+/join=pairwise", "k64/k128+", "k+"):
        with pytest.raises(ValueError, match=r"parts: got|kN\+ must"):
            Parts.parse(text)


def test_chains_in_d_step_by_step() -> None:
    """1 + 2^-8 is a tie in bf16 and goes to 1, twice in one chain; in two chains one of them is kept by fp32."""
    a = torch.tensor([[1.0, 2.0**-8, 2.0**-8, 0.0, 2.0**-8, 0.0, 0.0, 0.0]]).to(BF16)
    schedule = Schedule.parse("hfma/t8/tree4-sequential.2-pairwise/combine=sequential")
    assert accumulate(a, torch.ones(1, 8).to(BF16), schedule).item() == 1 + 2.0**-8
    products = accumulate(torch.full((1, 8), 1 + 2.0**-7).to(BF16), torch.full((1, 8), 1 + 2.0**-7).to(BF16), schedule)
    one = round_in_fp64(torch.tensor((1 + 2.0**-7) ** 2).double(), BF16)
    chain = functools.reduce(lambda acc, _: round_in_fp64(acc + (1 + 2.0**-7) ** 2, BF16), range(3), one)
    assert products.item() == 2 * chain.item()
    with pytest.raises(ValueError, match="must be of D for hfma"):
        accumulate(a.float(), torch.ones(1, 8), schedule)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_the_bound_of_chains_holds_their_bit_model_and_not_chains_of_64(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    a, w = torch.rand(16, 256).to(dtype), torch.rand(8, 256).to(dtype)
    band = dot_band(exactly(a), DotWeights(w.double(), w.float()), contract("grouped,accumulator=chains"), dtype)
    for text, legal in (("t8/tree4-sequential.2-pairwise", True), ("t256/tree256-sequential", False)):
        got = accumulate(a, w, Schedule.parse(f"hfma/{text}/combine=sequential")).double()
        assert bool(((band.lo <= got) & (got <= band.hi)).all()) is legal


def test_the_bound_of_parts_holds_any_order_of_them_and_not_another_cut() -> None:
    torch.manual_seed(3)
    a, w = torch.randn(32, 256).to(BF16), torch.randn(16, 256).to(BF16)
    rules = contract("grouped,accumulator=fp32,parts=k64/dtype/add=dtype")
    band = dot_band(exactly(a), DotWeights(w.double(), w.abs().float()), rules, BF16)

    def cut(length: int) -> torch.Tensor:
        parts = [(a[:, k : k + length].double() @ w[:, k : k + length].double().T) for k in range(0, 256, length)]
        return functools.reduce(lambda x, y: round_in_fp64(x + y, BF16), [round_in_fp64(p, BF16) for p in parts][::-1])

    within = lambda got: bool(((band.lo <= got) & (got <= band.hi)).all())
    assert within(cut(64))
    assert not within(cut(32))
    assert not within(a.double() @ w.double().T)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("same_sign", [False, True])
def test_the_bound_of_parts_that_may_be_longer_holds_every_cut_and_order(dtype: torch.dtype, same_sign: bool) -> None:
    """Cuts into runs of 32 or more, in any order, each part and each addition rounded to D; no run may be lost."""
    torch.manual_seed(4)
    a, w, weight = torch.randn(16, 256).to(dtype), torch.randn(16, 256).to(dtype), torch.rand(16, 1).double() + 0.1
    a, w = (a.abs(), w.abs()) if same_sign else (a, w)
    rules = contract("gptq_awq,accumulator=fp32,parts=k32+/dtype/add=dtype,deterministic=false")
    weights = DotWeights(w.double(), w.abs().float())
    bands = {
        False: dot_band(exactly(a), weights, rules, dtype),
        True: dot_band(exactly(a), weights, rules, dtype, weight=weight),
    }
    shuffled, largest = random.Random(5), {False: 0.0, True: 0.0}

    def total(lengths: list[int], weighed: bool) -> torch.Tensor:
        parts = [x.double() @ y.double().T for x, y in zip(a.split(lengths, 1), w.split(lengths, 1), strict=True)]
        parts = [(part * weight).float().double() if weighed else part for part in parts]
        shuffled.shuffle(parts)
        return functools.reduce(lambda x, y: round_in_fp64(x + y, dtype), [round_in_fp64(p, dtype) for p in parts])

    for lengths in ([32] * 8, [40, 216], [256], [64, 32, 160], [100, 50, 50, 56], [32, 33, 34, 35, 36, 86]) * 4:
        for weighed, band in bands.items():
            off = (total(lengths, weighed) - band.mid).abs() / band.radius
            largest[weighed] = max(largest[weighed], float(off.max()))
    assert all(0.05 < ratio <= 1 for ratio in largest.values()), largest
    lost = total([8] * 32, weighed=False) - a[:, :64].double() @ w[:, :64].double().T  # a quarter of K is left out
    assert bool((abs(lost - bands[False].mid) > bands[False].radius).any())
    if same_sign:  # 128 parts of 2
        twos = [abs(total([2] * 128, weighed) - band.mid) > band.radius for weighed, band in bands.items()]
        assert all(bool(outside.any()) for outside in twos)


def test_whole_sums_of_few_bits_have_one_value_however_they_are_cut() -> None:
    a = torch.ones(1, 64).to(BF16)
    rules = contract("grouped,parts=k16+/dtype/add=dtype")
    band = dot_band(exactly(a), DotWeights(a.double(), a.float()), rules, BF16, exact=True)
    assert (band.lo.item(), band.hi.item()) == (64.0, 64.0)
    odd = torch.full((1, 64), 5.0).to(BF16)  # 320 is no sum of 8 bits that every cut reaches
    assert dot_band(exactly(odd), DotWeights(odd.double(), odd.float()), rules, BF16, exact=True).radius.item() > 0
