"""The MoE layer on compute capability 9.0: two GEMMs and a sum, each launched before the one ahead has ended.

    gemm1   a = silu(x W_gate^T) * (x W_up^T)      silu·mul in its epilogue, h is rounded but never stored
    gemm2   y = a W2^T                             rows stay in slot order, so nothing is permuted
    sum     out[t] = sum_j weight[t, j] * y[t*k + j]

Every rounding of the composition in moe_triton.py is kept: contract `grouped`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from moeracle.kernels.block_size import infer_block_size
from moeracle.kernels.grouped_gemm_triton import block_table
from moeracle.kernels.hopper_launch import KNOWN, PLAIN, UNKNOWN, Blocks, check_x, run_gemm
from moeracle.kernels.hopper_tiles import Direct, Few, Layer, Tile, default_layer, layer_for
from moeracle.kernels.moe_sum_triton import moe_sum
from moeracle.kernels.prepared_weight import PreparedWeight, prepared
from moeracle.kernels.tiles import pow2_at_least

if TYPE_CHECKING:
    from moeracle.ref.weight import Int4Weight

Stages = dict[str, torch.Tensor]


def hopper_padded_gemm(
    x: torch.Tensor,
    w: Int4Weight | PreparedWeight,
    sorted_token_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_tokens_post_padded: torch.Tensor,
    topk_weights: torch.Tensor | None,
    top_k: int,
    *,
    block_size: int | None = None,
    config: Tile | None = None,
) -> torch.Tensor:
    """As padded_gemm_triton.padded_gemm, with the prepared order of the weight; without split_k the same bits."""
    weight = prepared(w, fold=True)
    check_x(x, weight)
    R, E = x.shape[0] * top_k, weight.words.shape[0]
    y = torch.zeros(R, weight.N, dtype=x.dtype, device=x.device)
    if R == 0 or expert_ids.numel() == 0:
        return y
    B = block_size or infer_block_size(sorted_token_ids.numel(), expert_ids.numel(), R, E, num_tokens_post_padded)
    tile = (config or tile_for(R, E, weight, B)).fit(weight)
    scale = None if topk_weights is None else topk_weights.to(torch.float32).contiguous()
    blocks = sorted_token_ids.contiguous(), expert_ids.contiguous(), num_tokens_post_padded
    run_gemm(x, weight, blocks, y, tile, top_k=top_k, block_size=B, num_blocks=expert_ids.numel(), topk_weights=scale)
    return y


def unsplit(tile: Tile) -> Tile:
    """Return a tile that adds in one part: one schedule for every shape, and the portable kernels' bits."""
    return replace(tile, split_k=1) if isinstance(tile, Few) else tile


def tile_for(rows: int, E: int, w: PreparedWeight, block_size: int) -> Tile:
    """Choose one GEMM's tile by rows an expert, its block_m no larger than the alignment needs."""
    tile = unsplit(default_layer(rows, E, w.N).gemm1)
    most = max(8, min(128, pow2_at_least(block_size)))
    if tile.block_m <= most:
        return tile
    return Few(most, 64, 1, 4) if most <= 16 else Direct(most, 128, 256, 2, 8)


def hopper_grouped_gemm(
    x: torch.Tensor, w: Int4Weight | PreparedWeight, expert_offsets: torch.Tensor, *, config: Tile | None = None
) -> torch.Tensor:
    """As grouped_gemm_triton.grouped_gemm, with the prepared order of the weight; without split_k the same bits."""
    weight = prepared(w, fold=True)
    check_x(x, weight)
    R, E = x.shape[0], weight.words.shape[0]
    if expert_offsets.shape != (E + 1,):
        raise ValueError(f"expert_offsets: got shape {tuple(expert_offsets.shape)}, must be [{E + 1}] for {E} experts")
    y = torch.zeros(R, weight.N, dtype=x.dtype, device=x.device)
    if R:
        tile = (config or unsplit(default_layer(R, E, weight.N).gemm1)).fit(weight)
        expert, start, many = block_table(expert_offsets, R, tile.block_m).unbind(1)
        row = torch.arange(tile.block_m, device=x.device)
        ids = torch.where(row < many[:, None], start[:, None] + row, R).to(torch.int32)
        experts = torch.where(many > 0, expert, -1).to(torch.int32)
        end = torch.full((1,), ids.numel(), dtype=torch.int32, device=x.device)
        blocks = ids.flatten(), experts, end
        run_gemm(x, weight, blocks, y, tile, top_k=1, block_size=tile.block_m, num_blocks=experts.numel())
    return y


def hopper_padded_gemm_split(
    x: torch.Tensor,
    w: Int4Weight | PreparedWeight,
    sorted_token_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_tokens_post_padded: torch.Tensor,
    topk_weights: torch.Tensor | None,
    top_k: int,
) -> torch.Tensor:
    """hopper_padded_gemm with K in as many parts as it can be cut into: what a single token takes."""
    return hopper_padded_gemm(
        x, w, sorted_token_ids, expert_ids, num_tokens_post_padded, topk_weights, top_k, config=Few(8, 64, 4, 4)
    )


def most_blocks(rows: int, E: int, B: int) -> int:
    """Return how many blocks `rows` slots over E experts can fill at most: each used expert wastes one, nearly."""
    return rows if rows <= E else E + (rows - E) // B


def moe_w4a16_hopper(
    x: torch.Tensor,
    w13: Int4Weight | PreparedWeight,
    w2: Int4Weight | PreparedWeight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    expert_map: torch.Tensor | None = None,
    config: Layer | None = None,
    align: Callable[[torch.Tensor, int, int], Blocks] | None = None,
    programmatic: bool = True,
    return_stages: bool = False,
) -> torch.Tensor | Stages:
    """Run one MoE layer in three launches after the alignment.

    a = silu(x W13[e]_gate^T) * x W13[e]_up^T;  y = a W2[e]^T;  out[t] = sum_j topk_weights[t, j] * y[t*k + j]

    Args:
        x: [T, H], bf16 or fp16; T may be 0.
        w13: Int4Weight [E, 2I, H], exllama, gate rows first; or prepared with gated=True.
        w2: Int4Weight [E, H, I], exllama; or prepared.
        topk_weights: fp32 [T, k].
        topk_ids: int [T, k], 0..E-1 (of all ranks, with expert_map), repeats allowed; -1 for a slot that does nothing.
        expert_map: int [E_global] to local ids, -1 for an expert that is not on this rank; or None.
        config: tiles of both GEMMs, or None for the tuned ones.
        align: (local ids, B, E) to blocks as moe_align_block_size returns them, for a router that has them already.
        programmatic: let each launch start before the one ahead has ended; it waits before it reads its results.
        return_stages: return a [T*k, I], y [T*k, H] and out, in slot order, instead of out; h is never stored.
    Returns:
        out [T, H] in x's dtype, or {"a", "y", "out"}; roundings as moe_w4a16_grouped's.
    Raises:
        ValueError: a weight has no prepared order, or shapes or dtypes do not fit.
    Source: docs/formats.md section 4, `hybrid`; the transposed product and its operand order are ours.
    """
    up, down = prepared(w13, gated=True, fold=True), prepared(w2, fold=True)
    check_x(x, up)
    (T, top_k), E, H = topk_ids.shape, up.words.shape[0], down.N
    if down.K * 2 != up.N or down.words.shape[0] != E:
        raise ValueError(f"w2: got [{down.words.shape[0]}, {H}, {down.K}], must be [{E}, H, {up.N // 2}]")
    if expert_map is not None:
        topk_ids = torch.where(topk_ids < 0, -1, expert_map.to(topk_ids.dtype)[topk_ids.clamp(min=0).long()])
    topk_weights, topk_ids = topk_weights.to(torch.float32).contiguous(), topk_ids.contiguous()
    R, make = T * top_k, torch.zeros if return_stages else torch.empty
    a = make(R, down.K, dtype=x.dtype, device=x.device)
    y = make(R, H, dtype=x.dtype, device=x.device)
    if R:
        layer = config or layer_for(R, E, up, x.device)
        B = layer.block_m
        blocks = (align or _align)(topk_ids, B, E)
        num = min(blocks[1].numel(), most_blocks(R, E, B))
        first, second = (UNKNOWN, KNOWN) if programmatic else (PLAIN, PLAIN)
        gemm = partial(run_gemm, blocks=blocks, block_size=B, num_blocks=num)
        gemm(x, up, out=a, tile=layer.gemm1.fit(up), top_k=top_k, launch=first)
        gemm(a, down, out=y, tile=layer.gemm2.fit(down), top_k=1, launch=second)
    out = moe_sum(y, topk_weights, topk_ids, programmatic=programmatic)
    return {"a": a, "y": y, "out": out} if return_stages else out


def _align(topk_ids: torch.Tensor, block_size: int, num_experts: int) -> Blocks:
    from moeracle.kernels.dispatch_triton import moe_align_block_size

    return moe_align_block_size(topk_ids, block_size, num_experts)


def hopper_stages(
    x: torch.Tensor, w13: Int4Weight, w2: Int4Weight, topk_weights: torch.Tensor, topk_ids: torch.Tensor
) -> Stages:
    """moe_w4a16_hopper with its stages, as the registry offers it."""
    return moe_w4a16_hopper(x, w13, w2, topk_weights, topk_ids, return_stages=True)  # type: ignore[return-value]
