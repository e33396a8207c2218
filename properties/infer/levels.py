"""The regular levels of a summation tree.

A tree is regular if its leaves split into equal items, those into equal larger items, and so on, each level joined in
one way. Each level is a chain (one after another) or a join of two; joins in a row are pairwise or halves.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .tree import Node


class Level(NamedTuple):
    """How `size` neighbouring items become one: "fused", "chain", "pairwise" or "halves"."""

    size: int
    kind: str


@dataclass(frozen=True)
class Shape:
    """A regular tree: its levels from the inside out, and which leaf stands at each place.

    step: products a fused step adds, 1 for sums of two.
    """

    levels: tuple[Level, ...]
    places: tuple[int, ...]
    step: int

    def words(self) -> str:
        """Say the levels in words, from the inside out."""
        said = {"fused": "at once", "chain": "one after another", "pairwise": "in pairs", "halves": "by halves"}
        parts = [f"{level.size} {said[level.kind]}" for level in self.levels]
        return ", then ".join(parts)


def shape_of(root: Node, downward: bool = False, named: bool = True) -> Shape | None:
    """Return the levels of a regular tree, or None for one that has none.

    Args:
        named: joins of two in a row are one level, "pairwise" or "halves"; else each is a chain of two.
        downward: of a chain's first two items, which commute, take the one with the larger inputs first.
    """
    shape = _unnamed(root, downward)
    return name_levels(shape) if named and shape is not None else shape


@functools.lru_cache(maxsize=4)
def _unnamed(root: Node, downward: bool) -> Shape | None:
    items, step = _items(root)
    if items is None:
        return None
    K = len(root.leaves())
    sizes = Counter(len(leaves) for leaves in items.values())
    covers = sorted(size for size, count in sizes.items() if count * size == K)
    if not covers or covers[-1] != K or covers[0] != step:
        return None
    by_size = {size: sorted(sorted(i) for i in items.values() if len(i) == size) for size in covers}
    order = {tuple(item): list(item) for item in by_size[covers[0]]}
    levels = [Level(step, "fused")] if step > 1 else []
    for small, large in pairwise(covers):
        kinds, larger = set(), {}
        of_leaf = {leaf: tuple(item) for item in by_size[small] for leaf in item}
        between = [set(leaves) for leaves in items.values() if small < len(leaves) < large]
        for item in by_size[large]:
            parts = sorted({of_leaf[leaf] for leaf in item})
            if sum(len(part) for part in parts) != large:
                return None
            whole = set(item)
            chain = _chain(parts, [b for b in between if b < whole], downward)
            if chain is None:
                return None
            kinds.add(len(parts))
            larger[tuple(item)] = [leaf for part in chain for leaf in order[part]]
        if len(kinds) > 1:
            return None
        order = larger
        levels.append(Level(kinds.pop(), "chain"))
    places = tuple(next(iter(order.values())))
    return Shape(tuple(levels), places, step)


def _items(root: Node) -> tuple[dict[int, list[int]] | None, int]:
    """Return every clade's leaves, a fused step's own leaves among them, and how many those are."""
    inner = root.inner()
    own = [[kid.leaf for kid in node.kids if not kid.kids] for node in inner]
    step = max(len(leaves) for leaves in own) if any(len(node.kids) > 2 for node in inner) else 1
    leaves_of = {id(node): node.leaves() for node in inner}
    items = {id(node): leaves for node in inner if len(leaves := leaves_of[id(node)]) > 0}
    if step == 1:
        return {**{-1 - leaf: [leaf] for leaf in root.leaves()}, **items}, 1
    for at, (node, leaves) in enumerate(zip(inner, own, strict=True)):
        if (leaves and len(leaves) != step) or (len(node.kids) - len(leaves) > 1 and leaves):
            return None, step
        if leaves and len(leaves) < len(node.kids):
            items[-1 - at] = leaves
    return items, step


def _chain(parts: list[tuple[int, ...]], between: list[set[int]], downward: bool) -> list[tuple[int, ...]] | None:
    """Return items in the order in which a chain adds them, or None if it is no chain."""
    if len(parts) == 2:
        return parts if not between else None
    if len(between) != len(parts) - 2:
        return None
    depth = {part: sum(part[0] in b for b in between) for part in parts}
    ordered = sorted(parts, key=lambda part: (-depth[part], part))
    if [depth[p] for p in ordered] != [len(between)] * 2 + list(range(len(between) - 1, -1, -1)):
        return None
    if downward:
        ordered[:2] = ordered[1::-1]
    return ordered


def name_levels(shape: Shape, cut: int = -1) -> Shape:
    """Tell runs of joins apart: pairwise, halves; no run goes on over level `cut`."""
    levels: list[Level] = []
    twos = [level.size == 2 and level.kind == "chain" for level in shape.levels]
    at, inner = 0, 1
    while at < len(shape.levels):
        run = 0
        while at + run < len(twos) and twos[at + run] and not (run and at + run == cut):
            run += 1
        if run < 2:
            levels.append(shape.levels[at])
            inner *= shape.levels[at].size
            at += 1
            continue
        n = 1 << run
        first = [shape.places[i * inner] for i in range(n)]
        rank = {leaf: i for i, leaf in enumerate(sorted(first))}
        halves = all(rank[leaf] == _mirrored(i, run) for i, leaf in enumerate(first))
        levels.append(Level(n, "halves" if halves else "pairwise"))
        at, inner = at + run, inner * n
    return Shape(tuple(levels), _natural(shape.places, levels), shape.step)


def _mirrored(i: int, bits: int) -> int:
    return int(f"{i:0{bits}b}"[::-1], 2)


def _natural(places: tuple[int, ...], levels: list[Level]) -> tuple[int, ...]:
    """Put the items of a "halves" level in the order of their least leaf, as reduce32 takes them."""
    inner, result = 1, list(places)
    for level in levels:
        whole = inner * level.size
        if level.kind == "halves":
            for start in range(0, len(result), whole):
                items = [result[start + i * inner : start + (i + 1) * inner] for i in range(level.size)]
                result[start : start + whole] = [leaf for item in sorted(items, key=min) for leaf in item]
        inner = whole
    return tuple(result)
