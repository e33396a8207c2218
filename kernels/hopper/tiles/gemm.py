"""Tiles of one Hopper GEMM by itself: those of the tuned layer that it is a part of, K never cut.

A weight [E, N, K] is gate and up of a layer (N = 2I, K = H) or its second GEMM (N = H, K = I); the tables' keys are of
the first, so a second one is looked for at N = 2K, K = N. A shape that no table holds takes what the model chooses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from moeracle.kernels import tuned
from moeracle.kernels.hopper.prepared_weight import PreparedWeight
from moeracle.kernels.hopper.tiles.kinds import SHARED, WIDEST, Few, Tile, register_cap
from moeracle.kernels.hopper.tiles.layers import ANY_DTYPE, OP, from_fields
from moeracle.kernels.hopper.tiles.model import one_gemm
from moeracle.kernels.triton.tiles import pow2_at_least

AHEAD = 16  # steps of 64 columns; 4 take up to 1.4x as long where there are few programs
SHORT = SHARED // (2 * 2 * 64)  # columns of K so that two programs' 64 rows of x fit side by side
ENOUGH = 132  # programs: one a multiprocessor


def unsplit(tile: Tile) -> Tile:
    """Return a tile that adds in one part: one schedule for every shape, and the portable kernels' bits.

    K is split where programs are too few to keep memory busy; with one part, each looks that much further ahead.
    """
    if not isinstance(tile, Few) or tile.split_k == 1:
        return tile
    return replace(tile, split_k=1, depth=AHEAD, max_registers=0)


def _rows(w: PreparedWeight, E: int, device: torch.device) -> tuple[str, list[dict[str, Any]]]:
    """Return which GEMM of a tuned layer a weight is, and that layer's rows; none where no table has it."""
    keys = {"gemm1": (OP, w.N, w.K, E, w.G), "gemm2": (OP, 2 * w.K, w.N, E, w.G)}
    for which, key in keys.items():
        for table, dtype in tuned.tables(device, ANY_DTYPE, own=w.kind):
            found = table.get((*key, dtype))
            if found:
                return which, found
    return "", []


def _chosen(rows: int, E: int, w: PreparedWeight, device: torch.device, block_m: int | None = None) -> Tile:
    """Return the tile that the model chooses, of this block_m if one is given."""
    tuned.lookup(OP, w.N, w.K, E, w.G, ANY_DTYPE, rows, device)  # finds nothing, and notes that
    return one_gemm(rows, E, w.N, w.K, w.G, block_m)


def grouped_tile(rows: int, E: int, w: PreparedWeight, device: torch.device) -> Tile:
    """Choose the tile of rows that lie expert by expert, whose blocks may have any size.

    Args:
        rows: R.
        E: experts.
        w: the weight, prepared.
        device: where.
    """
    which, found = _rows(w, E, device)
    row = tuned.pick(found, rows / max(E, 1))
    return _tile(row, which) if row else _chosen(rows, E, w, device)


def padded_tile(rows: int, E: int, w: PreparedWeight, device: torch.device, block_size: int) -> Tile:
    """Choose the tile of rows that are aligned to blocks already: a block is one tile, or several of 128 rows.

    With smaller tiles than blocks, weights would be read once more for what is only padding. With smaller blocks than
    the best tile, which this cannot mend, every block of an expert reads the expert's weights again: at 128 rows an
    expert, blocks of 16 take 8 reads for 2 with blocks of 64.

    Args:
        rows: R, slots.
        E: experts.
        w: the weight, prepared.
        device: where.
        block_size: B of the alignment.
    """
    block_m = max(8, min(128, pow2_at_least(block_size)))
    which, found = _rows(w, E, device)
    each = rows / max(E, 1)
    row = tuned.pick(found, each)
    if not row:
        return _chosen(rows, E, w, device, block_m)
    own = _tile(row, which)
    if (own.block_m, block_m) == (8, 16) and (w.padded_k <= SHORT or min(rows, E) * w.N < ENOUGH * 128):
        # Tiles made for more rows are too large to be many; a cap on registers was for 8 of them.
        cap: dict[str, Any] = {"max_registers": register_cap(own) + 16} if register_cap(own) else {}
        return replace(own, block_m=block_m, **cap)
    fitting = [other for other in found if _tile(other, which).block_m == block_m]
    if fitting:  # made for these blocks; of several, the one made for about as many rows
        return _tile(min(fitting, key=lambda other: abs(math.log(other["rows_per_expert"] / each))), which)
    # An expert's last block is half full, so that blocks of this size suit half as many rows.
    return WIDEST if block_m == 128 else _chosen(E * block_m // 2, E, w, device, block_m)


def _tile(row: Mapping[str, Any], which: str) -> Tile:
    tile: Tile = getattr(from_fields(row["tile"]), which)
    # In a layer silu·mul leaves gemm1 half as much to store; without it, 128 rows do not fit under the cap: they spill.
    spills = which == "gemm1" and tile.block_m == WIDEST.block_m and register_cap(tile) > 0
    return WIDEST if spills else unsplit(tile)
