"""The MoE layer on compute capability 9.0: two GEMMs and a sum, each launched before the one ahead has ended.

    gemm1   a = silu(x W_gate^T) * (x W_up^T)      silu·mul in its epilogue, h is rounded but never stored
    gemm2   y = a W2^T                             rows stay in slot order, so nothing is permuted
    sum     out[t] = sum_j weight[t, j] * y[t*k + j]

Every rounding of the composition in moe_triton.py is kept: contract `grouped`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from moeracle.kernels.block_size import infer_block_size
from moeracle.kernels.grouped_gemm_triton import block_table
from moeracle.kernels.hopper_few import hopper_few_kernel
from moeracle.kernels.hopper_gemm import hopper_gemm_kernel
from moeracle.kernels.hopper_stream import hopper_stream_kernel
from moeracle.kernels.hopper_tiles import Direct, Few, Layer, Stream, Tile, default_layer, layer_for
from moeracle.kernels.moe_sum_triton import moe_sum
from moeracle.kernels.prepared_weight import PreparedWeight, prepared
from moeracle.kernels.tiles import pow2_at_least

if TYPE_CHECKING:
    from moeracle.ref.weight import Int4Weight

Blocks = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Stages = dict[str, torch.Tensor]
# How a launch meets the one before it: after it has ended; early, having been told that all but x is there; or early,
# having been told nothing. Both early ones wait before they read what the kernel before wrote.
PLAIN, KNOWN, UNKNOWN = 0, 1, 2


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many a GPU has."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def run_gemm(
    x: torch.Tensor,
    w: PreparedWeight,
    blocks: Blocks,
    out: torch.Tensor,
    tile: Tile,
    *,
    top_k: int,
    block_size: int,
    num_blocks: int,
    topk_weights: torch.Tensor | None = None,
    launch: int = PLAIN,
) -> None:
    """Launch one GEMM; with a gated weight silu·mul is its epilogue.

    out[id] = x[id // top_k] @ D((u - z) * s)[e].T (* topk_weights[id]), or silu·mul of its halves

    Args:
        x: [rows, K], D.
        w: prepared.
        blocks: sorted_token_ids, expert_ids, num_tokens_post_padded.
        out: [R, N] (or [R, N/2] if gated), unit column stride; rows that no block names are left as they are.
        tile: fitted to w.
        top_k: ids that share a row of x.
        block_size: B of the alignment.
        num_blocks: blocks to launch; those at and after num_tokens_post_padded do nothing.
        topk_weights: fp32 [R], or None.
        launch: PLAIN, KNOWN or UNKNOWN.
    """
    ids, experts, end = blocks
    if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)  # 16 bytes are copied at once
    num_m = -(-block_size // tile.block_m)
    grid = (num_blocks * num_m * (w.slabs * 16 // tile.block_n),)
    constants: dict[str, Any] = {
        "GROUP": w.group,
        "ZERO": w.zero is not None,
        "FOLD": w.fold,
        "SILU": w.gated,
        "WEIGHTED": topk_weights is not None,
        "EVEN_K": w.padded_k == w.K,
        "LAUNCH": launch,
        "WHOLE": tile.block_m == block_size,
        "BM": tile.block_m,
        "BN": tile.block_n,
    }
    options: dict[str, Any] = {"num_warps": tile.num_warps, "launch_pdl": launch != PLAIN}
    options |= {"maxnreg": tile.max_registers} if tile.max_registers else {}
    kernel: Any = hopper_gemm_kernel
    if isinstance(tile, Few):
        kernel = hopper_few_kernel
        constants |= {"KX": w.padded_k // tile.split_k, "SPLIT": tile.split_k, "DEPTH": tile.depth}
    elif isinstance(tile, Stream):
        kernel = hopper_stream_kernel
        grid = (min(grid[0], multiprocessors(x.device) * tile.resident),)
        constants |= {"STEPS": w.padded_k // 64, "DEPTH": tile.depth}
    else:
        constants |= {
            "BK": tile.block_k,
            "STAGES": tile.num_stages,
            "LEAST": min(tile.least or tile.block_m, tile.block_m),
        }
        constants |= {"DIRECT": isinstance(tile, Direct)}
    kernel[grid](
        x,
        w.words,
        w.scale,
        w.scale if w.zero is None else w.zero,
        ids,
        experts,
        end,
        end if topk_weights is None else topk_weights,
        out,
        ids.numel(),
        out.shape[0],
        block_size,
        top_k,
        w.slabs,
        out.shape[1],
        w.K // 8,
        w.padded_k,
        w.scale.shape[2],
        x.stride(0) // 8,
        out.stride(0),
        **constants,
        **options,
    )


def check_x(x: torch.Tensor, w: PreparedWeight, name: str = "x") -> None:
    """Raise ValueError unless x is [rows, K] of the weight's dtype."""
    if x.ndim != 2 or x.shape[1] != w.K:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, must be [rows, {w.K}]")
    if x.dtype != w.dtype:
        raise ValueError(f"{name}: got {x.dtype}, must be the scale's {w.dtype}")


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
    Source: FORMATS section 4, `hybrid`; the transposed product and its operand order are ours.
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
