"""GEMM1 with silu·mul as its epilogue, portable: gate and up columns of one tile in one program, h never stored.

a[id, i] = D(D(silu(D(h[id, i]))) * D(h[id, I + i])),   h[id] = x[id // top_k] @ D((u - z) * s)[e].T

Two accumulators share each tile of x. h is rounded where padded_gemm would store it, so the result is that of
padded_gemm and silu_and_mul, bit for bit at equal tiles, without writing and reading h.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.weight_args import SYMMETRIC, weight_args
from moeracle.kernels.triton.device.int4_tile import form_of, int4_weight_tile, of_expert
from moeracle.kernels.triton.silu_and_mul import silu
from moeracle.kernels.triton.tiles import Tile, tile_for
from moeracle.kernels.triton.triton_import import tl, triton

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight


@triton.jit
def silu_gemm_kernel(
    x_ptr, w, ids_ptr, experts_ptr, end_ptr, a_ptr, num_ids, num_valid, block_size, top_k, I, K, stride_xm, stride_xk,
    form, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M ids of one alignment block, BLOCK_N columns of a; see padded_gemm_kernel."""
    pid = tl.program_id(0)
    num_n = (I + BLOCK_N - 1) // BLOCK_N
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
    inside = (in_block < block_size) & (position < num_ids)
    ids = tl.load(ids_ptr + position, mask=inside, other=num_valid).to(tl.int64)
    row_mask = inside & (ids >= 0) & (ids < num_valid)
    if tl.sum(row_mask.to(tl.int32), axis=0) == 0:
        return  # nothing but padding
    offs_i = (pid % num_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_offs = (ids // top_k) * stride_xm
    gate = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    w = of_expert(w, form, expert)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + x_offs[:, None] + k[None, :] * stride_xk, mask=row_mask[:, None] & (k < K)[None, :], other=0.0
        )
        tile = int4_weight_tile(w, form, offs_i, k0, I, K, BLOCK_N, BLOCK_K)
        gate = tl.dot(x, tl.trans(tile), gate)
        # The up rows start at row I: beyond 2I nothing is read, because offs_i is masked at I.
        offs_up = tl.where(offs_i < I, offs_i + I, 2 * I)
        tile = int4_weight_tile(w, form, offs_up, k0, 2 * I, K, BLOCK_N, BLOCK_K)
        up = tl.dot(x, tl.trans(tile), up)
    D = a_ptr.dtype.element_ty
    a = (silu(gate.to(D).to(tl.float32)).to(D).to(tl.float32) * up.to(D).to(tl.float32)).to(D)
    tl.store(a_ptr + ids[:, None] * I + offs_i[None, :], a, mask=row_mask[:, None] & (offs_i < I)[None, :])


def silu_gemm(
    x: torch.Tensor,
    w13: Int4Weight,
    sorted_token_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_tokens_post_padded: torch.Tensor,
    top_k: int,
    *,
    block_size: int,
    config: Tile | None = None,
) -> torch.Tensor:
    """Multiply virtually gathered rows by their block's gate and up matrices, and join the two.

    Args:
        x: [T, H], bf16 or fp16; T may be 0.
        w13: Int4Weight [E, 2I, H], layout exllama, gate rows first; symmetric, or zero layout rdna or unpacked.
        sorted_token_ids, expert_ids, num_tokens_post_padded: as moe_align_block_size returns them for block_size.
        top_k: ids that share a row of x.
        block_size: B, any positive number.
        config: tile sizes, block_n of a's columns; None takes the device's default.
    Returns:
        a [T*top_k, I] in x's dtype, 0 for ids in no block; roundings as padded_gemm's and silu_and_mul's.
    Raises:
        ValueError: w13 is in another layout or has an odd number of rows, or shapes or dtypes do not fit.
    Source: docs/formats.md section 7, FUSED_SILU_MUL.
    """
    R = x.shape[0] * top_k
    args = weight_args(w13, x, experts=True, name="w13")
    if args.N % 2:
        raise ValueError(f"w13: got {args.N} rows an expert, must be 2*I")
    I = args.N // 2
    a = torch.zeros(R, I, dtype=x.dtype, device=x.device)
    if R and expert_ids.numel():
        tile = config or tile_for("padded_gemm", R, args, x.dtype, x.device)
        if config is None and x.device.type == "cuda":  # two accumulators: narrower, or they would spill
            tile = replace(tile, block_n=max(16, tile.block_n // (4 if tile.block_m >= 64 else 2)))
            if args.zero_kind != SYMMETRIC and torch.version.hip is None:  # zero points take registers, too
                tile = replace(tile, block_n=min(32, tile.block_n), block_k=min(32, tile.block_k))
        grid = (expert_ids.numel() * triton.cdiv(block_size, tile.block_m) * triton.cdiv(I, tile.block_n),)
        silu_gemm_kernel[grid](
            x, args.pointers(), sorted_token_ids.contiguous(), expert_ids.contiguous(), num_tokens_post_padded, a,
            sorted_token_ids.numel(), R, block_size, top_k, I, args.K, *x.stride(), form_of(args), BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return a
