"""Summation trees: which partial sums were added to which, as sets of leaves.

A tree is its clades: the set of leaves below each inner node. A node with more than two children is one fused step of
a matrix unit. Two trees are equal where their clades are: addition commutes, so the order of children says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from moeracle.ref.bitmodels.schedule import Schedule


@dataclass(eq=False)
class Node:
    """A leaf (an input's number), or the sum of its children."""

    leaf: int = -1
    kids: list[Node] = field(default_factory=list)

    def leaves(self) -> list[int]:
        """Return the inputs below, in no order that means anything."""
        found, todo = [], [self]
        while todo:
            node = todo.pop()
            if node.kids:
                todo += node.kids
            else:
                found.append(node.leaf)
        return found

    def any_leaf(self) -> int:
        """Return one input below."""
        node = self
        while node.kids:
            node = node.kids[0]
        return node.leaf

    def inner(self) -> list[Node]:
        """Return all inner nodes, children before parents."""
        found, todo = [], [self]
        while todo:
            node = todo.pop()
            if node.kids:
                found.append(node)
                todo += node.kids
        return found[::-1]


def join(*nodes: Node) -> Node:
    """Return the sum of some nodes, or the only one itself."""
    return nodes[0] if len(nodes) == 1 else Node(kids=list(nodes))


def clades(root: Node) -> set[int]:
    """Return the leaves below each inner node as bits of an integer."""
    masks: dict[int, int] = {}
    found = set()
    for node in root.inner():
        mask = 0
        for kid in node.kids:
            mask |= masks[id(kid)] if kid.kids else 1 << kid.leaf
        masks[id(node)] = mask
        found.add(mask)
    return found


def depth(root: Node) -> int:
    """Return the longest chain of additions."""
    depths: dict[int, int] = {}
    for node in root.inner():
        depths[id(node)] = 1 + max(depths.get(id(kid), 0) for kid in node.kids)
    return depths.get(id(root), 0)


def in_order(nodes: Sequence[Node], order: str) -> Node:
    """Join nodes as fp32_trees.reduce32 does: sequential, reversed, pairwise or halves."""
    if order in ("sequential", "reversed"):
        steps = list(nodes) if order == "sequential" else list(nodes)[::-1]
        total = steps[0]
        for node in steps[1:]:
            total = join(total, node)
        return total
    terms = list(nodes)
    while len(terms) > 1:
        n = len(terms)
        h = n // 2
        if order == "pairwise":
            added, waits = [join(*pair) for pair in zip(terms[0 : 2 * h : 2], terms[1 : 2 * h : 2], strict=True)], []
            waits = terms[2 * h :]
        else:
            added = [join(*pair) for pair in zip(terms[:h], terms[n - h :], strict=True)]
            waits = terms[h : n - h]
        terms = added + waits
    return terms[0]


def schedule_tree(schedule: Schedule, K: int, scaled: bool = False) -> Node:
    """Return the tree in which a schedule adds K inputs.

    Args:
        schedule: any.
        K: inputs, at least 1; places beyond K add zeros and are left out.
        scaled: each tile's sum is scaled before it joins the others, so that it starts by itself.
    Raises:
        ValueError: the schedule does not cover K.
    """
    if schedule.lanes:
        return _lanes_tree(schedule, K)
    splits = []
    for spans in schedule.spans(K):
        if schedule.held:
            total = _held_tree([_places(schedule, *span, K) for span in spans], schedule)
            splits += [total] if total is not None else []
            continue
        if schedule.deal > 1:
            dealt = [_dealt(spans[i :: schedule.deal], schedule, K, scaled) for i in range(schedule.deal)]
            splits.append(_joined(dealt, schedule.split_combine))
            continue
        total = None
        parts = []
        chained = schedule.combine == "chained"
        for start, stop in spans:
            places = _places(schedule, start, stop, K)
            part = _tile_tree(places, schedule, total if chained and not scaled else None)
            if part is None:
                continue
            if chained:
                total = join(total, part) if scaled and total is not None else part
            else:
                parts.append(part)
        if parts:
            total = in_order(parts, schedule.combine)
        if total is not None:
            splits.append(total)
    return in_order(splits, schedule.split_combine)


def _dealt(spans: list[tuple[int, int]], schedule: Schedule, K: int, scaled: bool) -> Node | None:
    total: Node | None = None
    for start, stop in spans:
        part = _tile_tree(_places(schedule, start, stop, K), schedule, None if scaled else total)
        total = join(total, part) if scaled and total is not None and part is not None else part or total
    return total


def _joined(nodes: list[Node | None], order: str) -> Node:
    total = _sparse(nodes, order)
    assert total is not None
    return total


def _held_tree(tiles: list[list[int]], schedule: Schedule) -> Node | None:
    """Join the first levels of each tile, add each such sum to its own accumulator, and join those in the end."""
    first, reach = 0, 1
    while reach < schedule.held:
        reach, first = reach * schedule.levels[first][0], first + 1
    held: list[Node | None] = [None] * (len(tiles[0]) // schedule.held)
    for places in tiles:
        nodes = _levels([Node(k) if k >= 0 else None for k in places], schedule.levels[:first])
        held = [join(*(n for n in pair if n is not None)) if any(pair) else None
                for pair in zip(held, nodes, strict=True)]  # fmt: skip
    return _levels(held, schedule.levels[first:])[0]


def _levels(nodes: list[Node | None], levels: Iterable[tuple[int, str]]) -> list[Node | None]:
    for size, order in levels:
        nodes = [_sparse(nodes[i : i + size], order) for i in range(0, len(nodes), size)]
    return nodes


def _places(schedule: Schedule, start: int, stop: int, K: int) -> list[int]:
    """Return the input at each place of a tile, -1 beyond K."""
    n = len(schedule.k_order)
    inputs = (
        range(start, stop) if not n else (start + i // n * n + schedule.k_order[i % n] for i in range(stop - start))
    )
    return [k if k < K else -1 for k in inputs]


def _tile_tree(places: list[int], schedule: Schedule, acc: Node | None) -> Node | None:
    how = schedule.how
    if how.core is not None:
        k, n = schedule.step, schedule.products or how.step
        steps = [places[i : i + k] for i in range(0, len(places), k)]
        steps = steps[::-1] if schedule.order == "reversed" else steps
        for step in steps:
            for at in range(0, len(step), n):
                leaves = [Node(k) for k in step[at : at + n] if k >= 0]
                if leaves:
                    acc = join(*([] if acc is None else [acc]), *leaves)
        return acc
    if schedule.levels:
        return _levels([Node(k) if k >= 0 else None for k in places], schedule.levels)[0]
    leaves = [Node(k) for k in places if k >= 0]
    if not leaves:
        return acc
    if schedule.order in ("sequential", "reversed"):
        leaves = leaves if schedule.order == "sequential" else leaves[::-1]
        for leaf in leaves:
            acc = leaf if acc is None else join(acc, leaf)
        return acc
    total = _sparse([Node(k) if k >= 0 else None for k in places], schedule.order)
    return total if acc is None or total is None else join(acc, total)


def _sparse(nodes: list[Node | None], order: str) -> Node | None:
    """Join nodes in order, where None is a sum of zeros."""
    terms: list[Node | None] = list(nodes)
    if order in ("sequential", "reversed"):
        real = [t for t in terms if t is not None]
        return in_order(real, order) if real else None
    while len(terms) > 1:
        n = len(terms)
        h = n // 2
        if order == "pairwise":
            pairs, waits = list(zip(terms[0 : 2 * h : 2], terms[1 : 2 * h : 2], strict=True)), terms[2 * h :]
        else:
            pairs, waits = list(zip(terms[:h], terms[n - h :], strict=True)), terms[h : n - h]
        terms = [join(*both) if (both := [x for x in pair if x is not None]) else None for pair in pairs] + waits
    return terms[0]


def _lanes_tree(schedule: Schedule, K: int) -> Node:
    lanes, chunk = schedule.lanes, schedule.chunk
    of_lane: list[Node | None] = []
    for lane in range(lanes):
        inputs = [k for k in range(K) if k // chunk % lanes == lane]
        of_lane.append(in_order([Node(k) for k in inputs], "sequential") if inputs else None)
    rows = [_sparse(of_lane[i : i + 16], "halves") for i in range(0, lanes, 16)]
    return join(*(row for row in rows[::-1] if row is not None))


def induced(masks: Iterable[int], leaves: Iterable[int]) -> set[int]:
    """Return the clades of a tree that is cut down to some leaves."""
    kept = sum(1 << leaf for leaf in leaves)
    return {mask & kept for mask in masks if (mask & kept).bit_count() > 1}
