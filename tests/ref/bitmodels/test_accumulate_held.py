"""Sums that a compiler lays out: held over the tiles, dealt to accumulators, scaled last; against sums by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from moeracle.ref.bitmodels.accumulate import Schedule, accumulate
from moeracle.ref.bitmodels.fp32_trees import sum_terms32
from moeracle.ref.bitmodels.tensor_core import HOPPER, fused_dot
from moeracle.ref.contracts.contract import contract

G = torch.Generator().manual_seed(7)


def operands(M, N, K, dtype=torch.bfloat16, codes=False):
    a = torch.randn(M, K, generator=G) * torch.exp2(torch.randint(-8, 9, (M, K), generator=G).float())
    w = torch.randint(-128, 128, (N, K), generator=G).float() if codes else torch.randn(N, K, generator=G)
    return a.to(dtype), w.to(dtype)


def f32(x):
    return torch.tensor(x, dtype=torch.float64).float().item()


def by_hand(a, w, tile, held, tree, order=None, scale=None):
    """acc[place] over the tiles, then `tree` of them; products of bf16 are exact in fp32 here."""
    K, order = len(a), order or list(range(tile))
    acc = [0.0] * (tile // held)
    for start in range(0, K, tile):
        for i in range(tile // held):
            at = [start + order[i * held + j] for j in range(held)]
            part = None
            for k in at:
                p = f32(a[k] * w[k]) if k < K else 0.0
                part = p if part is None else f32(part + p)
            s = 1.0 if scale is None else scale[min(at[0] // (K // len(scale)), len(scale) - 1)]
            acc[i] = f32(acc[i] + part * s)  # the product of 48 bits is exact in fp64: one rounding
    return tree(acc)


def halves(x):
    return (
        x[0] if len(x) == 1 else halves([f32(p + q) for p, q in zip(x[: len(x) // 2], x[len(x) // 2 :], strict=True)])
    )


def sequential(x):
    return x[0] if len(x) == 1 else f32(sequential(x[:-1]) + x[-1])


@pytest.mark.parametrize("K", [64, 40, 7])
def test_places_are_held_over_the_tiles(K):
    a, w = operands(3, 2, K)
    schedule = Schedule.parse("fma/t16/tree4-sequential.4-halves/bits4.8.1.2/held1")
    order = list(schedule.k_order)
    tree = lambda acc: halves([sequential(acc[i : i + 4]) for i in range(0, 16, 4)])
    got = accumulate(a, w, schedule)
    want = [[by_hand(x, y, 16, 1, tree, order) for y in w.double().tolist()] for x in a.double().tolist()]
    assert got.tolist() == want


def test_chunks_are_scaled_and_held():
    a, codes = operands(2, 3, 96, codes=True)
    scale = torch.rand(3, 4, generator=G)
    schedule = Schedule.parse("fma/t32/tree8-sequential.4-halves/held8/fused")
    got = accumulate(a, codes, schedule, scale=scale)
    args = [
        (x, y, s)
        for x in a.double().tolist()
        for y, s in zip(codes.double().tolist(), scale.double().tolist(), strict=True)
    ]
    assert got.flatten().tolist() == [by_hand(x, y, 32, 8, halves, scale=s) for x, y, s in args]
    with pytest.raises(ValueError, match="must keep them together"):
        accumulate(
            a, codes, Schedule.parse("fma/t32/tree8-sequential.4-halves/held8/fused/bits8.16.1.2.4"), scale=scale
        )
    with pytest.raises(ValueError, match="must divide the scale's group of 12"):
        accumulate(a, codes, schedule, scale=scale.repeat_interleave(2, 1))


def test_the_smallest_products_are_added_with_one_rounding():
    # in units of fp32's smallest each place adds 1.25, then 1.5: 1 + 1.5 is a tie, 1 + round(1.5) is 3
    a, w = torch.tensor([[5.0, 5.0, 6.0, 6.0]]) * 2.0**-76, torch.full((1, 4), 2.0**-75)
    of = lambda name: accumulate(a, w, Schedule.parse(f"{name}/t2/tree2-sequential/held1")).item() * 2.0**149
    assert (of("fma"), of("mul_add")) == (4, 6)


@pytest.mark.parametrize(("step", "order"), [(16, None), (8, "bits1.2.16.4.8"), (4, None)])
def test_dealt_groups_are_joined_last_and_take_few_products_of_an_instruction(step, order):
    group = 32 if step == 8 else 16
    a, codes = operands(2, 3, 6 * group, codes=True)
    scale = torch.rand(3, 6, generator=G)
    text = "/".join(
        filter(None, (f"wgmma.k16.sm90/t{group}", f"p{step}" if step < 16 else "", order, "d4/join=halves/fused"))
    )
    schedule = Schedule.parse(text)
    assert Schedule.parse(str(schedule)) == schedule
    perm = list(schedule.k_order) or list(range(group))
    acc = [torch.zeros(2, 3, dtype=torch.float64) for _ in range(4)]
    for i in range(6):
        at = [i * group + k for k in perm]
        part = torch.zeros(2, 3)
        for j in range(0, group, step):
            part = fused_dot(a[:, at[j : j + step]], codes[:, at[j : j + step]], HOPPER, part)
        acc[i % 4] = (acc[i % 4] + part.double() * scale[None, :, i].double()).float().double()
    want = (acc[0] + acc[2]).float() + (acc[1] + acc[3]).float()
    assert torch.equal(accumulate(a, codes, schedule, scale=scale), want)


def test_zeros_beside_a_few_products_change_nothing():
    a, w = operands(4, 4, 64)
    few = accumulate(a, w, Schedule.parse("mma.m16n8k16.sm90/t64/p8"))
    zeros = torch.zeros(4, 8, 16, dtype=torch.bfloat16)
    wide_a, wide_w = (torch.cat([t.unflatten(1, (8, 8)), zeros[..., 8:]], 2).flatten(1) for t in (a, w))
    assert torch.equal(few, accumulate(wide_a, wide_w, Schedule("mma.m16n8k16.sm90")))


def test_one_scale_a_row_comes_last_with_the_bias():
    a, codes = operands(2, 3, 64, codes=True)
    scale, bias = torch.rand(3, 1, generator=G), torch.randn(3, generator=G)
    plain = accumulate(a, codes, Schedule("wgmma.k16.sm90"))
    last = accumulate(a, codes, Schedule.parse("wgmma.k16.sm90/scalelast"), scale=scale)
    assert torch.equal(last, plain * scale.T)
    fused = accumulate(a, codes, Schedule.parse("wgmma.k16.sm90/scalelast/biasfused"), scale=scale, bias=bias)
    assert torch.equal(fused, (plain.double() * scale.T.double() + bias.double()).float())
    with pytest.raises(ValueError, match="scale: got none"):
        accumulate(a, codes, Schedule.parse("wgmma.k16.sm90/scalelast"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fma/t8/tree8-sequential/held3", "held: got 3, must be the inputs of a tree's first levels"),
        ("fma/t8/held1", "held: got 1, must be the inputs of a tree's first levels"),
        ("fma/t8/tree2-sequential.4-halves/held8", "held: got 8, must be"),
        ("fma/t8/p2", r"products: got 2, must be 0 to 0 \(fma\)"),
        ("wgmma.k16.sm90/p17", "products: got 17, must be 0 to 16"),
        ("wgmma.k16.sm90/t16/d2/s2", "deal: got 2, must be 1 with splits"),
        ("wgmma.k16.sm90/t16/d0", "deal: got 0, must be 1 to 1048576"),
        ("fma/t99999999999999", "tile: got 99999999999999, must be 1 to 1048576"),
        ("fma/lanes32x99999999999999", "chunk: got 99999999999999, must be 1 to 1048576"),
        ("wgmma.k16.sm90/biasfused", "bias_fused: goes with scale_last"),
    ],
)
def test_what_contradicts_itself_is_one_line(text, said):
    with pytest.raises(ValueError, match=said):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grouped,sum_schedule=fma/t8", "sum_schedule: got fma/t8, must be fma or mul_add"),
        ("grouped,sum_schedule=wgmma.k16.sm90", "must be fma or mul_add"),
        ("gptq_awq,sum_schedule=fma", "sum_schedule: got fma with topk_sum 'vllm'"),
        ("grouped,ftz=true,gate_schedule=fma", "gate_schedule: got one with ftz"),
        ("et_vecmat,gemm2_schedule=wgmma.k16.sm90", "gemm2_schedule: got wgmma.k16.sm90 with weight 'exact'"),
        ("grouped,schedule=wgmma.k16.sm90/scalelast", "with weight 'cast', must be 'post'"),
        ("int8_lm_head,schedule=fma", "schedule: got no tile with weight 'post'"),
    ],
)
def test_a_contract_refuses_a_schedule_that_its_other_fields_contradict(text, said):
    with pytest.raises(ValueError, match=said):
        contract(text)


def test_a_sum_over_slots_in_each_order():
    terms = (
        torch.randn(4, 5, dtype=torch.float64, generator=G).float().double() * torch.rand(4, 5, generator=G).double()
    )
    for order, fused in itertools.product(("sequential", "reversed", "pairwise", "halves"), (True, False)):
        rows = terms if order != "reversed" else terms.flip(0)
        chain = order in ("sequential", "reversed")
        if chain:
            want = torch.zeros(5)
            for row in rows:
                want = (want.double() + row).float() if fused else want + row.float()
        else:
            r = rows.float()
            want = (r[0] + r[1]) + (r[2] + r[3]) if order == "pairwise" else (r[0] + r[2]) + (r[1] + r[3])
        assert torch.equal(sum_terms32(terms, order, fused), want), (order, fused)


def test_a_contract_can_forget_its_schedules():
    rules = contract("grouped,depth=9,schedule=fma,gemm2_schedule=wgmma.k16.sm90,gate_schedule=fma,sum_schedule=fma")
    plain = rules.unscheduled
    assert plain == contract("grouped,depth=9")
    assert plain.unscheduled is plain
    assert rules.of_gemm2.schedule == Schedule("wgmma.k16.sm90")
    assert contract("grouped,schedule=fma").of_gemm2.schedule == Schedule("fma")
