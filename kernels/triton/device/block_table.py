"""Rows in expert order, cut into blocks by one launch that waits for nobody: what a grouped GEMM launches from.

A program owns one expert. Where its blocks begin follows from the offsets, which every program reads whole; nothing is
atomic and nothing is searched for. Two forms:

    table      (expert, m_start, m_count) a block, as triton.grouped_gemm.block_table makes it in torch
    aligned    sorted ids, expert ids and their end, as moe_align_block_size of the same rows would return them
"""

from __future__ import annotations

import torch

from moeracle.kernels.triton.tiles import pow2_at_least
from moeracle.kernels.triton.triton_import import tl, triton

MOST_BINS = 1024  # experts whose offsets are read at once
PROGRAMS = 512  # at most, where experts alone are fewer: rows of no expert may be many, and somebody has to zero them
Blocks = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@triton.jit
def zero_rows(y_ptr, first, last, step, N, WIDTH: tl.constexpr):
    """Store 0 into rows first, first + step, ... below last of y [., N]."""
    n = tl.arange(0, WIDTH).to(tl.int64)
    for row in range(first, last, step):
        for start in range(0, N, WIDTH):
            zero = tl.zeros((WIDTH,), dtype=y_ptr.dtype.element_ty)
            # n * 0 makes it 64 bits wide, on a GPU and in the interpreter
            tl.store(y_ptr + (n * 0 + row) * N + start + n, zero, mask=start + n < N)


@triton.jit(do_not_specialize=["R", "num_blocks"])
def block_table_kernel(
    offsets_ptr, table_ptr, ids_ptr, experts_ptr, end_ptr, y_ptr, R, E, N, num_blocks,
    TABLE: tl.constexpr, EARLY: tl.constexpr, BM: tl.constexpr, BINS: tl.constexpr, BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """One program: an expert's blocks, and a share of the entries that are left over and of the rows of no expert.

    TABLE: rows at and after the last offset are expert E's, written as -1. EARLY: let the next kernel start and wait.
    """
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    before = 0
    used = 0
    groups = E + 1 if TABLE else E
    for first in range(0, groups, BINS):
        e = first + tl.arange(0, BINS)
        there = e < groups
        # Offsets beyond x are cut off: what they promise is not there to be read.
        begin = tl.minimum(tl.load(offsets_ptr + e, mask=there, other=0).to(tl.int32), R)
        stop = tl.minimum(tl.load(offsets_ptr + e + 1, mask=e < E, other=R).to(tl.int32), R)
        blocks = tl.where(there, tl.maximum(stop - begin + BM - 1, 0) // BM, 0)
        used += tl.sum(blocks, axis=0)
        before += tl.sum(tl.where(e < pid, blocks, 0), axis=0)
    used = tl.minimum(used, num_blocks)
    start_row = tl.minimum(tl.load(offsets_ptr).to(tl.int32), R)
    end_row = tl.minimum(tl.load(offsets_ptr + E).to(tl.int32), R)

    mine = tl.minimum(pid, E)
    begin = tl.minimum(tl.load(offsets_ptr + mine).to(tl.int32), R)
    stop = tl.minimum(tl.load(offsets_ptr + mine + 1, mask=mine < E, other=R).to(tl.int32), R)
    if pid >= groups:
        stop = begin
    count = tl.minimum(tl.maximum(stop - begin + BM - 1, 0) // BM, num_blocks - before)
    for first in range(0, count, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        own = block < count
        m_start = begin + block * BM
        if TABLE:
            entry = table_ptr + (before + block) * 3
            tl.store(entry, (block * 0 + tl.where(pid < E, pid, -1)).to(tl.int64), mask=own)
            tl.store(entry + 1, m_start.to(tl.int64), mask=own)
            tl.store(entry + 2, tl.minimum(stop - m_start, BM).to(tl.int64), mask=own)
        else:
            tl.store(experts_ptr + before + block, block * 0 + pid, mask=own)
            inside = tl.arange(0, BM)
            row = m_start[:, None] + inside[None, :]
            at = (before + block)[:, None] * BM + inside[None, :]
            tl.store(ids_ptr + at, tl.where(row < stop, row, R), mask=own[:, None])
    for first in range(used + pid * BLOCKS, num_blocks, programs * BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        if TABLE:
            none = (block * 0).to(tl.int64)
            tl.store(table_ptr + block * 3, none - 1, mask=block < num_blocks)
            tl.store(table_ptr + block * 3 + 1, none, mask=block < num_blocks)
            tl.store(table_ptr + block * 3 + 2, none, mask=block < num_blocks)
        else:
            tl.store(experts_ptr + block, block * 0 - 1, mask=block < num_blocks)
    zero_rows(y_ptr, pid, start_row, programs, N, WIDTH)
    if not TABLE:
        zero_rows(y_ptr, end_row + pid, R, programs, N, WIDTH)
        if pid == 0:
            tl.store(end_ptr, used * BM)


def _launch(
    expert_offsets: torch.Tensor, y: torch.Tensor, block_m: int, table: torch.Tensor | None, blocks: Blocks | None
) -> None:
    (R, N), E = y.shape, expert_offsets.numel() - 1
    if table is not None:
        out, num_blocks, programs = (table,) * 4, table.shape[0], E + 1
    else:
        assert blocks is not None
        out, num_blocks = (blocks[0], *blocks), blocks[1].numel()
        programs = max(E, min(PROGRAMS, triton.cdiv(R, 16)))
    block_table_kernel[(programs,)](
        expert_offsets.contiguous(),
        *out,
        y,
        R,
        E,
        N,
        num_blocks,
        TABLE=table is not None,
        EARLY=table is None and y.is_cuda,
        BM=block_m,
        BINS=min(MOST_BINS, pow2_at_least(E + 1 if table is not None else E)),
        BLOCKS=32 if table is not None else max(1, 256 // block_m),
        WIDTH=256 if y.is_cuda else 4096,
        num_warps=1,  # a warp adds up 256 offsets without a barrier
    )


def table_of(expert_offsets: torch.Tensor, y: torch.Tensor, block_m: int) -> torch.Tensor:
    """Return triton.grouped_gemm.block_table of y's rows, by one launch that also zeroes rows before the first offset.

    Args:
        expert_offsets: int [E+1], non-decreasing; offsets beyond R count as R.
        y: [R, N], contiguous, R at least 1: the output of the GEMM that reads the table.
        block_m: BM, rows a block.
    Returns:
        int64 [R//BM + min(E+1, R), 3] of (expert, m_start, m_count), rows at and after expert_offsets[E] as expert -1,
        unused entries (-1, 0, 0).
    """
    R, E = y.shape[0], expert_offsets.numel() - 1
    table = torch.empty(R // block_m + min(E + 1, R), 3, dtype=torch.int64, device=y.device)
    _launch(expert_offsets, y, block_m, table, None)
    return table


def aligned_rows(expert_offsets: torch.Tensor, y: torch.Tensor, block_m: int, num_blocks: int) -> Blocks:
    """Return blocks as moe_align_block_size does, of rows that lie in expert order; and zero y's rows of no expert.

    id i of block j of expert e = expert_offsets[e] + j*BM + i, or R where that is the next expert's

    Args:
        expert_offsets: int [E+1], E at least 1, non-decreasing; offsets beyond R count as R.
        y: [R, N], contiguous, R at least 1: rows before the first offset, and at and after the last, become 0.
        block_m: BM, a power of two.
        num_blocks: how many blocks R rows of E experts can fill at most.
    Returns:
        sorted ids int32 [num_blocks * BM], whatever was there after the last block used; expert ids int32 [num_blocks],
        -1 after it; int32 [1], BM times the blocks used. On a GPU of compute capability 9.0 only: the kernel launched
        next may start early (griddepcontrol.wait), and must wait before it reads them.
    """
    ids = torch.empty(num_blocks * block_m, dtype=torch.int32, device=y.device)
    experts = torch.empty(num_blocks, dtype=torch.int32, device=y.device)
    end = torch.empty(1, dtype=torch.int32, device=y.device)
    _launch(expert_offsets, y, block_m, None, (ids, experts, end))
    return ids, experts, end
