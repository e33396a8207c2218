"""GEMM1 with silu·mul in its epilogue is padded_gemm and silu_and_mul, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size
from moeracle.kernels.triton.padded_gemm import padded_gemm
from moeracle.kernels.triton.silu_and_mul import silu_and_mul
from moeracle.kernels.triton.silu_gemm import silu_gemm
from moeracle.kernels.triton.tiles import Tile


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("zero", "I", "H", "G"), [("sym", 24, 64, 32), ("rdna", 20, 72, 24), ("unpacked", 40, 40, 8)])
@pytest.mark.parametrize("B", [5, 16])
def test_it_is_the_composition(make_weight, device, dtype, zero, I, H, G, B):
    T, E, k = 9, 3, 2
    g = torch.Generator().manual_seed(B)
    w13, _ = make_weight(E, 2 * I, H, G=G, dtype=dtype, zero=zero, pad=3)
    x = torch.randn(T, H + 16, generator=g).to(dtype).to(device)[:, 8 : H + 8]
    ids = torch.randint(-1, E, (T, k), generator=g, dtype=torch.int32).to(device)
    blocks, tile = moe_align_block_size(ids, B, E), Tile(16, 16, 32)
    a = silu_gemm(x, w13, *blocks, k, block_size=B, config=tile)
    h = padded_gemm(x, w13, *blocks, None, k, block_size=B, config=tile)
    assert torch.equal(a, silu_and_mul(h))
    torch.testing.assert_close(silu_gemm(x, w13, *blocks, k, block_size=B), a, rtol=0.02, atol=1e-4)
    assert a.abs().max() > 0


def test_experts_of_other_ranks_are_left_out(make_weight, device):
    T, E, k, B = 7, 4, 2, 4
    three, _ = make_weight(3, 16, 32)
    w13 = replace(three, packed=three.packed[1:], scale=three.scale[1:])  # what lies before it is a weight, too
    x = torch.randn(T, 32, generator=torch.Generator().manual_seed(1)).bfloat16().to(device)
    ids = torch.arange(T * k, dtype=torch.int32, device=device).reshape(T, k) % E
    expert_map = torch.tensor([-1, 1, 0, -1], dtype=torch.int32, device=device)
    sorted_ids, experts, end = moe_align_block_size(ids, B, E, expert_map)
    assert (experts[: int(end) // B] == -1).any()
    a = silu_gemm(x, w13, sorted_ids, experts, end, k, block_size=B)
    here = expert_map[ids.flatten().long()] >= 0
    assert not a[~here].any()
    assert a[here].any(dim=1).all()


def test_no_tokens_and_bad_rows(make_weight, device):
    w13, _ = make_weight(2, 16, 32)
    ids = torch.zeros(0, 2, dtype=torch.int32, device=device)
    x = torch.zeros(0, 32, device=device).bfloat16()
    assert silu_gemm(x, w13, *moe_align_block_size(ids, 16, 2), 2, block_size=16).shape == (0, 8)
    odd, _ = make_weight(2, 15, 32)
    with pytest.raises(ValueError, match=r"w13: got 15 rows"):
        silu_gemm(x, odd, *moe_align_block_size(ids, 16, 2), 2, block_size=16)
