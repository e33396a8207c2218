"""The MoE layer on compute capability 9.0: two GEMMs and a sum, each launched before the one ahead has ended.

    gemm1   a = silu(x W_gate^T) * (x W_up^T)      silu·mul in its epilogue, h is rounded but never stored
    gemm2   y = a W2^T                             rows stay in slot order, so nothing is permuted
    sum     out[t] = sum_j weight[t, j] * y[t*k + j]

Every rounding of the composition in triton/moe_w4a16.py is kept: contract `grouped`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.block_size import infer_block_size
from moeracle.kernels.hopper.launch import KNOWN, PLAIN, UNKNOWN, Blocks, check_x, run_gemm
from moeracle.kernels.hopper.prepared_weight import PreparedWeight, prepared
from moeracle.kernels.hopper.tiles.gemm import grouped_tile, padded_tile
from moeracle.kernels.hopper.tiles.layers import Few, Layer, Tile, layer_for
from moeracle.kernels.triton.device.block_table import aligned_rows
from moeracle.kernels.triton.device.unnamed_rows import output_for
from moeracle.kernels.triton.moe_sum import moe_sum

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

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
    """As triton.padded_gemm.padded_gemm, with the prepared order of the weight; without split_k the same bits."""
    weight = prepared(w, fold=True)
    check_x(x, weight)
    R, E = x.shape[0] * top_k, weight.words.shape[0]
    if R == 0 or expert_ids.numel() == 0:
        return torch.zeros(R, weight.N, dtype=x.dtype, device=x.device)
    B = block_size or infer_block_size(sorted_token_ids.numel(), expert_ids.numel(), R, E, num_tokens_post_padded)
    tile = (config or padded_tile(R, E, weight, x.device, B)).fit(weight)
    scale = None if topk_weights is None else topk_weights.to(torch.float32).contiguous()
    blocks = sorted_token_ids.contiguous(), expert_ids.contiguous(), num_tokens_post_padded
    y = output_for(R, weight.N, blocks, B, x.dtype, early=True)
    num = blocks_to_launch(sorted_token_ids.numel(), expert_ids.numel(), R, E, B)
    gemm = partial(run_gemm, top_k=top_k, block_size=B, num_blocks=num, topk_weights=scale)
    gemm(x, weight, blocks, y, tile, launch=UNKNOWN)
    return y


def hopper_grouped_gemm(
    x: torch.Tensor, w: Int4Weight | PreparedWeight, expert_offsets: torch.Tensor, *, config: Tile | None = None
) -> torch.Tensor:
    """As triton.grouped_gemm.grouped_gemm, with the prepared order of the weight; without split_k the same bits."""
    weight = prepared(w, fold=True)
    check_x(x, weight)
    R, E = x.shape[0], weight.words.shape[0]
    if expert_offsets.shape != (E + 1,):
        raise ValueError(f"expert_offsets: got shape {tuple(expert_offsets.shape)}, must be [{E + 1}] for {E} experts")
    y = torch.empty(R, weight.N, dtype=x.dtype, device=x.device)
    if R:
        tile = (config or grouped_tile(R, E, weight, x.device)).fit(weight)
        B, num = tile.block_m, most_blocks(R, E, tile.block_m)
        blocks = aligned_rows(expert_offsets, y, B, num)  # rows of no expert, which no block names, are 0 from then on
        run_gemm(x, weight, blocks, y, tile, top_k=1, block_size=B, num_blocks=num, launch=UNKNOWN)
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


def blocks_to_launch(num_ids: int, num_blocks: int, rows: int, E: int, B: int) -> int:
    """Return how many blocks of an alignment to launch: not those that no routing can fill, of which T = 1 has 200.

    Lengths of moe_align_block_size, R + E'*(B-1) for E' experts of all ranks, say that every block used has rows; of an
    alignment made otherwise every block is launched.

    Args:
        num_ids, num_blocks: lengths of sorted_token_ids and expert_ids.
        rows: R.
        E: experts here.
        B: of the alignment.
    """
    padding = num_ids - rows
    if B == 1 or padding % (B - 1) or padding < E * (B - 1) or num_blocks != -(-num_ids // B):
        return num_blocks
    return min(num_blocks, most_blocks(rows, padding // (B - 1), B))


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
    from moeracle.kernels.triton.moe_permute import moe_align_block_size

    return moe_align_block_size(topk_ids, block_size, num_experts)
