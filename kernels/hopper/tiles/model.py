"""Which tile a Hopper GEMM takes where no table holds its shape: a model of the machine, fitted to measurements.

    a step     64 columns of K: the slowest of waiting for memory, issuing, multiplying and reading, softened
    a program  its start, x where it lies in shared memory from the start, its steps
    a launch   programs over 132 multiprocessors, as many at a time on each as registers and shared memory allow

Only tiles of MENU are chosen, whose bits are those of a declared schedule: recordings of them are replayed in CI. The
few constants are those of one H200, fitted by kernels/tune/fit.py to fixtures/hardware/h200/tile_sweep.json, which also
says how far what is chosen lies from the best of each shape, with that shape left out of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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

UNITS = 132  # multiprocessors
REGISTERS, WARPS, SHARED = 65536, 64, 228 * 1024  # of each
OWN_SHARED = 1024  # bytes that each program takes beside its own
STEP = 64  # columns
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


@dataclass(frozen=True)
class Machine:
    """What the model knows of a GPU, all fitted; microseconds, bytes a microsecond, products a microsecond.

    Args:
        latency: of a read from memory, while the others read, too.
        memory, cache, product: bytes from memory, bytes from L2, multiply-adds: of the whole GPU.
        issue_few, issue_stream, issue_direct, issue_ring, issue_duo: a warp's instructions for one step take so long,
        issue_scales: and this share more where a step has two groups of scales.
        x: of bringing a byte of x into shared memory, in times of the cache's.
        start_few, start_stream, start_direct, start_ring, start_duo, launch: of a program, of the kernel.
        store: of 1024 results.
        tail: how far the last wave is a whole one.
        soft: exponent by which the parts of a step add up; large: the slowest alone counts.
    """

    latency: float = 0.819
    memory: float = 4870000.0
    cache: float = 404000000.0
    product: float = 367000000.0
    issue_few: float = 0.0329
    issue_stream: float = 0.0345
    issue_direct: float = 1.54e-05
    issue_ring: float = 0.117
    issue_duo: float = 0.0389
    issue_scales: float = 0.403
    x: float = 4.41
    start_few: float = 0.455
    start_stream: float = 0.224
    start_direct: float = 0.988
    start_ring: float = 0.00668
    start_duo: float = 4.48
    launch: float = 1.49
    store: float = 0.0396
    tail: float = 0.857
    soft: float = 1.98


H200 = Machine()


@dataclass(frozen=True)
class Work:
    """What one launch has to do, in the terms of the model.

    Args:
        kind: the tile's class, in lower case.
        programs: tiles of the product. resident: programs at a time on a multiprocessor. stays: they stay, and take
            one tile after another.
        steps: of each tile. ahead: steps whose words are on their way.
        warps: that multiply. words, x: bytes of a step. products: multiply-adds of a step.
        first_x: bytes of x that are brought before the first step. results: of a tile, in 1024s.
        scales: groups of a step, 1 or more.
    """

    kind: str
    programs: float
    resident: int
    stays: bool
    steps: float
    ahead: float
    warps: int
    words: float
    x: float
    products: float
    first_x: float
    results: float
    scales: float


@lru_cache(256)
def _counts(rows: int, E: int) -> tuple[tuple[int, float], ...]:
    """Return (rows of an expert, probability) where rows choose among E experts alike."""
    p, mean = 1 / E, rows / E
    spread = 6 * math.sqrt(mean) + 6
    first, last = max(0, int(mean - spread)), min(rows, int(mean + spread))
    if E == 1:
        return ((rows, 1.0),)

    def chance(c: int) -> float:
        ways = math.lgamma(rows + 1) - math.lgamma(c + 1) - math.lgamma(rows - c + 1)
        return math.exp(ways + c * math.log(p) + (rows - c) * math.log1p(-p))

    return tuple((c, chance(c)) for c in range(first, last + 1))


@lru_cache(4096)
def blocks_and_columns(rows: int, E: int, block_m: int, least: int) -> tuple[float, float]:
    """Return how many blocks of block_m the rows of all experts fill, and how many of their columns are multiplied.

    Args:
        rows: R. E: experts. block_m: rows of a block. least: columns for a block of few rows, as Ring's.
    """
    blocks, columns = 0.0, 0.0
    for count, chance in _counts(rows, E):
        whole, rest = divmod(count, block_m)
        last = next((m for m in (least, 2 * least) if rest <= m < block_m), block_m) if rest else 0
        blocks += chance * (whole + bool(rest))
        columns += chance * (whole * block_m + last)
    return E * blocks, E * columns


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


def microseconds(work: Work, machine: Machine = H200) -> float:
    """Return how long a launch takes.

    Args:
        work: what it has to do. machine: on which GPU.
    """
    m, p = machine, machine.soft
    issue = getattr(m, f"issue_{work.kind}") * (1 + m.issue_scales * (work.scales - 1)) * work.warps / 4
    start = getattr(m, f"start_{work.kind}")

    def step(at_a_time: float) -> float:
        waits = m.latency / work.ahead
        reads = at_a_time * UNITS * work.words / m.memory
        cached = at_a_time * UNITS * (work.words + work.x) / m.cache
        multiplies = at_a_time * UNITS * work.products / m.product
        parts = (waits, at_a_time * issue, multiplies, reads, cached)
        return float(sum(part**p for part in parts) ** (1 / p))

    def program(at_a_time: float, tiles: float = 1.0) -> float:
        brought = at_a_time * UNITS * work.first_x * m.x / m.cache
        return start + brought + tiles * (work.steps * step(at_a_time) + at_a_time * work.results * m.store)

    side_by_side = min(work.resident, max(1, math.ceil(work.programs / UNITS - 1e-9)))
    waves = work.programs / (UNITS * work.resident)
    if work.stays:
        tiles = max(1.0, waves)
        return m.launch + program(side_by_side, (1 - m.tail) * tiles + m.tail * max(1, math.ceil(waves - 1e-9)))
    full = math.floor(waves + 1e-9)
    rest = work.programs - full * UNITS * work.resident
    stepped = full * program(work.resident) + (program(max(1, math.ceil(rest / UNITS - 1e-9))) if rest > 0.01 else 0)
    smooth = max(waves * program(work.resident), program(side_by_side))
    return m.launch + (1 - m.tail) * smooth + m.tail * stepped


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
