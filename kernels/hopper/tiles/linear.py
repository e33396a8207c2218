"""Which tile a dense Hopper GEMM takes, by T, N and K alone: what the model of the machine says of a menu of tiles.

Imports neither kernels nor triton. The model is that of tiles/model.py with constants of these kernels, fitted to the
dense groups of fixtures/hardware/h200/tile_sweep.json: one matrix has few tiles, so what counts is how many programs
stand beside each other on a multiprocessor, and how the last wave comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from moeracle.kernels.common.machine_model import STEP, Machine, Work, microseconds
from moeracle.kernels.hopper.prepared_weight import COLUMN_TILE, ROW_TILE
from moeracle.kernels.hopper.tiles.kinds import WHOLE_X, Few, Scheduled
from moeracle.kernels.hopper.tiles.model import OWN_SHARED, REGISTERS, SHARED, WARPS, registers_of
from moeracle.kernels.triton.schedules import WGMMA

COLUMNS = 64  # of one product: rows of x times parts of K
WORDS = 512  # rows of the weight times products whose words are in registers
MOST_SHARED = 226 * 1024  # bytes of shared memory that a Wide may take


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


# cache is the most that 132 multiprocessors take in, 64 bytes a cycle each; the others are fitted.
DENSE = Machine(
    latency=1.0,
    memory=3.12e6,
    cache=1.4e7,
    product=4.29e8,
    issue_few=0.00947,
    issue_ring=0.0666,
    x=0.00573,
    start_few=1.65,
    start_ring=2.91,
    launch=1.1,
    store=0.0,
    tail=0.974,
    soft=7.03,
)
MENU: tuple[Few | Wide, ...] = (
    Few(8, 16, 4, 8), Few(8, 16, 8, 8), Few(8, 32, 2, 8), Few(8, 32, 4, 4), Few(8, 32, 4, 8), Few(8, 64, 1, 8),
    Few(8, 64, 2, 4), Few(8, 64, 2, 8), Few(8, 64, 4, 4), Few(16, 16, 4, 8), Few(16, 32, 2, 8), Few(16, 32, 4, 4),
    Few(16, 64, 1, 8), Few(16, 64, 2, 8), Few(16, 64, 4, 8), Few(32, 32, 2, 4), Few(32, 64, 1, 4),
    Wide(16, 64, 256, 8, 8), Wide(16, 64, 128, 8, 8), Wide(16, 64, 256, 8, 8, 2), Wide(32, 64, 256, 6, 8),
    Wide(32, 64, 64, 8, 8), Wide(32, 64, 256, 6, 8, 2), Wide(32, 128, 256, 6, 4), Wide(32, 128, 256, 6, 4, 2),
    Wide(64, 64, 256, 3, 8), Wide(64, 64, 128, 4, 8), Wide(64, 64, 256, 3, 8, 2), Wide(64, 128, 256, 3, 4),
    Wide(64, 128, 256, 3, 4, 2), Wide(128, 64, 64, 4, 8), Wide(128, 64, 128, 2, 8), Wide(128, 64, 128, 3, 8),
    Wide(128, 64, 128, 3, 8, 2), Wide(128, 128, 128, 2, 4), Wide(128, 128, 128, 3, 4),
)  # fmt: skip


def fit(tile: Few | Wide, N: int, K: int) -> Few | Wide | None:
    """Return a tile as it divides a prepared weight, or None where it does not.

    Args:
        tile: of MENU.
        N, K: of the weight.
    """
    rows, columns = -(-N // ROW_TILE) * ROW_TILE, -(-K // COLUMN_TILE) * COLUMN_TILE
    if rows % tile.block_n or (tile.split_k > 1 and columns != K):  # parts of K itself: a schedule says so
        return None
    if isinstance(tile, Few):
        if columns % (STEP * tile.split_k) or tile.block_m * columns * 2 > WHOLE_X:
            return None
        steps = columns // tile.split_k // STEP
        return replace(tile, depth=next(d for d in range(min(tile.depth, steps), 0, -1) if steps % d == 0))
    depths = [d for d in (8, 4, 2) if d <= tile.depth and d * tile.block_n <= WORDS]
    depth = next((d for d in depths if columns % (STEP * d * tile.split_k) == 0), 0)
    if not depth:
        return None
    block_k = min(tile.block_k, STEP * depth)
    stages = max(2, min(tile.num_stages, columns // tile.split_k // block_k + 1))
    fitted = replace(tile, block_k=block_k, num_stages=stages, depth=depth)
    return fitted if shared_of(fitted, columns) <= MOST_SHARED else None


def shared_of(tile: Few | Wide, columns: int) -> int:
    """Return the bytes of shared memory that a program takes.

    Args:
        tile: fitted.
        columns: of the prepared weight.
    """
    if isinstance(tile, Few):
        return tile.block_m * columns * 2
    kept = (tile.split_k - 1) * tile.block_n * tile.block_m * 4
    return tile.split_k * tile.num_stages * tile.block_k * tile.block_m * 2 + kept


def work_of(tile: Few | Wide, T: int, N: int, K: int) -> Work:
    """Return what a launch has to do with a fitted tile.

    Args:
        tile: fitted.
        T: rows of x. N, K: of the weight.
    """
    rows, columns = -(-N // ROW_TILE) * ROW_TILE, -(-K // COLUMN_TILE) * COLUMN_TILE
    few, split = isinstance(tile, Few), tile.split_k
    warps = tile.num_warps * (1 if few else split)
    registers = registers_of(tile) if isinstance(tile, Few) else min(240, 60 + tile.block_m // 2 + 4 * tile.depth)
    resident = min(REGISTERS // (-(-registers // 8) * 256 * warps), SHARED // (shared_of(tile, columns) + OWN_SHARED))
    n = tile.block_n * split
    ring = tile.depth if isinstance(tile, Few) else tile.num_stages * tile.block_k // STEP - 1
    return Work(
        kind="few" if few else "ring",
        programs=-(-T // tile.block_m) * (rows // tile.block_n),
        resident=max(1, min(resident, WARPS // warps)),
        stays=False,
        steps=columns / split / STEP,
        ahead=min(tile.depth, ring),
        warps=warps,
        words=STEP * n * (0.5 + 2 / COLUMN_TILE),
        x=0.0 if few else STEP * tile.block_m * split * 2,
        products=STEP * n * tile.block_m * (split if few else 1),  # Few throws away what lies off the diagonal
        first_x=tile.block_m * columns * 2 if few else 0.0,
        results=tile.block_n * tile.block_m / 1024,
        scales=1.0,
    )


def plausible(T: int, N: int, K: int) -> Iterator[Few | Wide]:
    """Yield the tiles of MENU that fit a weight and may be the best at T rows.

    Args:
        T: rows of x. N, K: of the weight.
    """
    found = dict.fromkeys(fit(tile, N, K) for tile in MENU if tile.block_m < 2 * max(T, 8))
    for tile in found:
        if tile is not None and (
            isinstance(tile, Wide) or (tile.block_m >= T / 4 and tile.block_m * tile.split_k <= COLUMNS)
        ):
            yield tile


def ranked(T: int, N: int, K: int, machine: Machine = DENSE) -> list[tuple[float, Few | Wide]]:
    """Return (microseconds, tile) of every plausible tile, fastest first by the model.

    Args:
        T: rows of x, 1 or more. N, K: of the weight. machine: on which GPU.
    """
    tiles: Sequence[Few | Wide] = list(plausible(T, N, K)) or [Wide(16, 64, 128, 2, 2)]
    found = [(microseconds(work_of(tile, T, N, K), machine), tile) for tile in tiles]
    return sorted(found, key=lambda each: each[0])


@lru_cache(4096)
def linear_tile(T: int, N: int, K: int) -> Few | Wide:
    """Choose the tile of one matrix.

    Args:
        T: rows of x, 1 or more.
        N, K: of the weight.
    Returns:
        A Few (of block_n 16, 32 or 64, in up to 8 parts) or a Wide, which divides the prepared weight.
    """
    return ranked(T, N, K)[0][1]


def linear_schedule(case: Any) -> str:
    """Return the schedule of int4_linear_hopper for a case."""
    return WGMMA if case.T == 0 else linear_tile(case.T, case.N, case.K).schedule()
