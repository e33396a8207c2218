"""Dispatch: hand-worked tables, properties on random routings, ignored slots, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from moeracle.ref.ops.moe_permute import (
    block_table,
    check_topk_ids,
    moe_align_block_size,
    moe_permute,
    moe_unpermute,
    row_to_expert,
    row_to_token,
)

# 4 tokens, k = 2, 4 experts: expert 0 has slots 1, 4; expert 1 none; expert 2 slots 0, 3, 6; expert 3 slots 2, 5, 7
IDS = torch.tensor([[2, 0], [3, 2], [0, 3], [2, 3]], dtype=torch.int32)
X = torch.tensor([[10.0], [11.0], [12.0], [13.0]])
# rank 1 of 2 holds experts 2 and 3, under the local ids 0 and 1
SECOND_HALF = torch.tensor([-1, -1, 0, 1], dtype=torch.int32)


def test_align_by_hand():
    ids, experts, used = moe_align_block_size(IDS, 2, 4)
    assert ids.tolist() == [1, 4, 0, 3, 6, 8, 2, 5, 7, 8, 8, 8]  # 8 + 4*(2-1) long
    assert experts.tolist() == [0, 2, 2, 3, 3, -1]
    assert used.tolist() == [10]
    assert ids.dtype == experts.dtype == used.dtype == torch.int32


@pytest.mark.parametrize(("tail", "last"), [(-1, -1), (0, 0), ("last", 3)])
def test_align_blocks_past_the_end(tail, last):
    assert moe_align_block_size(IDS, 2, 4, tail_expert=tail)[1].tolist() == [0, 2, 2, 3, 3, last]


def test_align_last_block_may_be_partial():
    # length 8 + 4*3 = 20 in blocks of 4: 5 blocks; B = 5 gives 24 = 4 whole blocks and one of 4 ids
    ids, experts, used = moe_align_block_size(IDS, 5, 4)
    assert ids.shape == (24,)
    assert experts.tolist() == [0, 2, 3, -1, -1]
    assert used.tolist() == [15]


def test_align_with_expert_map_keeps_the_blocks_of_other_ranks():
    ids, experts, used = moe_align_block_size(IDS, 2, 4, SECOND_HALF)
    assert ids.tolist() == [1, 4, 0, 3, 6, 8, 2, 5, 7, 8, 8, 8]
    assert experts.tolist() == [-1, 0, 0, 1, 1, -1]
    assert used.tolist() == [10]
    assert moe_align_block_size(IDS, 2, 4, SECOND_HALF, tail_expert="last")[1].tolist() == [-1, 0, 0, 1, 1, 1]


def test_align_with_invalid_experts_ignored():
    ids, experts, used = moe_align_block_size(IDS, 2, 4, SECOND_HALF, ignore_invalid_experts=True)
    assert ids.tolist() == [0, 3, 6, 8, 2, 5, 7, 8, 8, 8, 8, 8]
    assert experts.tolist() == [0, 0, 1, 1, -1, -1]
    assert used.tolist() == [8]
    for tail, wanted in ((0, [0, 0, 1, 1, 0, 0]), ("last", [0, 0, 1, 1, 1, 1])):  # local ids, never mapped
        got = moe_align_block_size(IDS, 2, 4, SECOND_HALF, tail_expert=tail, ignore_invalid_experts=True)
        assert got[1].tolist() == wanted
    # local ids in another order than global ids: sorted by local id
    swapped = torch.tensor([1, -1, -1, 0])
    ids, experts, used = moe_align_block_size(IDS, 2, 4, swapped, ignore_invalid_experts=True)
    assert ids.tolist()[:6] == [2, 5, 7, 8, 1, 4]
    assert experts.tolist()[:3] == [0, 0, 1]
    assert used.tolist() == [6]


def test_align_skips_ignored_ids():
    topk_ids = torch.tensor([[1, -1], [-1, -1], [0, 1]])
    ids, experts, used = moe_align_block_size(topk_ids, 2, 2)
    assert ids.tolist() == [4, 6, 0, 5, 6, 6, 6, 6]
    assert experts.tolist() == [0, 1, -1, -1]
    assert used.tolist() == [4]


def test_align_no_tokens_and_block_of_one():
    nobody = torch.zeros(0, 2, dtype=torch.int32)
    assert [part.tolist() for part in moe_align_block_size(nobody, 4, 3)] == [[0] * 9, [-1] * 3, [0]]
    assert [part.tolist() for part in moe_align_block_size(nobody, 1, 3)] == [[], [], [0]]
    ids, experts, _ = moe_align_block_size(IDS, 1, 4)
    assert ids.tolist() == [1, 4, 0, 3, 6, 2, 5, 7]
    assert experts.tolist() == [0, 0, 2, 2, 2, 3, 3, 3]


def random_ids(seed, T, k, E, ignored=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-ignored, E, (T, k), generator=generator, dtype=torch.int32)  # repeats inside a row too


@pytest.mark.parametrize("seed", range(12))
def test_align_properties(seed):
    T, k, E, B = (17, 3, 6, 4) if seed % 2 else (40, 2, 9, 16)
    topk_ids = random_ids(seed, T, k, E, ignored=seed % 3 == 0)
    flat = topk_ids.flatten().tolist()
    R = T * k
    ids, experts, used = moe_align_block_size(topk_ids, B, E)
    assert ids.shape == (R + E * (B - 1),)
    assert experts.shape == (math.ceil((R + E * (B - 1)) / B),)
    end = int(used)
    assert end % B == 0
    assert (ids[end:] == R).all()
    assert (experts[end // B :] == -1).all()
    assert (experts[: end // B].diff() >= 0).all()
    for e in range(E):
        blocks = [b for b in range(end // B) if int(experts[b]) == e]
        mine = [i for b in blocks for i in ids[b * B : (b + 1) * B].tolist()]
        real = [i for i in mine if i < R]
        assert real == [i for i in range(R) if flat[i] == e]
        assert len(blocks) == math.ceil(len(real) / B)
        assert mine == real + [R] * (len(mine) - len(real))  # padding only behind the last real id


def test_permute_by_hand():
    rows, offsets, inv = moe_permute(X, IDS, 4)
    assert rows.flatten().tolist() == [10, 12, 10, 11, 13, 11, 12, 13]
    assert offsets.tolist() == [0, 2, 2, 5, 8]
    assert inv.tolist() == [2, 0, 5, 3, 1, 6, 4, 7]
    assert (offsets.dtype, inv.dtype) == (torch.int64, torch.int32)
    assert row_to_token(inv, 2).tolist() == [0, 2, 0, 1, 3, 1, 2, 3]
    assert row_to_expert(offsets, 8).tolist() == [0, 0, 2, 2, 2, 3, 3, 3]
    assert block_table(offsets, 2).tolist() == [[0, 0, 2], [2, 2, 2], [2, 4, 1], [3, 5, 2], [3, 7, 1]]


def test_permute_puts_other_ranks_last():
    rows, offsets, inv = moe_permute(X, IDS, 4, SECOND_HALF)
    assert rows.flatten().tolist()[:6] == [10, 11, 13, 11, 12, 13]
    assert offsets.tolist() == [0, 3, 6]
    assert inv.tolist() == [0, 6, 3, 1, 7, 4, 2, 5]
    assert row_to_expert(offsets, 8).tolist() == [0, 0, 0, 1, 1, 1, -1, -1]
    with_ignored = torch.where(IDS < 2, -1, IDS)
    for again, once in zip(moe_permute(X, with_ignored, 4, SECOND_HALF), (rows, offsets, inv), strict=True):
        assert torch.equal(again, once)


def test_unpermute_by_hand_in_slot_order():
    # one token, three slots: (2^24 + 1) + -2^24 in fp32 is 0 because 2^24 + 1 rounds down; any other order gives 1
    topk_ids = torch.tensor([[2, 0, 1]])
    _, offsets, inv = moe_permute(torch.zeros(1, 1), topk_ids, 3)
    y = torch.tensor([[1.0], [-1.0], [2.0**24]])  # experts 0, 1, 2
    weights = torch.tensor([[1.0, 1.0, 2.0**24]])
    assert moe_unpermute(y, weights, inv, expert_offsets=offsets).tolist() == [[0.0]]
    assert moe_unpermute(y, weights, inv, dtype=torch.float64).tolist() == [[1.0]]


def test_unpermute_reads_no_ignored_row():
    topk_ids = torch.tensor([[0, -1], [-1, -1]])
    _, offsets, inv = moe_permute(torch.zeros(2, 3), topk_ids, 2)
    y = torch.full((4, 3), math.nan)
    y[0] = 2.0
    out = moe_unpermute(y, torch.full((2, 2), 0.5), inv, expert_offsets=offsets)
    assert out.tolist() == [[1.0] * 3, [0.0] * 3]
    assert moe_unpermute(y, torch.full((2, 2), 0.5), inv).isnan().all()  # without offsets every row counts


@pytest.mark.parametrize("seed", range(8))
def test_permute_properties(seed):
    T, k, E, K = 23, 3, 7, 5
    generator = torch.Generator().manual_seed(seed)
    topk_ids = random_ids(seed, T, k, E, ignored=seed % 2 == 0)
    x = torch.randn(T, K, generator=generator).to(torch.bfloat16)
    rows, offsets, inv = moe_permute(x, topk_ids, E)
    assert rows.dtype == x.dtype
    assert torch.equal(rows[inv.long()], x.repeat_interleave(k, 0))  # inv takes every slot to its row
    assert torch.equal(rows, x[row_to_token(inv, k).long()])
    experts = row_to_expert(offsets, T * k)
    assert torch.equal(experts[inv.long()], topk_ids.flatten())
    for e in range(E):  # stable: an expert's slots keep their order
        assert (inv[topk_ids.flatten() == e].diff() > 0).all()
    valid = (topk_ids >= 0).to(torch.float32)
    out = moe_unpermute(rows, valid, inv, expert_offsets=offsets)
    torch.testing.assert_close(out, valid.sum(1, keepdim=True) * x.float())
    # permuting what is already sorted changes nothing
    ordered = topk_ids.flatten()[topk_ids.flatten() >= 0].sort().values[:, None]
    assert torch.equal(moe_permute(x[:1].expand(len(ordered), K), ordered, E)[2], torch.arange(len(ordered)).int())


@pytest.mark.parametrize("block_m", [1, 3, 16])
def test_block_table_properties(block_m):
    counts = torch.tensor([5, 0, 0, 16, 1, 17, 0])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    table = block_table(offsets, block_m).tolist()
    assert block_table(offsets, block_m).dtype == torch.int32
    assert [r for e, start, count in table for r in range(start, start + count)] == list(range(39))
    for e, start, count in table:
        assert 1 <= count <= block_m
        assert (start - int(offsets[e])) % block_m == 0
        assert start + count <= int(offsets[e + 1])
    assert len(table) == sum(math.ceil(c / block_m) for c in counts.tolist())


def test_no_rows():
    rows, offsets, inv = moe_permute(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int32), 3)
    assert rows.shape == (0, 4)
    assert offsets.tolist() == [0, 0, 0, 0]
    assert moe_unpermute(rows, torch.zeros(0, 2), inv, expert_offsets=offsets).shape == (0, 4)
    assert block_table(offsets, 16).shape == (0, 3)
    assert row_to_token(inv, 2).shape == (0,)


def test_threads_change_nothing():
    topk_ids = random_ids(5, 500, 4, 16)
    x, weights = torch.arange(16000.0).reshape(500, 32).sin(), torch.arange(2000.0).reshape(500, 4).cos()
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            rows, offsets, inv = moe_permute(x, topk_ids, 16)
            out = moe_unpermute(rows, weights, inv)
            results.append([rows, offsets, inv, out, *moe_align_block_size(topk_ids, 16, 16)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_refusals():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"topk_ids: got id 4, must be -1 \(ignored\) or 0\.\.3"):
        check_topk_ids(IDS + 1, 4)
    with pytest.raises(ValueError, match="topk_ids: got id -2"):
        moe_permute(x, IDS - 2, 4)
    with pytest.raises(ValueError, match=r"topk_ids: got torch\.float32"):
        moe_align_block_size(IDS.float(), 2, 4)
    with pytest.raises(ValueError, match="block_size: got 0"):
        moe_align_block_size(IDS, 0, 4)
    with pytest.raises(ValueError, match=r"tail_expert: got 'lst'.*did you mean 'last'"):
        moe_align_block_size(IDS, 2, 4, tail_expert="lst")
    with pytest.raises(ValueError, match=r"expert_map: got .* of shape \(2,\), must be int32 or int64 \(4,\)"):
        moe_align_block_size(IDS, 2, 4, SECOND_HALF[:2])
    with pytest.raises(ValueError, match=r"expert_map: got local ids \[1, 2\], must be 0\.\.1"):
        moe_permute(x, IDS, 4, torch.tensor([-1, -1, 1, 2]))
    with pytest.raises(ValueError, match="x: got 4 rows, must have 3"):
        moe_permute(x, IDS[:3], 4)
    with pytest.raises(ValueError, match="inv: got a repeated or missing row"):
        row_to_token(torch.tensor([0, 0]), 2)
    with pytest.raises(ValueError, match=r"y: got shape \(7, 2\)"):
        moe_unpermute(torch.zeros(7, 2), torch.zeros(4, 2), torch.arange(8))
    with pytest.raises(ValueError, match="expert_offsets: got a last entry of 9"):
        moe_unpermute(torch.zeros(8, 2), torch.zeros(4, 2), torch.arange(8), expert_offsets=torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="block_m: got 0"):
        block_table(torch.tensor([0, 2]), 0)
    with pytest.raises(ValueError, match="must start at 0 and not decrease"):
        block_table(torch.tensor([0, 2, 1]), 4)
    with pytest.raises(ValueError, match="top_k: got 3, must divide"):
        row_to_token(torch.arange(8), 3)
    with pytest.raises(ValueError, match="num_rows: got 1"):
        row_to_expert(torch.tensor([0, 2]), 1)
