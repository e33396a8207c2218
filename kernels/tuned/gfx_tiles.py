"""Which tile a Triton GEMM takes on gfx1151 where no table holds its shape: the same model as Hopper's, other numbers.

Nothing here was measured on such a GPU. The tiles are those of kernels/tuned/gfx1151.json for the weight's group size:
the compiler's choice for each block_m, of which none spills, also with fp16 and zero points, and each has its matrix
instruction; that file also says how many waves of each fit. Of the machine's numbers these are public, the others are
taken to be Hopper's:

    units     20 pairs of compute units (WGP)          amd.com, Ryzen AI Max+ 395: Radeon 8060S, 40 compute units
    memory    256 GB/s: LPDDR5X-8000, 256 bits         the same page
    product   59 TFLOP/s: 512 FLOP a clock and compute unit at 2.9 GHz    gpuopen.com/learn/wmma_on_rdna3; the same page
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from moeracle.kernels import tuned
from moeracle.kernels.common.machine_model import STEP, Machine, Work, blocks_and_columns, microseconds

PLACE = "gfx1151"
SIMDS = 4  # of a unit
CLOCK = 2900.0  # cycles a microsecond
# A code takes about 2.5 instructions to become a product's operand; 32 lanes, one instruction a cycle and SIMD.
ISSUE = 64 * STEP * 2.5 / 32 / SIMDS / CLOCK
GFX1151 = Machine(
    units=20, memory=256e3, product=40 * 512 / 2 * CLOCK, cache=1e9, issue_ring=ISSUE, start_ring=1.0, launch=5.0
)


class Row(NamedTuple):
    """A tile of the table, and how many waves of it a SIMD holds."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    waves: float


def menu(G: int) -> list[Row]:
    """Return the tiles of the table for a group size, each once.

    Args:
        G: group size.
    """
    found = [
        row for (op, *_, g, _), held in tuned.load(PLACE).items() if op == "grouped_gemm" and g == G for row in held
    ]
    return list(dict.fromkeys(Row(**row["tile"], waves=float(row["waves"])) for row in found))


def work_of(tile: Row, rows: int, E: int, N: int, K: int, G: int) -> Work:
    """Return what a launch has to do with a tile.

    Args:
        tile: of `menu`.
        rows: R. E: experts. N, K, G: of the weight.
    """
    blocks, _ = blocks_and_columns(rows, E, tile.block_m, tile.block_m)
    return Work(
        kind="ring",
        programs=blocks * math.ceil(N / tile.block_n),
        resident=max(1, int(tile.waves * SIMDS) // tile.num_warps),
        stays=False,
        steps=K / STEP,
        ahead=max(1.0, tile.num_stages * tile.block_k / STEP),
        warps=max(1, tile.block_n // 16),
        words=STEP * tile.block_n * (0.5 + 2 / G),
        x=STEP * tile.block_m * 2,
        products=STEP * tile.block_n * tile.block_m,
        first_x=0.0,
        results=tile.block_n * tile.block_m / 1024,
        scales=1.0,
    )


@lru_cache(1024)
def _chosen(rows: int, E: int, N: int, K: int, G: int) -> Row | None:
    found = [(microseconds(work_of(tile, rows, E, N, K, G), GFX1151), tile) for tile in menu(G)]
    return min(found)[1] if found and rows else None


def gfx_tile(rows: int, weight: Any, device: torch.device) -> dict[str, int] | None:
    """Return the fields of the tile that the model chooses on gfx1151; None elsewhere, or where the table has no tile.

    Args:
        rows: R = T * top_k.
        weight: the weight's sizes (WeightArgs).
        device: where the tensors are.
    """
    if torch.version.hip is None or device.type != "cuda" or PLACE not in tuned.places(device):
        return None
    found = _chosen(rows, weight.E, weight.N, weight.K, weight.G)
    return None if found is None else {name: value for name, value in found._asdict().items() if name != "waves"}
