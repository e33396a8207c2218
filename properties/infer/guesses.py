"""From a summation tree to the schedules that could mean it: guesses from its levels, kept where their trees agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.bitmodels.tensor_core import INSTRUCTIONS

from .levels import Level, Shape, name_levels, shape_of
from .tree import Node, adds_as, clades

NAMES: dict[str, tuple[str, ...]] = {
    "chain": ("sequential", "reversed"),
    "pairwise": ("pairwise",),
    "halves": ("halves",),
}
WIDE = "wgmma.k16.sm90"
TILES = (8, 16, 32, 64, 128, 256, 512)
LANES = [(lanes, chunk) for lanes in (32, 16) for chunk in (8, 16, 4, 32, 2, 1)]


def instructions_for(step: int) -> list[str]:
    """Return the instructions that add so many products at once: matrix units, or fp32 arithmetic for 1."""
    if step == 1:
        return ["mul_add", "fma", "mul_add.rz", "fma.rz"]
    return [name for name, how in INSTRUCTIONS.items() if how.core is not None and how.step == step]


def base_of(step: int) -> tuple[str, int]:
    """Return an instruction that adds so many products at once, and how many of its inputs those are if not all."""
    names = instructions_for(step)
    return (names[0], 0) if names else (WIDE, step)


def schedules_for(root: Node, K: int, tile_divides: int | None = None) -> list[Schedule]:
    """Return the schedules, by any instruction of the right step, whose tree is this one; the plainest first.

    Args:
        root: the tree of all of 0..K-1.
        tile_divides: what a tile must divide, because its sum is scaled; None: nothing.
    """
    wanted = clades(root)
    shapes = [shape_of(root), shape_of(root, downward=True)]
    step = 1 if shapes[0] is None else shapes[0].step
    name, products = base_of(step)
    found: list[Schedule] = []
    raw = shape_of(root, named=False)
    every = [(shape, None) for shape in shapes] + [(None, raw)]
    for shape, plain in every if name else []:
        for schedule in _guesses(shape, plain, K, Schedule(name, products=products)):
            unit = schedule.held or schedule.chunk or schedule.tile
            last = tile_divides == K  # one scale a row may enter at the very end
            if tile_divides is not None and not last and (unit is None or tile_divides % unit):
                continue
            if schedule not in found and adds_as(wanted, schedule, K):
                found.append(schedule)
    if name and shapes[0] is not None and not _is_one_chain(shapes[0]):
        for schedule in _dealt(shapes[0], K, Schedule(name, products=products)):
            scaled = tile_divides is not None
            whole = tile_divides is None or not tile_divides % (schedule.tile or K)
            if whole and adds_as(wanted, schedule, K, scaled):
                found.append(schedule)
    # One tile of all K says nothing about another K, and a long list of places little about anything.
    texts = {s: str(s) for s in found}
    return sorted(found, key=lambda s: (s.tile == K, len(texts[s]) > 100, bool(s.levels), len(texts[s])))


def _is_one_chain(shape: Shape) -> bool:
    """Say whether a sum is one chain of additions, whatever is fused into it: then nothing was dealt out."""
    kinds = [level.kind for level in shape.levels if level.kind != "fused"]
    return kinds == ["chain"]


def _guesses(shape: Shape | None, raw: Shape | None, K: int, base: Schedule) -> Iterator[Schedule]:
    for fields in _held(raw, K) if raw is not None else ():
        try:
            yield replace(base, **fields)  # type: ignore[arg-type]
        except ValueError:
            continue
    if shape is None:
        return
    for fields in _fields(shape, K):
        try:
            yield replace(base, **fields)  # type: ignore[arg-type]
        except ValueError:
            continue
    if shape.step == 1:
        for lanes, chunk in LANES:
            yield replace(base, order="lanes", lanes=lanes, chunk=chunk)


def _fields(shape: Shape, K: int) -> Iterator[dict[str, object]]:
    """Yield fields of Schedules that might have this shape; whoever asks compares their trees."""
    levels, k = list(shape.levels), shape.step
    if k > 1:
        levels = levels[1:]
        yield from _matrix(shape, levels, K)
        return
    if len(levels) == 1:
        for order in NAMES[levels[0].kind]:
            yield {"order": order}
            yield {"order": order, "tile": K, "k_order": _period(shape.places, K)}
    yield from _tiled(shape, levels, K)
    if levels[-1].kind in ("pairwise", "halves"):  # the last of many joins may be one of two tiles
        yield from _tiled(shape, [*levels[:-1], Level(levels[-1].size // 2, levels[-1].kind), Level(2, "chain")], K)


def _dealt(shape: Shape, K: int, base: Schedule) -> Iterator[Schedule]:
    """Yield schedules whose tiles go to several accumulators in turn."""
    for tile in (t for t in TILES if t % shape.step == 0 and 2 * t <= K):
        k_order = _shortest(_period(shape.places, tile, shape.step))
        for deal in (d for d in (2, 4, 8) if d * tile <= K):
            for join in ("sequential", "pairwise", "halves") if deal > 2 else ("sequential",):
                try:
                    yield replace(base, tile=tile, deal=deal, split_combine=join, k_order=k_order)
                except ValueError:
                    continue


def _shortest(k_order: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shortest permutation of which this one is a repetition."""
    n = len(k_order)
    for p in (p for p in range(1, n) if n % p == 0):
        if all(k_order[i] == i // p * p + k_order[i % p] for i in range(n)):
            return k_order[:p]
    return k_order


def _held(raw: Shape, K: int) -> Iterator[dict[str, object]]:
    """Yield schedules whose innermost sums are held over tiles: one chain of tiles is a level among others, or none."""
    if raw.step > 1:
        return
    for at in range(len(raw.levels) + 1):  # at the end: one tile, which says nothing about several
        tiles = raw.levels[at].size if at < len(raw.levels) else 1
        tile = K // tiles
        rest = [*raw.levels[:at], *raw.levels[at + 1 :]]
        places = tuple(leaf for leaf in raw.places if leaf < tile)
        if not rest or sorted(places) != list(range(tile)):
            continue
        for outer in [at] if tiles > 1 else range(len(rest)):
            shape = name_levels(Shape(tuple(rest), places, 1), outer)
            order = () if shape.places == tuple(range(tile)) else shape.places
            yield {"tile": tile, "order": "tree", "held": _product(rest[:outer]), "k_order": order,
                   "levels": tuple((x.size, NAMES[x.kind][0]) for x in shape.levels)}  # fmt: skip


def _tiled(shape: Shape, levels: list[Level], K: int) -> Iterator[dict[str, object]]:
    for outer in range(1, len(levels)):  # levels inside a tile, then levels of tiles
        inside, outside = levels[:outer], levels[outer:]
        tile = _product(inside)
        for order in NAMES[inside[0].kind] if len(inside) == 1 else ("tree",):
            of_tile: dict[str, object] = {"tile": tile, "order": order, "k_order": _period(shape.places, tile)}
            if order == "tree":
                of_tile["levels"] = tuple((x.size, NAMES[x.kind][0]) for x in inside)
            yield from _of_tiles(of_tile, outside)
    if len(levels) > 1:
        yield {"tile": K, "order": "tree", "levels": tuple((x.size, NAMES[x.kind][0]) for x in levels),
               "combine": "sequential", "k_order": _period(shape.places, K)}  # fmt: skip


def _of_tiles(of_tile: dict[str, object], outside: list[Level]) -> Iterator[dict[str, object]]:
    """Yield how tiles may be joined: in one level, or in two where splits are joined after their tiles."""
    for way in ("ascending", "descending"):
        if len(outside) == 1:
            yield {**of_tile, "combine": NAMES[outside[0].kind][0], "tile_order": way}
            if of_tile["order"] in ("sequential", "reversed"):
                alone = {**of_tile, "tile": None} if not of_tile.get("k_order") else dict(of_tile)
                yield {**alone, "split_k": outside[0].size, "split_combine": NAMES[outside[0].kind][0]}
        if len(outside) == 2:
            yield {**of_tile, "combine": NAMES[outside[0].kind][0], "tile_order": way, "split_k": outside[1].size,
                   "split_combine": NAMES[outside[1].kind][0]}  # fmt: skip


def _matrix(shape: Shape, levels: list[Level], K: int) -> Iterator[dict[str, object]]:
    for period in [0, *(p for p in (16, 32, 64, 128, 256, 512) if p <= K and p >= shape.step)]:
        k_order = _period(shape.places, period, shape.step) if period else ()
        if period and (not k_order or k_order == tuple(range(period))):
            continue
        of_tile: dict[str, object] = {"k_order": k_order, "tile": period or None}
        if not levels or (len(levels) == 1 and levels[0].kind == "chain"):
            for order in ("sequential", "reversed"):
                yield {**of_tile, "order": order}
            if not period:
                for tile in (t for t in (32, 64, 128, 256) if K % t == 0):
                    yield {"tile": tile, "tile_order": "descending"}
        if len(levels) == 1:
            yield {"k_order": k_order, "tile": max(period, 16), "combine": NAMES[levels[0].kind][0]}
        if len(levels) == 2:
            tile = shape.step * levels[0].size
            for way in ("ascending", "descending"):
                yield {"tile": tile, "combine": NAMES[levels[1].kind][0], "tile_order": way, "k_order": k_order}
            yield {"split_k": levels[1].size, "split_combine": NAMES[levels[1].kind][0], **of_tile}
        if len(levels) == 3:
            tile = shape.step * levels[0].size
            yield {"tile": tile, "combine": NAMES[levels[1].kind][0], "split_k": levels[2].size,
                   "split_combine": NAMES[levels[2].kind][0], "k_order": k_order}  # fmt: skip


def _period(places: tuple[int, ...], period: int, step: int = 1) -> tuple[int, ...]:
    """Return the permutation with which each run of `period` places takes its inputs, () for none or for no one."""
    first = places[:period]
    if sorted(first) != list(range(period)):
        return ()
    order = [leaf for at in range(0, period, step) for leaf in sorted(first[at : at + step])]
    return () if order == list(range(period)) else tuple(order)


def _product(levels: list[Level]) -> int:
    result = 1
    for level in levels:
        result *= level.size
    return result
