"""W4A16 GEMM for a few tokens: one program per (slot, n-tile), nothing sorted, nothing padded.

y[t*k + j, n] = sum_k x[row, k] * D((u[e, n, k] - z) * s),   e = topk_ids[t, j],   row = (t*k + j) // slots_per_row
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.weight_args import weight_args
from moeracle.kernels.triton.device.int4_tile import form_of, int4_weight_tile, of_expert
from moeracle.kernels.triton.tiles import Tile, interpreter_tile
from moeracle.kernels.triton.triton_import import tl, triton

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

GPU_TILE = Tile(block_n=16, block_k=256, num_warps=4)


@triton.jit
def decode_gemm_kernel(
    x_ptr, w, ids_ptr, y_ptr, slots_per_row, N, K, stride_xm, stride_xk, form, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: one slot's row times BLOCK_N rows of its expert, in fp32 without tl.dot."""
    pid = tl.program_id(0)
    num_n = (N + BLOCK_N - 1) // BLOCK_N
    slot = (pid // num_n).to(tl.int64)
    offs_n = (pid % num_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.load(ids_ptr + slot).to(tl.int64)
    y_ptrs = y_ptr + slot * N + offs_n
    if expert < 0:  # an ignored slot
        tl.store(y_ptrs, tl.zeros((BLOCK_N,), dtype=y_ptr.dtype.element_ty), mask=offs_n < N)
        return
    acc = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + (slot // slots_per_row) * stride_xm + k * stride_xk, mask=k < K, other=0.0)
        tile = int4_weight_tile(of_expert(w, form, expert), form, offs_n, k0, N, K, BLOCK_N, BLOCK_K)
        acc += tl.sum(tile.to(tl.float32) * x.to(tl.float32)[None, :], axis=1)
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=offs_n < N)


def decode_gemm(x: torch.Tensor, w: Int4Weight, topk_ids: torch.Tensor, *, config: Tile | None = None) -> torch.Tensor:
    """Multiply each slot's row by its expert's int4 matrix.

    y[slot] = x[slot // (T*k / rows of x)] @ D((u - z) * s)[topk_ids.flatten()[slot]].T

    Args:
        x: [T, K] for GEMM1 or [T*k, K] for GEMM2, bf16 or fp16, any strides; T may be 0.
        w: Int4Weight [E, N, K], layout exllama; symmetric, or zero layout rdna or unpacked.
        topk_ids: int [T, k], 0..E-1, or -1 for a slot that does nothing.
        config: block_n, block_k and num_warps are used, block_m is not.
    Returns:
        [T*k, N] in x's dtype, 0 for slots of -1; weights rounded to D, exact products, fp32 sums, one rounding.
    Raises:
        ValueError: w is in another layout, or shapes or dtypes do not fit.
    Source: the decode path of github.com/ROCm/vllm/pull/933, without its chunking.
    """
    T, top_k = topk_ids.shape
    R = T * top_k
    args = weight_args(w, x, experts=True)
    if x.shape[0] not in (T, R):
        raise ValueError(f"x: got {x.shape[0]} rows, must be T = {T} or T*k = {R}")
    tile = config or (GPU_TILE if x.device.type == "cuda" else interpreter_tile(args.N, args.K))
    y = torch.empty(R, args.N, dtype=x.dtype, device=x.device)
    grid = (R * triton.cdiv(args.N, tile.block_n),)
    if grid[0]:
        decode_gemm_kernel[grid](
            x, args.pointers(), topk_ids.contiguous(), y, R // x.shape[0], args.N, args.K, *x.stride(), form_of(args),
            BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, num_warps=tile.num_warps,
        )  # fmt: skip
    return y
