"""Dispatch and routing in Triton against the torch dispatch, whose own test is a loop that anyone can read."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.triton import moe_permute_torch
from moeracle.kernels.triton.grouped_gemm import block_table
from moeracle.kernels.triton.moe_permute import moe_align_block_size, moe_permute
from moeracle.kernels.triton.route import route
from moeracle.kernels.triton.route_as_ops import align_by_route, logits_choosing, permute_by_route, topk_by_route
from moeracle.kernels.triton.topk_softmax import topk_softmax

SIZES = [(0, 3, 2), (1, 1, 1), (7, 4, 2), (60, 5, 3), (5, 40, 8)]
ALONE, COUNTED = {"run": 37, "alone": 1 << 30}, {"run": 37, "alone": 0}  # several programs, in one launch and in two


def some_ids(T, E, k, device):
    g = torch.Generator().manual_seed(T + E)
    return torch.randint(-1, E, (T, k), generator=g, dtype=torch.int32).to(device)  # repeated and ignored ids


def half(E, device, mapped):
    """Every second expert, or None: an expert_map of one of two ranks."""
    return torch.tensor([e // 2 if e % 2 == 0 else -1 for e in range(E)], device=device) if mapped else None


def same(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.parametrize("launches", [{}, ALONE, COUNTED], ids=["default", "alone", "counted"])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("T", "E", "k"), SIZES)
def test_align_and_permute(device, T, E, k, mapped, launches):
    ids, expert_map = some_ids(T, E, k, device), half(E, device, mapped)
    for B in (1, 16, 24):
        want = moe_permute_torch.moe_align_block_size(ids, B, E, expert_map)
        same(moe_align_block_size(ids, B, E, expert_map, **launches), want)
    x = torch.randn(T, 20, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).to(device)[:, 3:17]
    want = moe_permute_torch.moe_permute(x, ids, E, expert_map)
    same(moe_permute(x, ids, E, expert_map, **launches), want)
    if mapped:
        same(moe_permute(x, ids, E, expert_map, num_local_experts=(E + 1) // 2, **launches), want)


def test_no_expert_on_this_rank(device):
    ids, nobody = some_ids(6, 4, 2, device), torch.full((4,), -1, device=device)
    x = torch.randn(6, 5, device=device)
    same(moe_permute(x, ids, 4, nobody), moe_permute_torch.moe_permute(x, ids, 4, nobody))
    same(moe_align_block_size(ids, 4, 4, nobody), moe_permute_torch.moe_align_block_size(ids, 4, 4, nobody))


@pytest.mark.parametrize(
    "launches", [{}, {"one_launch": 0}, {"one_launch": 0, "tokens": 5}], ids=["one", "two", "runs"]
)
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("T", "E", "k"), [(0, 3, 2), (1, 1, 1), (7, 4, 2), (23, 5, 3)])
def test_route_is_its_three_ops(device, T, E, k, mapped, launches):
    wide = torch.randn(T, E + 5, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(device)
    logits = wide[:, 2 : E + 2]
    expert_map = half(E, device, mapped)
    got = route(logits, k, block_size=16, block_m=24, expert_map=expert_map, **launches)
    same(got[:2], topk_softmax(logits, k, True))
    same(got[2:5], moe_permute_torch.moe_align_block_size(got.ids, 16, E, expert_map))
    tokens = torch.arange(T, device=device)[:, None].float()
    rows, offsets, inv = moe_permute_torch.moe_permute(tokens, got.ids, E, expert_map)
    same((got.expert_offsets, got.inv, got.row_to_slot // k), (offsets, inv, rows[:, 0].int()))
    same((got.block_table,), (block_table(offsets, T * k, 24),))


def test_route_leaves_out_what_nobody_asks_for(device):
    got = route(torch.randn(5, 6, device=device), 2, False, block_size=None, block_m=None)
    assert got.sorted_token_ids is got.expert_ids is got.num_tokens_post_padded is got.block_table is None
    assert got.inv.sort().values.tolist() == list(range(10))
    assert not torch.allclose(got.weights.sum(1), torch.ones((), device=device))


def test_a_spoilt_row_does_not_spoil_the_dispatch(device):
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).to(device)
    logits[3], logits[5, 2] = float("-inf"), float("nan")
    for launches in ({}, {"one_launch": 0}):
        got = route(logits, 2, **launches)
        assert got.ids[3].tolist() == got.ids[5].tolist() == [0, 1]
        assert int(got.expert_offsets[-1]) == 18
        assert got.inv.sort().values.tolist() == list(range(18))


def test_route_as_ops(device):
    ids = torch.tensor([[2, 0], [1, 3], [3, 2]], dtype=torch.int32, device=device)
    assert torch.equal(topk_by_route(logits_choosing(ids, 5), 2, False)[1], ids)
    same(align_by_route(ids, 4, 5), moe_permute_torch.moe_align_block_size(ids, 4, 5))
    x = torch.randn(3, 6, device=device)
    same(permute_by_route(x, ids, 5, None), moe_permute_torch.moe_permute(x, ids, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: route(torch.zeros(4), 1), "logits: got shape"),
        (lambda: route(torch.zeros(4, 3), 4), "top_k: got 4, must be in 1..3"),
        (lambda: route(torch.zeros(4, 3), 1, block_size=0), "block_size: got 0"),
        (lambda: route(torch.zeros(4, 3), 1, block_m=-1), "block_m: got -1"),
        (lambda: moe_align_block_size(torch.zeros(2, 1), 0, 3), "block_size: got 0"),
        (lambda: moe_permute(torch.zeros(3, 2), torch.zeros(2, 1), 3), "x: got 3 rows, must be T = 2"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
