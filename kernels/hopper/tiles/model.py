"""Which tile a Hopper GEMM takes where no table holds its shape: a model of the machine, fitted to measurements.

Only tiles of MENU are chosen, whose bits are those of a declared schedule: recordings of them are replayed in CI. The
few constants are those of one H200, fitted by kernels/tune/fit.py to fixtures/hardware/h200/tile_sweep.json, which also
says how far what is chosen lies from the best of each shape, with that shape left out of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from moeracle.kernels.common.machine_model import STEP, Machine, Work, blocks_and_columns, microseconds
from moeracle.kernels.hopper.tiles.kinds import (
    WIDEST,
    Direct,
    Duo,
    Few,
    Ring,
    Stream,
    Tile,
    register_cap,
    sizes_of,
)

REGISTERS, WARPS, SHARED = 65536, 64, 228 * 1024  # of each
OWN_SHARED = 1024  # bytes that each program takes beside its own
MENU: tuple[Tile, ...] = (
    Few(8, 64, 1, 4), Few(8, 64, 1, 8), Few(8, 128, 1, 4), Few(8, 128, 1, 8), Few(8, 64, 2, 4), Few(8, 64, 2, 8),
    Few(8, 128, 2, 4), Few(8, 64, 4, 4), Few(8, 64, 4, 8), Few(16, 64, 1, 4), Few(16, 128, 1, 4), Few(32, 128, 1, 2),
    Stream(8, 64, 8, 4), Stream(8, 128, 8, 2), Stream(16, 128, 8, 2), Stream(32, 128, 8, 2), Stream(64, 128, 4, 2),
    Stream(64, 128, 8, 2), Direct(8, 64, 256, 4, 4, 8), Direct(8, 128, 256, 3, 8, 8),
    Direct(8, 128, 256, 2, 8, 8, 64), Direct(16, 64, 256, 4, 4, 8), Direct(16, 128, 256, 3, 8, 8, 80),
    Direct(32, 128, 256, 2, 8, 8, 80), Direct(32, 64, 256, 2, 4, 16, 96), Direct(64, 128, 256, 2, 8, 16),
    Direct(64, 128, 256, 3, 8, 32), WIDEST, Duo(32, 256, 128, 5, 16),
    Duo(64, 256, 128, 4, 16), Duo(64, 256, 128, 6, 32), Duo(128, 256, 64, 8, 16), Duo(128, 256, 64, 8, 32),
)  # fmt: skip


H200 = Machine()


def registers_of(tile: Tile) -> int:
    """Return how many registers a thread of this tile takes, about; 8 is what they are given by."""
    if isinstance(tile, Few):
        found = 26 + 5.5 * tile.depth + 0.9 * tile.block_m * tile.split_k
    elif isinstance(tile, Stream):
        found = 64 + 6 * tile.depth + 0.4 * tile.block_m
    elif isinstance(tile, Duo):
        return 168
    else:
        found = {8: 64, 16: 80, 32: 96, 64: 124, 128: 128}[tile.block_m]
    return min(register_cap(tile) or 255, -(-int(found) // 8) * 8)


def work_of(tile: Tile, w: Any, rows: int, E: int) -> Work:
    """Return what a launch has to do with a tile that fits the weight.

    Args:
        tile: fitted.
        w: sizes of the weight (sizes_of, or prepared). rows: R. E: experts.
    """
    least = min(getattr(tile, "least", 0) or tile.block_m, tile.block_m)
    split, groups = getattr(tile, "split_k", 1), min(w.G, w.padded_k)
    blocks, columns = blocks_and_columns(rows, E, tile.block_m, least)
    each = columns / blocks if blocks else float(tile.block_m)
    whole_x = isinstance(tile, (Few, Stream))
    n = tile.block_n * split
    if isinstance(tile, Direct):
        ahead, shared = tile.block_k / STEP, tile.num_stages * tile.block_k * tile.block_m * 2
    elif isinstance(tile, (Ring, Duo)):
        ahead = (tile.num_stages - 1) * tile.block_k / STEP
        shared = tile.num_stages * tile.block_k * (tile.block_m * 2 + tile.block_n // 2)
    else:
        ahead, shared = tile.depth, tile.block_m * w.padded_k * 2
    warps = 12 if isinstance(tile, Duo) else tile.num_warps
    resident = min(REGISTERS // (registers_of(tile) * 32 * warps), SHARED // (shared + OWN_SHARED), WARPS // warps)
    resident = min(resident, tile.resident) if isinstance(tile, Stream) else resident
    return Work(
        kind=type(tile).__name__.lower(),
        programs=blocks * (w.slabs * 16 // tile.block_n),
        resident=1 if isinstance(tile, Duo) else max(1, resident),
        stays=isinstance(tile, (Stream, Duo)),
        steps=w.padded_k / split / STEP,
        ahead=ahead,
        warps=8 if isinstance(tile, Duo) else warps,
        words=STEP * n * (0.5 + 2 / groups),
        x=0.0 if whole_x else STEP * each * 2,
        products=STEP * n * each * split,
        first_x=tile.block_m * w.padded_k * 2 if whole_x else 0.0,
        results=tile.block_n * each / 1024,
        scales=max(1.0, STEP / groups),
    )


def ranked(w: Any, rows: int, E: int, machine: Machine = H200, menu: Sequence[Tile] = MENU) -> list[tuple[float, Tile]]:
    """Return (microseconds, tile) of every tile as it fits a weight, fastest first by the model.

    Args:
        w: sizes of the weight (sizes_of, or prepared).
        rows: R.
        E: experts.
        machine: on which GPU.
        menu: the tiles to choose from.
    """
    fitting = dict.fromkeys(tile.fit(w) for tile in menu)
    found = [(microseconds(work_of(tile, w, rows, E), machine), tile) for tile in fitting]
    return sorted(found, key=lambda each: each[0])


def plausible(rows: int, E: int) -> list[Tile]:
    """Return the tiles of MENU that may be the best at so many rows: no block is four times an expert's rows.

    Args:
        rows: R.
        E: experts.
    """
    return [tile for tile in MENU if tile.block_m <= max(8.0, 4 * rows / max(E, 1))]


def bucket(rows: int) -> int:
    """Return the number of rows that a choice is made for: rounded up to a quarter of an octave.

    Args:
        rows: R, 1 or more.
    """
    return math.ceil(2 ** (math.ceil(4 * math.log2(rows) - 1e-9) / 4) - 1e-6)


@lru_cache(4096)
def both_gemms(rows: int, E: int, N: int, K: int, G: int) -> tuple[Tile, Tile]:
    """Return the tiles of a layer, which share block_m, by the model.

    Args:
        rows: R = T * top_k.
        E: experts.
        N, K, G: of w13, 2I and H.
    """
    R = bucket(rows)
    best: list[dict[int, tuple[float, Tile]]] = [{}, {}]
    for of_m, n, k in zip(best, (N, K), (K, N // 2), strict=True):
        for us, tile in ranked(sizes_of(n, k, G), R, E, menu=plausible(R, E)):
            of_m.setdefault(tile.block_m, (us, tile))
    up, down = best
    m = min(up.keys() & down.keys(), key=lambda m: up[m][0] + down[m][0])
    return up[m][1], down[m][1]


@lru_cache(4096)
def one_gemm(rows: int, E: int, N: int, K: int, G: int, block_m: int | None = None) -> Tile:
    """Return the tile of one GEMM by itself, K uncut, by the model.

    Args:
        rows: R.
        E: experts.
        N, K, G: of the weight.
        block_m: rows that it must have; None: as the model likes.
    """
    R = bucket(rows)
    whole = [tile for tile in MENU if getattr(tile, "split_k", 1) == 1]
    menu = (
        [tile for tile in whole if tile.block_m == block_m] if block_m else [t for t in whole if t in plausible(R, E)]
    )
    return ranked(sizes_of(N, K, G), R, E, menu=menu)[0][1]
