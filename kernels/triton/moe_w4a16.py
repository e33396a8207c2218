"""One whole W4A16 MoE layer from this folder's portable kernels, composed four ways that round alike.

    grouped   permute, grouped GEMM, silu_and_mul, grouped GEMM, unpermute
    padded    align, padded GEMM, silu_and_mul, padded GEMM, weighted sum (no permutation anywhere)
    fused     align, GEMM1 with silu·mul in its epilogue, padded GEMM, sum in slot order: h is rounded, but not stored
    decode    one program per slot and n-tile; for a few tokens

All round h, a, y and out to D and apply the router weight in fp32 in the last sum: contract `grouped`. With equal tiles
grouped, padded and fused give equal bits. hopper/moe_w4a16.py is `fused` for compute capability 9.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.weight_args import weight_args
from moeracle.kernels.triton.decode_gemm import decode_gemm
from moeracle.kernels.triton.grouped_gemm import grouped_gemm
from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size, moe_permute
from moeracle.kernels.triton.moe_sum import moe_sum
from moeracle.kernels.triton.moe_unpermute import moe_unpermute
from moeracle.kernels.triton.padded_gemm import padded_gemm
from moeracle.kernels.triton.silu_and_mul import silu_and_mul
from moeracle.kernels.triton.silu_gemm import silu_gemm
from moeracle.kernels.triton.tiles import Tile, tile_for

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

Stages = dict[str, torch.Tensor]


def moe_w4a16_grouped(
    x: torch.Tensor,
    w13: Int4Weight,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    config: Tile | None = None,
    return_stages: bool = False,
) -> torch.Tensor | Stages:
    """Run one MoE layer on rows permuted into expert order.

    h = x W13[e]^T;  a = silu(h[:I]) * h[I:];  y = a W2[e]^T;  out[t] = sum_j topk_weights[t, j] * y[t*k + j]

    Args:
        x: [T, H], bf16 or fp16; T may be 0.
        w13: Int4Weight [E, 2I, H], exllama words, gate rows first.
        w2: Int4Weight [E, H, I], exllama words.
        topk_weights: fp32 [T, k].
        topk_ids: int [T, k], 0..E-1, repeats allowed, or -1 for a slot that does nothing.
        config: tile sizes of both GEMMs, or None for the device's default.
        return_stages: return h [T*k, 2I], a [T*k, I], y [T*k, H] and out, in slot order, instead of out.
    Returns:
        out [T, H] in x's dtype, or {"h", "a", "y", "out"}; each stage is rounded to D once, a twice.
    Raises:
        ValueError: a weight is in another layout, or shapes or dtypes do not fit.
    Source: docs/formats.md section 4, `grouped`.
    """
    E = w13.packed.shape[0]
    permuted, expert_offsets, inv = moe_permute(x, topk_ids, E)
    h = grouped_gemm(permuted, w13, expert_offsets, config=config)
    a = silu_and_mul(h)
    y = grouped_gemm(a, w2, expert_offsets, config=config)
    out = moe_unpermute(y, topk_weights, inv)
    if not return_stages:
        return out
    row = inv.long()
    return {"h": h[row], "a": a[row], "y": y[row], "out": out}


def moe_w4a16_padded(
    x: torch.Tensor,
    w13: Int4Weight,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    block_size: int | None = None,
    config: Tile | None = None,
    return_stages: bool = False,
) -> torch.Tensor | Stages:
    """Run one MoE layer on padded blocks of sorted slot ids; every stage is in slot order as it is.

    Args, Returns, Raises: as moe_w4a16_grouped's, and
        block_size: B of the alignment, any positive number; None takes the tile's block_m.
    Source: docs/formats.md section 4, `hybrid`.
    """
    (T, top_k), E = topk_ids.shape, w13.packed.shape[0]
    args = weight_args(w13, x, experts=True, name="w13")
    B = block_size or (config or tile_for("padded_gemm", T * top_k, args, x.dtype, x.device)).block_m
    blocks = moe_align_block_size(topk_ids, B, E)
    h = padded_gemm(x, w13, *blocks, None, top_k, block_size=B, config=config)
    a = silu_and_mul(h)
    y = padded_gemm(a, w2, *blocks, None, 1, block_size=B, config=config)
    return _sum_slots(h, a, y, topk_weights, return_stages)


def moe_w4a16_decode(
    x: torch.Tensor,
    w13: Int4Weight,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    config: Tile | None = None,
    return_stages: bool = False,
) -> torch.Tensor | Stages:
    """Run one MoE layer for a few tokens: each slot reads its expert's weights by itself.

    Right for any T; meant for T up to about 8, above which experts are read more than once.

    Args, Returns, Raises: as moe_w4a16_grouped's.
    Source: docs/formats.md section 4; the decode path of github.com/ROCm/vllm/pull/933.
    """
    h = decode_gemm(x, w13, topk_ids, config=config)
    a = silu_and_mul(h)
    y = decode_gemm(a, w2, topk_ids, config=config)
    return _sum_slots(h, a, y, topk_weights, return_stages)


def moe_w4a16_fused(
    x: torch.Tensor,
    w13: Int4Weight,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    block_size: int | None = None,
    config: Tile | None = None,
    return_stages: bool = False,
) -> torch.Tensor | Stages:
    """Run one MoE layer in three launches after the alignment, without storing h.

    Args, Raises: as moe_w4a16_padded's.
    Returns:
        out [T, H] in x's dtype, or {"a", "y", "out"}.
    Source: docs/formats.md section 4, `hybrid`, with FUSED_SILU_MUL of section 7.
    """
    (T, top_k), E = topk_ids.shape, w13.packed.shape[0]
    args = weight_args(w13, x, experts=True, name="w13")
    B = block_size or (config or tile_for("padded_gemm", T * top_k, args, x.dtype, x.device)).block_m
    blocks = moe_align_block_size(topk_ids, B, E)
    a = silu_gemm(x, w13, *blocks, top_k, block_size=B, config=config)
    y = padded_gemm(a, w2, *blocks, None, 1, block_size=B, config=config)
    out = moe_sum(y, topk_weights, topk_ids)
    return {"a": a, "y": y, "out": out} if return_stages else out


def _sum_slots(
    h: torch.Tensor, a: torch.Tensor, y: torch.Tensor, topk_weights: torch.Tensor, return_stages: bool
) -> torch.Tensor | Stages:
    slot_to_row = torch.arange(y.shape[0], dtype=torch.int32, device=y.device)
    out = moe_unpermute(y, topk_weights, slot_to_row)
    return {"h": h, "a": a, "y": y, "out": out} if return_stages else out
