"""Grouped, padded, dense and decode GEMM against fp64, over everything that has gone wrong in such kernels."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.triton.decode_gemm import decode_gemm
from moeracle.kernels.triton.grouped_gemm import block_table, grouped_gemm
from moeracle.kernels.triton.int4_linear import int4_linear
from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size, moe_permute
from moeracle.kernels.triton.padded_gemm import padded_gemm
from moeracle.kernels.triton.tiles import Tile

SMALL = Tile(16, 32, 32)
DTYPES = [torch.bfloat16, torch.float16]


def activations(rows, K, dtype, device, seed=1, strided=False):
    g = torch.Generator().manual_seed(seed)
    wide = torch.randn(rows, K + (24 if strided else 0), generator=g).to(dtype).to(device)
    return wide[:, 8 : K + 8] if strided else wide


def expect_linear(x, W):
    x = x.cpu().double()
    return x @ W.T, x.abs() @ W.abs().T


def expect_slots(x, W, ids, slots_per_row):
    """y[slot] = W[id] x[slot // slots_per_row]; zero for id -1."""
    y, t = torch.zeros(2, ids.numel(), W.shape[1], dtype=torch.float64)
    for slot, e in enumerate(ids.flatten().tolist()):
        if e >= 0:
            y[slot : slot + 1], t[slot : slot + 1] = expect_linear(x[slot // slots_per_row][None], W[e])
    return y, t


def route(T, E, k, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(E, generator=g)[:k] for _ in range(T)]).to(torch.int32).reshape(T, k)


# K: a multiple of BK = 32, a tail of 8, less than a tile. G: above, at and below BK, one group, odd, below a word.
@pytest.mark.parametrize("zero", ["sym", "unpacked", "rdna"])
@pytest.mark.parametrize(
    ("K", "G"), [(64, 64), (64, 32), (64, 16), (72, -1), (72, 24), (72, 12), (40, 4), (24, 8), (96, 48)]
)
def test_linear_reads_every_group_size_and_zero_layout(make_weight, assert_close, device, K, G, zero):
    w, W = make_weight(40, K, G=G, zero=zero)
    x = activations(5, K, torch.bfloat16, device)
    assert_close(int4_linear(x, w, config=SMALL), *expect_linear(x, W))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_k", [16, 64, 128])
def test_wide_tiles_over_many_groups(make_weight, assert_close, device, dtype, block_k):
    w, W = make_weight(33, 256, G=32, dtype=dtype, zero="unpacked")
    x = activations(17, 256, dtype, device)
    assert_close(int4_linear(x, w, config=Tile(16, 64, block_k)), *expect_linear(x, W))


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_bias_strides_and_exact_integers(make_weight, device, dtype):
    w, W = make_weight(20, 64, G=32, dtype=dtype, pad=32, integers=True)
    x = torch.randint(-3, 4, (3, 80), generator=torch.Generator().manual_seed(3)).to(dtype).to(device)[:, 8:72]
    bias = torch.arange(20).to(dtype)
    want = (x.cpu().double() @ W.T + bias.double()).to(torch.float32).to(dtype)  # sums below 2**24: one rounding
    assert torch.equal(int4_linear(x, w, bias.to(device)).cpu(), want)
    columns = x.t().contiguous().t()  # column-major activations
    assert torch.equal(int4_linear(columns, w, bias.to(device), config=SMALL).cpu(), want)


@pytest.mark.parametrize("T", [0, 1, 16, 17])
def test_linear_row_counts(make_weight, assert_close, device, T):
    w, W = make_weight(16, 32)
    x = activations(T, 32, torch.bfloat16, device)
    assert_close(int4_linear(x, w), *expect_linear(x, W))


@pytest.mark.parametrize("counts", [[0, 0, 0], [3, 0, 18], [0, 0, 40], [16, 16, 16], [1, 1, 1]])
@pytest.mark.parametrize("ignored", [0, 19])
def test_grouped_writes_every_row(make_weight, assert_close, device, counts, ignored):
    w, W = make_weight(3, 24, 40, G=8)
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int64)
    R = int(offsets[-1]) + ignored
    x = activations(R, 40, torch.bfloat16, device, strided=True)
    ids = torch.repeat_interleave(torch.tensor([0, 1, 2, -1]), torch.tensor([*counts, ignored]))
    y = grouped_gemm(x, w, offsets.to(device), config=SMALL)
    assert_close(y, *expect_slots(x, W, ids, 1))
    assert not y[int(offsets[-1]) :].any()


@pytest.mark.parametrize("block_m", [1, 16, 64])
@pytest.mark.parametrize("counts", [[], [0], [5, 0, 64, 65], [0, 0, 1]])
def test_block_table_covers_each_row_once(counts, block_m):
    offsets = torch.tensor([0, *counts]).cumsum(0)
    rows = torch.full((int(offsets[-1]) + 7,), -2)
    for expert, start, count in block_table(offsets, rows.numel(), block_m).tolist():
        assert 0 <= count <= block_m
        assert (rows[start : start + count] == -2).all()
        rows[start : start + count] = expert
    want = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    assert rows.tolist() == want.tolist() + [-1] * 7


# 48 > BM, 5 < BM and not a power of two, 1 = no padding, 100 = several tiles with a ragged end.
@pytest.mark.parametrize("B", [1, 5, 16, 48, 100, 256])
def test_padded_at_any_alignment_equals_grouped_bit_for_bit(make_weight, assert_close, device, B):
    T, E, k = 11, 4, 2
    w, W = make_weight(E, 40, 72, G=24, zero="unpacked")
    x = activations(T, 72, torch.bfloat16, device, strided=True)
    ids = route(T, E, k).to(device)
    ids[3, 1] = ids[7, 0] = ids[7, 1] = -1
    blocks = moe_align_block_size(ids, B, E)
    y = padded_gemm(x, w, *blocks, None, k, config=SMALL)
    assert_close(y, *expect_slots(x, W, ids, k))
    assert not y[ids.flatten() < 0].any()
    permuted, offsets, inv = moe_permute(x, ids, E)
    assert torch.equal(grouped_gemm(permuted, w, offsets, config=SMALL)[inv.long()], y)
    assert torch.equal(padded_gemm(x, w, *blocks, None, k, block_size=B, config=SMALL), y)


def test_padded_with_router_weights_rounds_once(make_weight, assert_close, device):
    T, E, k = 6, 3, 2
    w, W = make_weight(E, 32, 64)
    x, ids = activations(T, 64, torch.bfloat16, device), route(T, E, k).to(device)
    weights = torch.rand(T, k, generator=torch.Generator().manual_seed(5)).to(device)
    y, t = expect_slots(x, W, ids, k)
    scaled = weights.flatten().cpu().double()[:, None]
    blocks = moe_align_block_size(ids, 16, E)
    assert_close(padded_gemm(x, w, *blocks, weights, k), y * scaled, t * scaled)


def test_padded_skips_foreign_experts_and_what_lies_past_the_end(make_weight, assert_close, device):
    T, E, k, B = 7, 4, 2, 8
    w, W = make_weight(2, 32, 64)
    x, ids = activations(T, 64, torch.bfloat16, device), route(T, E, k).to(device)
    expert_map = torch.tensor([-1, 1, 0, -1], dtype=torch.int32, device=device)
    sorted_ids, expert_ids, end = moe_align_block_size(ids, B, E, expert_map)
    past = int(end) // B
    assert (expert_ids[:past] == -1).any()
    expert_ids[past:] = 0  # the convention before vLLM#35161: these blocks must not run
    sorted_ids[int(end) :] = 0
    local = torch.tensor([-1, 1, 0, -1])[ids.cpu().long()]
    assert_close(padded_gemm(x, w, sorted_ids, expert_ids, end, None, k), *expect_slots(x, W, local, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero", ["sym", "rdna"])
def test_decode(make_weight, assert_close, device, dtype, zero):
    T, E, k = 3, 4, 2
    w, W = make_weight(E, 40, 72, G=24, dtype=dtype, zero=zero, pad=3)
    ids = route(T, E, k).to(device)
    ids[1, 0] = -1
    x = activations(T, 72, dtype, device)
    assert_close(decode_gemm(x, w, ids, config=SMALL), *expect_slots(x, W, ids, k))
    rows = activations(T * k, 72, dtype, device, seed=2, strided=True)
    assert_close(decode_gemm(rows, w, ids), *expect_slots(rows, W, ids, 1))


def test_no_tokens(make_weight, device):
    w, _ = make_weight(4, 32, 64)
    x, ids = (
        torch.empty(0, 64, dtype=torch.bfloat16, device=device),
        torch.empty(0, 2, dtype=torch.int32, device=device),
    )
    permuted, offsets, _ = moe_permute(x, ids, 4)
    assert grouped_gemm(permuted, w, offsets).shape == (0, 32)
    assert padded_gemm(x, w, *moe_align_block_size(ids, 16, 4), None, 2).shape == (0, 32)
    assert decode_gemm(x, w, ids).shape == (0, 32)


def test_a_row_does_not_depend_on_the_rows_beside_it(make_weight, device):
    w, _ = make_weight(64, 128)
    x = activations(33, 128, torch.bfloat16, device)
    alone = torch.cat([int4_linear(row[None], w) for row in x])
    assert torch.equal(int4_linear(x, w), alone)


def test_bad_arguments_are_named(make_weight, device):
    w, _ = make_weight(2, 16, 32)
    x = activations(4, 32, torch.bfloat16, device)
    with pytest.raises(ValueError, match="x: got shape"):
        grouped_gemm(x[:, :24], w, torch.tensor([0, 4, 4]))
    with pytest.raises(ValueError, match="expert_offsets: got shape"):
        grouped_gemm(x, w, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="w: got scale of"):
        grouped_gemm(x.half(), w, torch.tensor([0, 4, 4]))
    with pytest.raises(ValueError, match="block_n=24"):
        Tile(16, 24, 32)
    w.layout = "gptq"
    with pytest.raises(ValueError, match="'gptq'"):
        grouped_gemm(x, w, torch.tensor([0, 4, 4]))
