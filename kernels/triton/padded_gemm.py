"""Padded W4A16 GEMM: rows gathered virtually through moe_align_block_size's sorted ids.

C[id, n] = sum_k x[id // top_k, k] * D((u[e, n, k] - z) * s) (* topk_weights[id])   for each id of a block of expert e
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.block_size import infer_block_size
from moeracle.kernels.common.weight_args import weight_args
from moeracle.kernels.triton.device.int4_tile import form_of, int4_tile, of_expert
from moeracle.kernels.triton.tiles import Tile, pow2_at_least, tile_for
from moeracle.kernels.triton.triton_import import tl, triton

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight


@triton.jit
def padded_gemm_kernel(
    x_ptr, w, ids_ptr, experts_ptr, end_ptr, weights_ptr, y_ptr, num_ids, num_valid, block_size, top_k, N, K, stride_xm,
    stride_xk, WEIGHTED: tl.constexpr, form, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M ids of one alignment block (which takes ceil(B / BLOCK_M) programs), one n-tile."""
    pid = tl.program_id(0)
    num_n = (N + BLOCK_N - 1) // BLOCK_N
    num_m = (block_size + BLOCK_M - 1) // BLOCK_M
    block = pid // num_n // num_m
    first = block.to(tl.int64) * block_size
    if first >= tl.load(end_ptr):
        return  # past the end
    expert = tl.load(experts_ptr + block).to(tl.int64)
    if expert < 0:
        return  # not on this rank: its rows stay 0
    in_block = (pid // num_n) % num_m * BLOCK_M + tl.arange(0, BLOCK_M)
    position = first + in_block
    # Tile and alignment are independent: any block size works, and rows beyond this block belong to the next one.
    inside = (in_block < block_size) & (position < num_ids)
    ids = tl.load(ids_ptr + position, mask=inside, other=num_valid).to(tl.int64)
    row_mask = inside & (ids >= 0) & (ids < num_valid)
    if tl.sum(row_mask.to(tl.int32), axis=0) == 0:
        return  # nothing but padding
    offs_n = (pid % num_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_offs = (ids // top_k) * stride_xm
    w = of_expert(w, form, expert)
    acc = int4_tile(x_ptr, x_offs, row_mask, stride_xk, w, form, offs_n, N, K, BLOCK_M, BLOCK_N, BLOCK_K)
    if WEIGHTED:
        acc = acc * tl.load(weights_ptr + ids, mask=row_mask, other=0.0)[:, None]
    y_ptrs = y_ptr + ids[:, None] * N + offs_n[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=row_mask[:, None] & (offs_n < N)[None, :])


def padded_gemm(
    x: torch.Tensor,
    w: Int4Weight,
    sorted_token_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_tokens_post_padded: torch.Tensor,
    topk_weights: torch.Tensor | None,
    top_k: int,
    *,
    block_size: int | None = None,
    config: Tile | None = None,
) -> torch.Tensor:
    """Multiply virtually gathered rows by their block's expert.

    C[id] = x[id // top_k] @ D((u - z) * s)[e].T (* topk_weights.flatten()[id]), for ids below T*top_k

    Args:
        x: [T, K], bf16 or fp16; T may be 0.
        w: Int4Weight [E, N, K], layout exllama; symmetric, or zero layout rdna or unpacked.
        sorted_token_ids: int32 [S]; ids outside 0..T*top_k-1 are padding.
        expert_ids: int32, one a block of block_size ids; -1 leaves the block's rows 0.
        num_tokens_post_padded: int32 [1]; blocks that start at or after it are skipped.
        topk_weights: fp32 [T, top_k], multiplied in fp32 before the store; or None.
        top_k: ids that share a row of x; 1 for GEMM2.
        block_size: B, any positive number; None infers it from the lengths.
        config: tile sizes; None takes the device's default, with block_m cut to what B needs.
    Returns:
        [T*top_k, N] in x's dtype. The output starts as zeros, because ids of -1 appear in no block and nobody else
        would write their rows. Roundings as grouped_gemm's; equal tiles give equal bits.
    Raises:
        ValueError: w is in another layout, shapes or dtypes do not fit, or the block size cannot be inferred.
    Source: docs/formats.md section 3, the kernel's row rule.
    """
    T, E = x.shape[0], w.packed.shape[0]
    R, S = T * top_k, sorted_token_ids.numel()
    args = weight_args(w, x, experts=True)
    if topk_weights is not None and topk_weights.numel() != R:
        raise ValueError(f"topk_weights: got shape {tuple(topk_weights.shape)}, must hold T*top_k = {R} weights")
    y = torch.zeros(R, args.N, dtype=x.dtype, device=x.device)
    if R == 0 or expert_ids.numel() == 0:
        return y
    B = block_size or infer_block_size(S, expert_ids.numel(), R, E, num_tokens_post_padded)
    tile = config or tile_for("padded_gemm", R, args, x.dtype, x.device)
    block_m = tile.block_m if config else max(16, min(128, pow2_at_least(B)))
    grid = (expert_ids.numel() * triton.cdiv(B, block_m) * triton.cdiv(args.N, tile.block_n),)
    padded_gemm_kernel[grid](
        x, args.pointers(), sorted_token_ids.contiguous(), expert_ids.contiguous(), num_tokens_post_padded,
        num_tokens_post_padded if topk_weights is None else topk_weights.to(torch.float32).contiguous(), y, S, R, B,
        top_k, args.N, args.K, *x.stride(), WEIGHTED=topk_weights is not None, form=form_of(args), BLOCK_M=block_m,
        BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return y
