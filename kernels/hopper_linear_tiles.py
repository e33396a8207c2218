"""Which tile a dense Hopper GEMM takes, by T, N and K alone.

Imports neither kernels nor triton. Choices are from measurements on one H200 (docs/performance-routing-lm-head.md): one
matrix has few tiles, so what counts is a program for each of 132 multiprocessors, then eight warps a program.
"""

from __future__ import annotations

from typing import Any

from moeracle.kernels.hopper_tiles import Few, Ring
from moeracle.kernels.prepared_weight import COLUMN_TILE, ROW_TILE
from moeracle.kernels.schedules import WGMMA

PROGRAMS = 128  # as many programs as there should be, at least
MANY = 512  # programs from which K is not split
FEW = 64  # rows of x up to which all of it lies in shared memory
X_BYTES = 132 * 1024  # of shared memory for it
COLUMNS = 64  # of one product: rows of x times parts of K


def linear_tile(T: int, N: int, K: int) -> Few | Ring:
    """Choose the tile of one matrix.

    Args:
        T: rows of x, 1 or more.
        N, K: of the weight.
    Returns:
        A Few (of block_n 16, 32 or 64, in up to 8 parts) or a Ring, which divides the prepared weight.
    """
    rows, columns = -(-N // ROW_TILE) * ROW_TILE, -(-K // COLUMN_TILE) * COLUMN_TILE
    block_m = 8 if T <= 8 else 16 if T <= 16 or 32 * columns * 2 > X_BYTES else 32
    if T > FEW or block_m * columns * 2 > X_BYTES:
        return _ring(T, rows)
    tiles = -(-T // block_m)
    block_n = next((n for n in (64, 32, 16) if tiles * rows // n >= PROGRAMS), 16)
    # Parts of K itself, and of whole steps: a schedule says so.
    most = 1 if columns != K else next(s for s in (8, 4, 2) if K % (64 * s) == 0)
    split = min(128 // block_n, COLUMNS // block_m, most)
    if tiles * rows // 64 >= MANY:
        block_n, split = 64, 1
    block_n = max(block_n, 64 // split)  # four warps
    steps, ahead = columns // split // 64, 8 if block_n * split == 64 else 4
    return Few(block_m, block_n, split, next(d for d in range(min(ahead, steps), 0, -1) if steps % d == 0))


def _ring(T: int, rows: int) -> Ring:
    block_n = 128 if rows % 128 == 0 else 64
    if -(-T // 128) * (rows // block_n) >= 200:
        return Ring(128, block_n, 64, 4, block_n // 16)
    return Ring(64, block_n, 128, 3, block_n // 16)


def linear_schedule(case: Any) -> str:
    """Return the schedule of int4_linear_hopper for a case."""
    return WGMMA if case.T == 0 else linear_tile(case.T, case.N, case.K).schedule()
