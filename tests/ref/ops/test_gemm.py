"""GEMM references against hand-worked numbers, and grouped against padded."""

import pytest
import torch

from moeracle.ref import (
    Int4Weight,
    grouped_gemm,
    int4_linear,
    moe_align_block_size,
    moe_permute,
    moe_w4a16,
    pack_int4,
    padded_gemm,
)
from moeracle.ref.ops.padded_gemm import infer_block_size
from moeracle.ref.ops.silu_and_mul import silu_and_mul


def weight(codes, scale=1.0, group=None):
    codes = torch.tensor(codes, dtype=torch.uint8)
    K = codes.shape[-1]
    group = group or K
    shape = (*codes.shape[:-1], K // group)
    return Int4Weight(
        pack_int4(codes, "compressed_tensors"), torch.full(shape, scale).bfloat16(), None, "compressed_tensors", group
    )


def test_int4_linear_by_hand():
    w = weight([[8, 9, 10, 7, 8, 8, 8, 8], [0, 15, 8, 8, 8, 8, 8, 9]], scale=0.5)
    x = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8]])
    # row 0: (0*1 + 1*2 + 2*3 - 1*4)/2 = 2;  row 1: (-8*1 + 7*2 + 1*8)/2 = 7
    assert int4_linear(x, w).tolist() == [[2.0, 7.0]]
    assert int4_linear(x, w, torch.tensor([1.0, -1.0])).tolist() == [[3.0, 6.0]]
    assert int4_linear(x[:0], w).shape == (0, 2)


def random_case(seed=0, T=13, E=5, k=3, N=16, K=32):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (E, N, K), generator=g, dtype=torch.uint8)
    w = Int4Weight(pack_int4(codes, "exllama"), torch.rand(E, N, 1, generator=g).bfloat16(), None, "exllama", K)
    ids = torch.stack([torch.randperm(E, generator=g)[:k] for _ in range(T)]).int()
    ids[2, 1] = -1
    return torch.randint(-4, 5, (T, K), generator=g).bfloat16(), w, ids


@pytest.mark.parametrize("B", [1, 3, 16, 64])
def test_grouped_equals_padded(B):
    x, w, ids = random_case()
    T, k = ids.shape
    permuted, offsets, inv = moe_permute(x, ids, 5)
    grouped = grouped_gemm(permuted, w, offsets)[inv.long()]
    padded = padded_gemm(x, w, *moe_align_block_size(ids, B, 5), None, k)
    assert torch.equal(grouped, padded)  # integers: every order is exact
    assert torch.equal(padded[2 * k + 1], torch.zeros(w.N))  # the ignored slot
    weights = torch.rand(T, k)
    weighted = padded_gemm(x, w, *moe_align_block_size(ids, B, 5), weights, k)
    assert torch.equal(weighted, padded * weights.reshape(-1, 1))


def test_the_block_size_is_inferred_or_refused():
    for R, E in [(39, 5), (0, 8), (256, 8), (7, 1)]:
        for B in (1, 2, 7, 16, 64):
            S = R + E * (B - 1)
            if S:
                assert infer_block_size(S, -(-S // B), R, E, 0) == B
    with pytest.raises(
        ValueError, match=r"^block_size: got None, must be given, since 100 sorted ids in 3 blocks fit no size"
    ):
        infer_block_size(100, 3, 1, 64, 0)


def test_silu_and_mul_by_hand():
    a = silu_and_mul(torch.tensor([[0.0, 1.0, -float("inf"), 128.0, 2.0, 3.0, 1.0, 0.5]]))
    assert a[0, 0] == 0
    assert a[0, 1].item() == pytest.approx(3 * 0.7310585786300049, rel=1e-6)
    assert a[0, 2].item() == 0
    assert a[0, 3].item() == 64.0


def test_moe_by_hand():
    """One token, two experts, H = I = 8: expert 0 passes x through with gate 128, expert 1 doubles it."""
    eye = [[9 if i == j else 8 for j in range(8)] for i in range(8)]
    ones = [[9] * 8] * 8
    w13 = weight([ones + eye, ones + eye])
    w2 = weight([eye, [[10 if i == j else 8 for j in range(8)] for i in range(8)]])
    x = torch.tensor([[16.0, 16, 16, 16, 16, 16, 16, 16]]).bfloat16()  # the gate is 128 in each column, up is 16
    stages = {}
    out = moe_w4a16(x, w13, w2, torch.tensor([[0.5, 0.25]]), torch.tensor([[0, 1]]), stages=stages)
    assert stages["h"].tolist() == [[128.0] * 8 + [16.0] * 8] * 2
    assert stages["a"].tolist() == [[2048.0] * 8] * 2
    assert stages["y"].tolist() == [[2048.0] * 8, [4096.0] * 8]
    assert out.tolist() == [[2048.0] * 8]
    only_first = moe_w4a16(x, w13, w2, torch.tensor([[0.5, 0.25]]), torch.tensor([[0, -1]]))
    assert only_first.tolist() == [[1024.0] * 8]
    on_input = moe_w4a16(x, w13, w2, torch.tensor([[0.5, 0.25]]), torch.tensor([[0, -1]]), router_weight="input")
    assert on_input.tolist() == [[512.0] * 8]  # gate 64 and up 8 at half the weight


def test_router_weight_in_gemm2_is_the_same_sum():
    x, w, ids = random_case(1, N=64, K=32)
    w2 = Int4Weight(w.packed[:, :32, :4], w.scale[:, :32], None, "exllama", 32)
    weights = torch.rand(*ids.shape)
    a = moe_w4a16(x, w, w2, weights, ids, dtype=torch.float64)
    b = moe_w4a16(x, w, w2, weights, ids, dtype=torch.float64, router_weight="gemm2")
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(13, 8)), r"w13: got shape \(5, 64, 32\), must be \[E, 2I, H=8\]"),
        (dict(topk_ids=torch.full((13, 3), 5)), r"topk_ids: got ids from 5 to 5, must be in -1..4"),
        (dict(topk_weights=torch.zeros(13, 2)), r"topk_weights: got shape \(13, 2\), must be topk_ids' \(13, 3\)"),
        (dict(router_weight="gemm3"), r"router_weight: got 'gemm3'.*did you mean 'gemm2'"),
    ],
)
def test_mistakes(change, message):
    x, w, ids = random_case(1, N=64, K=32)
    w2 = Int4Weight(w.packed[:, :32, :4], w.scale[:, :32], None, "exllama", 32)
    arguments = dict(x=x, w13=w, w2=w2, topk_weights=torch.zeros(13, 3), topk_ids=ids) | change
    with pytest.raises(ValueError, match="^" + message):
        moe_w4a16(**arguments)
