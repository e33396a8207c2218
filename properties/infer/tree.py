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


def schedule_clades(schedule: Schedule, K: int, scaled: bool = False) -> set[int]:
    """Return the clades of the tree in which a schedule adds K inputs.

    Args:
        schedule: any.
        K: inputs, at least 1; places beyond K add zeros and are left out.
        scaled: each tile's sum is scaled before it joins the others, so that it starts by itself.
    Raises:
        ValueError: the schedule does not cover K.
    """
    sums = _Sums()
    sums.schedule(schedule, K, scaled)
    return sums.found


def adds_as(wanted: set[int], schedule: Schedule, K: int, scaled: bool = False) -> bool:
    """Say whether a schedule's tree has these clades; arguments and errors as of schedule_clades."""
    sums = _Sums(wanted)
    try:
        sums.schedule(schedule, K, scaled)
    except _OtherTreeError:
        return False
    return len(sums.found) == len(wanted)


def order_clades(leaves: Sequence[int], order: str) -> set[int]:
    """Return the clades of inputs that fp32_trees.reduce32 joins: sequential, reversed, pairwise or halves."""
    sums = _Sums()
    sums.in_order([1 << leaf for leaf in leaves], order)
    return sums.found


class _OtherTreeError(Exception):
    """A sum is not among those that are looked for."""


class _Sums:
    """The sums that a schedule makes: each is the set of its inputs, as bits; None is a sum of zeros.

    Args:
        wanted: the only sums that are of interest; None: any.
    """

    def __init__(self, wanted: set[int] | None = None) -> None:
        self.found: set[int] = set()
        self.wanted = wanted

    def join(self, *sums: int | None) -> int | None:
        """Return the sum of some sums, or the only one itself."""
        real = [inputs for inputs in sums if inputs is not None]
        if len(real) < 2:
            return real[0] if real else None
        total = 0
        for inputs in real:
            total |= inputs
        if self.wanted is not None and total not in self.wanted:
            raise _OtherTreeError
        self.found.add(total)
        return total

    def in_order(self, sums: Sequence[int | None], order: str) -> int | None:
        """Join sums as fp32_trees.reduce32 does."""
        terms = list(sums)
        if order in ("sequential", "reversed"):
            total: int | None = None
            for term in terms if order == "sequential" else reversed(terms):
                total = self.join(total, term)
            return total
        while len(terms) > 1:
            n = len(terms)
            h = n // 2
            if order == "pairwise":
                pairs, waits = zip(terms[0 : 2 * h : 2], terms[1 : 2 * h : 2], strict=True), terms[2 * h :]
            else:
                pairs, waits = zip(terms[:h], terms[n - h :], strict=True), terms[h : n - h]
            terms = [self.join(*pair) for pair in pairs] + waits
        return terms[0] if terms else None

    def schedule(self, schedule: Schedule, K: int, scaled: bool) -> None:
        """Make the sums of a schedule; arguments and errors as of schedule_clades."""
        if schedule.lanes:
            self._lanes(schedule, K)
            return
        splits = []
        for spans in schedule.spans(K):
            tiles = [_places(schedule, *span, K) for span in spans]
            if schedule.held:
                splits.append(self._held(tiles, schedule))
            elif schedule.deal > 1 or schedule.combine == "chained":
                dealt = [self._chain(tiles[i :: schedule.deal], schedule, scaled) for i in range(schedule.deal)]
                splits.append(self.in_order(dealt, schedule.split_combine))
            else:
                parts = [self._tile(tile, schedule, None) for tile in tiles]
                splits.append(self.in_order([part for part in parts if part], schedule.combine))
        self.in_order([split for split in splits if split], schedule.split_combine)

    def _chain(self, tiles: list[list[int | None]], schedule: Schedule, scaled: bool) -> int | None:
        total: int | None = None
        for places in tiles:
            part = self._tile(places, schedule, None if scaled else total)
            total = self.join(total, part) if scaled else part or total
        return total

    def _held(self, tiles: list[list[int | None]], schedule: Schedule) -> int | None:
        """Join the first levels of each tile, add each such sum to its own accumulator, and join those in the end."""
        first, reach = 0, 1
        while reach < schedule.held:
            reach, first = reach * schedule.levels[first][0], first + 1
        held: list[int | None] = [None] * (len(tiles[0]) // schedule.held)
        for places in tiles:
            sums = self._levels(places, schedule.levels[:first])
            held = [self.join(*pair) for pair in zip(held, sums, strict=True)]
        return self._levels(held, schedule.levels[first:])[0]

    def _levels(self, sums: list[int | None], levels: Iterable[tuple[int, str]]) -> list[int | None]:
        for size, order in levels:
            sums = [self.in_order(sums[i : i + size], order) for i in range(0, len(sums), size)]
        return sums

    def _tile(self, places: list[int | None], schedule: Schedule, acc: int | None) -> int | None:
        how = schedule.how
        if how.core is not None:
            k, n = schedule.step, schedule.products or how.step
            steps = [places[i : i + k] for i in range(0, len(places), k)]
            for step in steps[::-1] if schedule.order == "reversed" else steps:
                for at in range(0, len(step), n):
                    acc = self.join(acc, *step[at : at + n])
            return acc
        if schedule.levels:
            return self._levels(places, schedule.levels)[0]
        if schedule.order in ("sequential", "reversed"):
            return self.in_order([acc, *places] if schedule.order == "sequential" else [*places, acc], schedule.order)
        return self.join(acc, self.in_order(places, schedule.order))

    def _lanes(self, schedule: Schedule, K: int) -> None:
        lanes, chunk = schedule.lanes, schedule.chunk
        of_lane = [self.in_order([1 << k for k in range(K) if k // chunk % lanes == lane], "sequential")
                   for lane in range(lanes)]  # fmt: skip
        rows = [self.in_order(of_lane[i : i + 16], "halves") for i in range(0, lanes, 16)]
        self.join(*rows)


def _places(schedule: Schedule, start: int, stop: int, K: int) -> list[int | None]:
    """Return the input at each place of a tile, None beyond K."""
    n = len(schedule.k_order)
    inputs = (
        range(start, stop) if not n else (start + i // n * n + schedule.k_order[i % n] for i in range(stop - start))
    )
    return [1 << k if k < K else None for k in inputs]
