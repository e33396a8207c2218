"""Schedules as text, as trees of registers, lanes and warps, and as contracts whose legal set is one value."""

import pytest
import torch

from moeracle.ref.bitmodels.accumulate import Schedule, accumulate
from moeracle.ref.bitmodels.fp32_levels import tree32
from moeracle.ref.bitmodels.tensor_core import AMPERE, HOPPER, fused_dot
from moeracle.ref.bounds.band import Band, exactly
from moeracle.ref.bounds.dot import dot_band, dot_weights
from moeracle.ref.contracts.contract import Contract, contract
from moeracle.ref.weights.layouts import pack_int4
from moeracle.ref.weights.quantize import quantize_int4
from moeracle.ref.weights.weight import Int4Weight

BF16, FP16 = torch.bfloat16, torch.float16
DECODE = "fma/t256/tree32-sequential.2-halves.4-halves/combine=sequential/bits64.128.1.2.4.8.16.32"
TEXTS = [
    "wgmma.k16.sm90",
    "mma.m16n8k16.sm90/t64/reversed",
    "mma.m16n8k16.sm90/t32/bits1.4.8.16.2",
    "fma/t6/order2.0.1",
    "fma/lanes32x8",
    "mul_add/t24/n4/halves/descending/combine=pairwise/s4/join=reversed/fused",
    DECODE,
]


def draw(seed, M, K, N, dtype=BF16):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(M, K, generator=g).to(dtype), torch.randn(N, K, generator=g).to(dtype)


def int4(seed, N, K, G, dtype=BF16):
    w = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    codes, scale, _ = quantize_int4(w, G, scale_dtype=dtype)
    return Int4Weight(pack_int4(codes, "exllama"), scale, None, "exllama", G)


# Text.


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips(text):
    schedule = Schedule.parse(text)
    assert Schedule.parse(str(schedule)) == schedule
    assert sorted(str(schedule).split("/")) == sorted(text.split("/"))


def test_text_sets_the_fields():
    s = Schedule.parse("mul_add/t24/n4/halves/descending/combine=pairwise/s4/join=reversed/fused")
    assert s == Schedule("mul_add", 24, 4, "halves", "descending", "pairwise", 4, "reversed", scale_fused=True)
    assert Schedule.parse("fma/t8/bits4.1.2").k_order == (0, 4, 1, 5, 2, 6, 3, 7)
    assert str(Schedule("fma", tile=2, k_order=(1, 0))) == "fma/t2/order1.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wgma.k16.sm90/t64", "instruction: got 'wgma.k16.sm90', .* did you mean 'wgmma.k16.sm90'"),
        ("wgmma.k16.sm90/64", "schedule part: got '64', must be one of"),
        ("wgmma.k16.sm90/t64/t32", "schedule: got tile twice in .*, must be given once"),
        ("fma/t4/combine=pairwize", "combine: got 'pairwize', .* did you mean 'pairwise'"),
        ("fma/t8/tree4-sequential/combine=sequential", "levels: join 4 inputs, must join tile=8"),
        ("fma/t4/tree4-sequential", "combine: got 'chained', must be an order of tiles for order 'tree'"),
        ("fma/t4/tree4-nearest/combine=sequential", "levels: got 'nearest', must be one of"),
        ("fma/t4/bits1.2.4", "k_order: got 8 places, must divide tile=4"),
        ("fma/t4/bits1.1", r"k_order: got \(0, 1, 1, 2\), must be a permutation"),
    ],
)
def test_mistakes_in_text(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        Schedule.parse(text)
    assert "\n" not in str(caught.value)


# Trees.


def test_a_tree_adds_registers_then_lanes_then_warps():
    a, w = draw(1, 1, 8, 1)
    p = (a.float() * w.float())[0].tolist()

    def f(x, y):
        return (torch.tensor(x) + torch.tensor(y)).item()

    pairs = [f(p[2 * i], p[2 * i + 1]) for i in range(4)]
    want = f(f(pairs[0], pairs[2]), f(pairs[1], pairs[3]))
    assert tree32(a.float(), w.float(), ((2, "sequential"), (4, "halves"))).item() == want
    s = Schedule("fma", 8, order="tree", combine="sequential", levels=((2, "sequential"), (4, "halves")))
    assert accumulate(a, w, s).item() == want
    joined = ((4, "halves"), (2, "pairwise"))
    lanes = [f(f(p[i], p[i + 2]), f(p[i + 1], p[i + 3])) for i in (0, 4)]
    assert tree32(a.float(), w.float(), joined).item() == f(*lanes)


def test_a_fused_chain_rounds_its_second_product():
    # In units of fp32's smallest, products 1.5 and 1.25: 1.5 + round(1.25) = 2.5, a tie; 1.25 + round(1.5) = 3.25.
    a, w = torch.tensor([[6 * 2.0**-76, 5 * 2.0**-76]]), torch.tensor([[2.0**-75, 2.0**-75]])
    of = lambda order, fused: tree32(a, w, ((2, order),), fused=fused).item() * 2.0**149
    assert of("sequential", True) == 2
    assert of("reversed", True) == 3
    assert of("pairwise", True) == 2  # a pair is contracted just so
    assert of("sequential", False) == of("reversed", False) == of("pairwise", False) == of("halves", True) == 3


def test_a_trees_tiles_are_added_to_the_accumulator_and_its_order_shows():
    a, w = draw(2, 8, 600, 8)
    whole = accumulate(a, w, Schedule.parse(DECODE))
    total = torch.zeros(8, 8)
    for k in range(0, 600, 256):
        total = total + accumulate(a[:, k : k + 256], w[:, k : k + 256], Schedule.parse(DECODE))
    assert torch.equal(whole, total)
    other = "fma/t256/tree2-sequential.32-halves.4-halves/combine=sequential/bits128.1.2.4.8.16.32.64"
    assert not torch.equal(whole, accumulate(a, w, Schedule.parse(other)))
    assert not torch.equal(whole, accumulate(a, w, Schedule.parse(DECODE.rpartition("/bits")[0])))
    assert torch.allclose(whole, (a.double() @ w.double().T).float(), atol=1e-4)


# Contracts.


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(
    "text",
    [
        "wgmma.k16.sm90/t64", "mma.m16n8k16.sm80", DECODE, "mul_add/s2/pairwise", "mma.m16n8k16.sm86",
        "tcgen05.k16.sm100", "mma.m16n8k8.sm89/t32", "mma.m16n8k16.sm100/t64", "mma.m16n8k16.sm120",
    ],
)  # fmt: skip
def test_with_a_schedule_one_value_is_legal(text, dtype):
    w, (x, _) = int4(3, 6, 512, 32, dtype), draw(4, 5, 512, 1, dtype)
    rules = contract(f"grouped,schedule={text}")
    band = dot_band(exactly(x), dot_weights(w, rules, dtype), rules, dtype)
    want = accumulate(x, w.dequantize(torch.float32).to(dtype), Schedule.parse(text))
    assert band.lo is band.hi
    assert torch.equal(band.lo, want.double())
    any_order = dot_band(exactly(x), dot_weights(w, contract("grouped"), dtype), contract("grouped"), dtype)
    assert bool(((any_order.lo <= band.lo) & (band.lo <= any_order.hi)).all())
    assert bool((any_order.lo < any_order.hi).any())


def test_the_declared_unit_is_told_from_another():
    w, (x, _) = int4(3, 32, 2048, 32), draw(4, 16, 2048, 1)
    rules = contract("grouped,schedule=wgmma.k16.sm90")
    band = dot_band(exactly(x), dot_weights(w, rules, BF16), rules, BF16)
    d = w.dequantize(torch.float32).to(BF16)
    assert torch.equal(band.lo, fused_dot(x, d, HOPPER).double())
    assert not torch.equal(band.lo, fused_dot(x, d, AMPERE).double())


@pytest.mark.parametrize("weight", ["exact", "post", "hoisted"])
def test_weights_that_are_not_cast(weight):
    w, (x, _) = int4(5, 6, 256, 32), draw(6, 5, 256, 1)
    rules = Contract("c", weight=weight, accumulator="fp32", schedule=Schedule.parse("fma/t32"))
    got = dot_band(exactly(x), dot_weights(w, rules, BF16), rules, BF16).lo
    scale, codes = w.scale.float(), w.codes().float()
    if weight == "exact":
        want = accumulate(x, w.dequantize(torch.float32), rules.schedule)
    elif weight == "post":
        want = accumulate(x, (codes - 8).to(BF16), rules.schedule, scale=scale)
    else:
        want = accumulate(x, codes.to(BF16), rules.schedule, scale=scale, zero=torch.full_like(scale, 8))
    assert torch.equal(got, want.double())
    loose = Contract("c", weight=weight, accumulator="fp32")
    band = dot_band(exactly(x), dot_weights(w, loose, BF16), loose, BF16)
    assert bool(((band.lo <= got) & (got <= band.hi)).all())


def test_what_is_not_known_keeps_its_interval():
    w, (x, _) = int4(5, 6, 256, 32), draw(6, 5, 256, 1)
    rules = contract("grouped,schedule=wgmma.k16.sm90")
    near = Band(x.double() - 0.01, x.double() + 0.01)
    band, loose = (dot_band(near, dot_weights(w, r, BF16), r, BF16) for r in (rules, contract("grouped")))
    assert torch.equal(band.lo, loose.lo)
    assert bool((band.lo < band.hi).all())


def test_a_contracts_text_holds_its_schedule():
    rules = contract("grouped, schedule=wgmma.k16.sm90/t64")
    assert rules.schedule == Schedule("wgmma.k16.sm90", tile=64)
    assert rules.differences(contract("grouped")) == ["schedule: wgmma.k16.sm90/t64, None"]
    assert contract("grouped,schedule=none").schedule is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grouped,schedule=wgma.k16.sm90", "instruction: got 'wgma.k16.sm90'"),
        ("grouped,ftz=true,schedule=fma", "schedule: got one with ftz, must be None"),
        ("grouped,accumulator=dtype,schedule=fma", "schedule: got one with accumulator 'dtype', must be None"),
        ("et_vecmat,schedule=wgmma.k16.sm90", "schedule: got wgmma.k16.sm90 with weight 'exact', must be an fp32"),
        ("wvsplitk,schedule=fma", "schedule: got no tile with weight 'post', must have one"),
    ],
)
def test_schedules_that_a_contract_cannot_have(text, message):
    with pytest.raises(ValueError, match="^" + message) as caught:
        contract(text)
    assert "\n" not in str(caught.value)


def test_schedules_that_do_not_fit_the_problem():
    w, (x, _) = int4(5, 6, 256, 32), draw(6, 5, 256, 1)
    short = contract("grouped,schedule=wgmma.k16.sm90/t64/n2")
    with pytest.raises(ValueError, match=r"schedule: covers 128 inputs .*, must cover K=256"):
        dot_band(exactly(x), dot_weights(w, short, BF16), short, BF16)
    wide = contract("wvsplitk,schedule=fma/t64")
    with pytest.raises(ValueError, match="tile: got 64, must divide the scale's group of 32"):
        dot_band(exactly(x), dot_weights(w, wide, BF16), wide, BF16)
    rules = contract("grouped,schedule=fma")
    with pytest.raises(ValueError, match="schedule: got one for weights that are not int4"):
        dot_band(exactly(x), dot_weights(w, contract("grouped"), BF16), rules, BF16)
