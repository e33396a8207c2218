"""How long a launch takes by a model of the machine, and which work rows of many experts are.

a step     64 columns of K: the slowest of waiting for memory, issuing, multiplying and reading, softened
a program  its start, x where it lies in shared memory from the start, its steps
a launch   programs over all units, as many at a time on each as registers and shared memory allow
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

STEP = 64  # columns


@dataclass(frozen=True)
class Machine:
    """What the model knows of a GPU; microseconds, bytes a microsecond, products a microsecond. These are an H200's.

    Args:
        units: multiprocessors, or whatever else runs a program.
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

    units: int = 132
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


def microseconds(work: Work, machine: Machine) -> float:
    """Return how long a launch takes.

    Args:
        work: what it has to do. machine: on which GPU.
    """
    m, p = machine, machine.soft
    issue = getattr(m, f"issue_{work.kind}") * (1 + m.issue_scales * (work.scales - 1)) * work.warps / 4
    start = getattr(m, f"start_{work.kind}")

    def step(at_a_time: float) -> float:
        waits = m.latency / work.ahead
        reads = at_a_time * m.units * work.words / m.memory
        cached = at_a_time * m.units * (work.words + work.x) / m.cache
        multiplies = at_a_time * m.units * work.products / m.product
        parts = (waits, at_a_time * issue, multiplies, reads, cached)
        return float(sum(part**p for part in parts) ** (1 / p))

    def program(at_a_time: float, tiles: float = 1.0) -> float:
        brought = at_a_time * m.units * work.first_x * m.x / m.cache
        return start + brought + tiles * (work.steps * step(at_a_time) + at_a_time * work.results * m.store)

    side_by_side = min(work.resident, max(1, math.ceil(work.programs / m.units - 1e-9)))
    waves = work.programs / (m.units * work.resident)
    if work.stays:
        tiles = max(1.0, waves)
        return m.launch + program(side_by_side, (1 - m.tail) * tiles + m.tail * max(1, math.ceil(waves - 1e-9)))
    full = math.floor(waves + 1e-9)
    rest = work.programs - full * m.units * work.resident
    stepped = full * program(work.resident) + (program(max(1, math.ceil(rest / m.units - 1e-9))) if rest > 0.01 else 0)
    smooth = max(waves * program(work.resident), program(side_by_side))
    return m.launch + (1 - m.tail) * smooth + m.tail * stepped
