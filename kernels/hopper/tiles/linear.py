"""Which tile a dense Hopper GEMM takes, by T, N and K alone.

Imports neither kernels nor triton. Choices are from measurements on one H200 (docs/performance-routing-lm-head.md): one
matrix has few tiles, so what counts is a program for each of 132 multiprocessors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moeracle.kernels.hopper.prepared_weight import COLUMN_TILE, ROW_TILE
from moeracle.kernels.hopper.tiles.kinds import Few, Scheduled
from moeracle.kernels.triton.schedules import WGMMA

PROGRAMS = 128  # as many programs as there should be, at least
UNITS = 132  # multiprocessors
MANY = 512  # programs from which K is not split
FEW = 64  # rows of x up to which all of it lies in shared memory
X_BYTES = 132 * 1024  # of shared memory for it
LONG = 2048  # K from which halves of it are worth their joining
COLUMNS = 64  # of one product: rows of x times parts of K
# ns that 64 columns of a tile of so many rows of x and of the weight take, on a multiprocessor of their own
STEP_NS = {(32, 64): 137, (64, 64): 160, (128, 64): 210, (128, 128): 345}


@dataclass(frozen=True)
class Wide(Scheduled):
    """hopper_linear_ring: x through a ring in shared memory, words straight into registers.

    Args:
        block_m: rows of x, 16..256. block_n: rows of the weight, a multiple of 64. block_k: columns a step, 64..256.
        num_stages: steps in the ring, 2 or more.
        depth: products of 64 columns for which words are loaded ahead; block_k is at most as many columns.
        split_k: 2: four more warps take the second half of K, with a ring of their own; 1: none do.
    """

    block_m: int = 64
    block_n: int = 64
    block_k: int = 128
    num_stages: int = 6
    depth: int = 4
    split_k: int = 1

    @property
    def num_warps(self) -> int:
        """One for 16 rows of the weight, those of the second half not counted."""
        return self.block_n // 16


def linear_tile(T: int, N: int, K: int) -> Few | Wide:
    """Choose the tile of one matrix.

    Args:
        T: rows of x, 1 or more.
        N, K: of the weight.
    Returns:
        A Few (of block_n 16, 32 or 64, in up to 8 parts) or a Wide, which divides the prepared weight.
    """
    rows, columns = -(-N // ROW_TILE) * ROW_TILE, -(-K // COLUMN_TILE) * COLUMN_TILE
    narrow = T <= 16 or 32 * columns * 2 > X_BYTES or -(-T // 32) * rows // 32 < PROGRAMS
    block_m = 8 if T <= 8 else 16 if narrow else 32
    if T > FEW or block_m * columns * 2 > X_BYTES:
        return _wide(T, rows, columns, whole=columns == K)
    tiles = -(-T // block_m)
    if 2 * block_m * columns * 2 > X_BYTES:  # one program a multiprocessor: they had better be there all at once
        block_n = next((n for n in (16, 32, 64) if tiles * rows // n <= UNITS), 64)
    else:
        block_n = next((n for n in (64, 32, 16) if tiles * rows // n >= PROGRAMS), 16)
    # Parts of K itself, and of whole steps: a schedule says so.
    most = 1 if columns != K else next(s for s in (8, 4, 2) if K % (64 * s) == 0)
    split = min(128 // block_n if block_m == 8 else max(2, 64 // block_n), COLUMNS // block_m, most)
    if tiles * rows // 64 >= MANY:
        block_n, split = 64, 1
    block_n = max(block_n, 64 // split)  # four warps
    steps, ahead = columns // split // 64, 8 if block_n * split == 64 or block_m == 16 else 4
    return Few(block_m, block_n, split, next(d for d in range(min(ahead, steps), 0, -1) if steps % d == 0))


def _wide(T: int, rows: int, columns: int, whole: bool) -> Wide:
    def programs(shape: tuple[int, int]) -> int:
        return -(-T // shape[0]) * (rows // shape[1])

    fitting = [shape for shape in STEP_NS if rows % shape[1] == 0]
    # What one multiprocessor has to do; of equal ones the least x and weights that are read twice.
    block_m, block_n = min(fitting, key=lambda s: (-(-programs(s) // UNITS) * STEP_NS[s], programs(s)))
    # Halves of K itself, and of whole turns: a schedule says so. Each takes half of the shared memory.
    halves = whole and columns >= LONG and columns % 1024 == 0 and block_m * block_n <= 4096
    split = 2 if halves and programs((block_m, block_n)) <= UNITS else 1
    depth = next(d for d in (8, 4, 2) if columns % (64 * d) == 0 and d * block_n <= 512)
    block_k = min(64 * depth, 256 if block_m <= 64 else 128)
    # Half the shared memory, so that there is room for the next kernel's programs, too.
    stages = min(6, 100 * 1024 // (block_m * block_k * 2), columns // split // block_k + 1)
    return Wide(block_m, block_n, block_k, max(2, stages), depth, split)


def linear_schedule(case: Any) -> str:
    """Return the schedule of int4_linear_hopper for a case."""
    return WGMMA if case.T == 0 else linear_tile(case.T, case.N, case.K).schedule()
