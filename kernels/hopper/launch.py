"""One launch of a Hopper MoE GEMM: which kernel a tile names, and its arguments."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from moeracle.kernels.hopper.device.gemm import hopper_gemm_kernel
from moeracle.kernels.hopper.device.gemm_duo import hopper_duo_kernel
from moeracle.kernels.hopper.device.gemm_few import hopper_few_kernel
from moeracle.kernels.hopper.device.gemm_stream import hopper_stream_kernel
from moeracle.kernels.hopper.prepared_weight import PreparedWeight
from moeracle.kernels.hopper.tiles.kinds import Direct, Duo, Few, Stream, Tile, register_cap
from moeracle.kernels.hopper.tiles.layers import launched

Blocks = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# How a launch meets the one before it: after it has ended; early, knowing that all but x is there; or early,
# knowing nothing. Both early ones wait before they read what the kernel before wrote.
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
) -> Any:
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
    Returns:
        triton's compiled kernel.
    """
    ids, experts, end = blocks
    tile = launched(tile, w)
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
    if register_cap(tile) and w.zero is None:  # with zero points it would spill
        options["maxnreg"] = register_cap(tile)
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
        if isinstance(tile, Duo):
            kernel = hopper_duo_kernel
            grid = (min(grid[0], multiprocessors(x.device)),)  # registers and shared memory are enough for one
            constants["COPY_REGISTERS"] = tile.copy_registers
        else:
            constants["DIRECT"] = isinstance(tile, Direct)
    return kernel[grid](
        x, w.words, w.scale, w.scale if w.zero is None else w.zero, ids, experts, end,
        end if topk_weights is None else topk_weights, out, ids.numel(), out.shape[0], block_size, top_k, w.slabs,
        out.shape[1], w.K // 8, w.padded_k, w.scale.shape[2], x.stride(0) // 8, out.stride(0), **constants, **options,
    )  # fmt: skip


def check_x(x: torch.Tensor, w: PreparedWeight) -> None:
    """Raise ValueError unless x is [rows, K] of the weight's dtype."""
    if x.ndim != 2 or x.shape[1] != w.K:
        raise ValueError(f"x: got shape {tuple(x.shape)}, must be [rows, {w.K}]")
    if x.dtype != w.dtype:
        raise ValueError(f"x: got {x.dtype}, must be the scale's {w.dtype}")
