"""Grouped W4A16 GEMM: expert-contiguous rows, a block table, no padding and no gather.

y[row, n] = sum_k x[row, k] * D((u[e, n, k] - z) * s)   for expert_offsets[e] <= row < expert_offsets[e+1]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.weight_args import weight_args
from moeracle.kernels.triton.device.block_table import table_of
from moeracle.kernels.triton.device.int4_tile import form_of, int4_tile, of_expert
from moeracle.kernels.triton.tiles import Tile, tile_for
from moeracle.kernels.triton.triton_import import tl, triton

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight


@triton.jit
def grouped_gemm_kernel(
    x_ptr, w, table_ptr, y_ptr, N, K, stride_xm, stride_xk, form, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: one (block, n-tile); n-tiles of a block are neighbours."""
    pid = tl.program_id(0)
    num_n = (N + BLOCK_N - 1) // BLOCK_N
    entry = table_ptr + (pid // num_n) * 3
    expert = tl.load(entry).to(tl.int64)
    m_start = tl.load(entry + 1).to(tl.int64)
    m_count = tl.load(entry + 2)
    if m_count == 0:
        return  # the grid is an upper bound, made without asking the device
    in_block = tl.arange(0, BLOCK_M)
    rows = m_start + in_block
    row_mask = in_block < m_count
    offs_n = (pid % num_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    y_ptrs = y_ptr + rows[:, None] * N + offs_n[None, :]
    y_mask = row_mask[:, None] & (offs_n < N)[None, :]
    if expert < 0:  # rows of no local expert
        tl.store(y_ptrs, tl.zeros((BLOCK_M, BLOCK_N), dtype=y_ptr.dtype.element_ty), mask=y_mask)
        return
    x_offs = rows * stride_xm
    w = of_expert(w, form, expert)
    acc = int4_tile(x_ptr, x_offs, row_mask, stride_xk, w, form, offs_n, N, K, BLOCK_M, BLOCK_N, BLOCK_K)
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=y_mask)


def block_table(expert_offsets: torch.Tensor, num_rows: int, block_m: int) -> torch.Tensor:
    """Cut each expert's rows into blocks, in torch: on the device and without waiting for it.

    A GPU takes block_table.table_of, one launch for a dozen; a CPU, and its interpreter, are faster here.

    m_start = expert_offsets[e] + j*block_m, m_count = min(block_m, expert_offsets[e+1] - m_start)

    Args:
        expert_offsets: int64 [E+1], non-decreasing from 0.
        num_rows: R, rows of x; rows at and after expert_offsets[E] get blocks of expert -1.
        block_m: rows a block.
    Returns:
        int64 [B, 3] of (expert, m_start, m_count), B = R//block_m + min(E+1, R), which is never too few;
        unused entries have m_count 0.
    """
    end = torch.full((1,), num_rows, dtype=torch.int64, device=expert_offsets.device)
    offsets = torch.cat([expert_offsets.long(), end])  # the rows of no expert, as one more "expert" E
    start, count = offsets[:-1], offsets.diff()
    E = expert_offsets.numel() - 1
    blocks = (count + block_m - 1) // block_m
    last = blocks.cumsum(0)
    block = torch.arange(num_rows // block_m + min(E + 1, num_rows), device=offsets.device)
    owner = torch.searchsorted(last, block, right=True)
    used = owner <= E
    owner = owner.clamp(max=E)
    m_start = start[owner] + (block - (last - blocks)[owner]) * block_m
    m_count = torch.where(used, (offsets[1:][owner] - m_start).clamp(max=block_m), 0)
    expert = torch.where(owner < E, owner, -1)
    return torch.stack([expert, torch.where(used, m_start, 0), m_count], dim=1).contiguous()


def grouped_gemm(
    x: torch.Tensor, w: Int4Weight, expert_offsets: torch.Tensor, *, config: Tile | None = None
) -> torch.Tensor:
    """Multiply expert-contiguous rows by their expert's int4 matrix.

    y[row] = x[row] @ D((u - z) * s)[e].T   for expert_offsets[e] <= row < expert_offsets[e+1]

    Args:
        x: [R, K], bf16 or fp16, rows sorted by expert; R may be 0.
        w: Int4Weight [E, N, K], layout exllama; symmetric, or zero layout rdna or unpacked.
        expert_offsets: int64 [E+1], non-decreasing, 0..R; rows before the first and at and after the last offset belong
            to no expert.
        config: tile sizes, or None for the device's default.
    Returns:
        [R, N] in x's dtype, every row written, 0 for rows of no expert. Weights are rounded to D before the dot, sums
        are fp32, one rounding at the store: contract `grouped`.
    Raises:
        ValueError: w is in another layout, or shapes or dtypes do not fit.
    Source: the grouped path of github.com/ROCm/vllm/pull/970; the code is ours.
    """
    R, E = x.shape[0], w.packed.shape[0]
    args = weight_args(w, x, experts=True)
    if expert_offsets.shape != (E + 1,):
        raise ValueError(f"expert_offsets: got shape {tuple(expert_offsets.shape)}, must be [{E + 1}] for {E} experts")
    tile = config or tile_for("grouped_gemm", R, args, x.dtype, x.device)
    y = torch.empty(R, args.N, dtype=x.dtype, device=x.device)
    if R == 0:
        return y
    if x.is_cuda:
        table = table_of(expert_offsets, y, tile.block_m)
    else:
        table = block_table(expert_offsets, R, tile.block_m)
        y[: int(expert_offsets[0])] = 0
    grid = (table.shape[0] * triton.cdiv(args.N, tile.block_n),)
    grouped_gemm_kernel[grid](
        x, args.pointers(), table, y, args.N, args.K, *x.stride(), form_of(args), BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return y
