"""moe_permute and moe_align_block_size against loops that anyone can read."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.common.block_size import infer_block_size
from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size, moe_permute


def some_ids(T, E, k, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-1, E, (T, k), generator=g, dtype=torch.int32)  # repeated and ignored ids


@pytest.mark.parametrize("B", [1, 4, 16])
@pytest.mark.parametrize(("T", "E", "k"), [(0, 3, 2), (1, 1, 1), (7, 4, 2), (40, 5, 3)])
@pytest.mark.parametrize("mapped", [False, True])
def test_align(T, E, k, B, mapped):
    ids, R = some_ids(T, E, k), T * k
    expert_map = torch.tensor([e // 2 if e % 2 == 0 else -1 for e in range(E)]) if mapped else None
    sorted_ids, experts = [], []
    for e in range(E):
        mine = [slot for slot, expert in enumerate(ids.flatten().tolist()) if expert == e]
        padded = -(-len(mine) // B) * B
        sorted_ids += mine + [R] * (padded - len(mine))
        experts += [e if expert_map is None else int(expert_map[e])] * (padded // B)
    got_ids, got_experts, end = moe_align_block_size(ids, B, E, expert_map)
    assert end.tolist() == [len(sorted_ids)]
    assert got_ids.tolist() == sorted_ids + [R] * (R + E * (B - 1) - len(sorted_ids))
    assert got_experts.tolist() == experts + [-1] * (-(-(R + E * (B - 1)) // B) - len(experts))
    assert got_ids.dtype == got_experts.dtype == end.dtype == torch.int32


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("T", "E", "k"), [(0, 3, 2), (1, 1, 1), (7, 4, 2), (40, 5, 3)])
def test_permute(T, E, k, mapped):
    ids, x = some_ids(T, E, k), torch.arange(T * 4.0).reshape(T, 4)
    expert_map = torch.tensor([e - 1 if e >= 1 else -1 for e in range(E)]) if mapped else None
    E_local = E - 1 if mapped else E
    local = [e if expert_map is None or e < 0 else int(expert_map[e]) for e in ids.flatten().tolist()]
    order = sorted(range(T * k), key=lambda slot: local[slot] if local[slot] >= 0 else E_local)
    permuted, offsets, inv = moe_permute(x, ids, E, expert_map)
    assert torch.equal(permuted, x[[slot // k for slot in order]] if order else x)
    assert offsets.tolist() == [sum(0 <= e < n for e in local) for n in range(E_local + 1)]
    assert offsets.dtype == torch.int64
    assert [inv.tolist()[slot] for slot in order] == list(range(T * k))
    assert inv.dtype == torch.int32


@pytest.mark.parametrize("ranks", [1, 2])
def test_block_size_is_inferred_from_what_align_returns(ranks):
    for B in (1, 2, 3, 8, 16, 64, 256):
        for E in (1, 2, 5, 8):
            for T, k in ((1, 1), (1, 2), (3, 2), (33, 2), (200, 4)):
                ids = some_ids(T, E * ranks, k, seed=B)
                sorted_ids, experts, end = moe_align_block_size(ids, B, E * ranks)
                # Under an expert map of a few slots two sizes can fit; then it must ask and not guess.
                try:
                    got = infer_block_size(sorted_ids.numel(), experts.numel(), T * k, E, end)
                except ValueError:
                    got = None
                right = got == B or int(end) == 0 or (ranks > 1 and got is None)
                assert right, (B, got, E, T, k)


def test_block_size_that_cannot_be_told():
    with pytest.raises(ValueError, match="block_size: got None"):
        infer_block_size(100, 7, 3, 4, torch.tensor([96]))
