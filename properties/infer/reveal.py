"""Revealing a summation tree from outputs: one pair of large terms +M, -M among units.

While +M is in a partial sum, every unit added to it is lost; once -M has cancelled it, units survive. So the units lost
are those below the lowest node that holds both: a probe tells which leaves are under the common ancestor of two others.
For a pivot, this ranks all other leaves by where they join the pivot's path to the root; each group that joins at one
place is a subtree of its own, and is treated likewise. Ranks are found by counting a sample of units, then refining.

Source: Xie et al., "FPRev: Revealing the Order of Floating-Point Summation in Numerical Libraries",
arxiv.org/abs/2411.00442. Ours differs in sampling units: a bf16 result counts to 256 only, and K is in the thousands.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch

from .tree import Node, clades

Probe = tuple[int, int, list[int]]  # +M here, -M there, units at these
Answer = TypeVar("Answer")
Asking = Generator[list[Probe], list[int], Answer]  # yields probes, is sent counts
BROKEN = -1
CHECKS = 128  # random probes that a tree must predict


class NotRevealedError(ValueError):
    """The outputs do not fit one tree of sums; the message says what was seen."""


@dataclass(frozen=True)
class Magnitudes:
    """What stands for M and for a unit, and how many units one probe may hold and still be counted."""

    large: float
    unit: float
    most: int


# A sum of bf16 counts to 256; fp16 has no room for more: 16 units of 2^-14 would show beside 2^15 in 25 bits.
MAGNITUDES = {
    torch.bfloat16: Magnitudes(2.0**60, 1.0, 128),
    torch.float16: Magnitudes(2.0**15, 2.0**-14, 15),
}


class Counter:
    """Asks a kernel how many units survive.

    Args:
        dots: x [P, K] to stored values [P, N]; weights are 1.
        K: inputs.
        dtype: of x.
        gaps: inputs of which each row must leave one at zero; () for none.
    """

    def __init__(
        self,
        dots: Callable[[torch.Tensor], torch.Tensor],
        K: int,
        dtype: torch.dtype,
        gaps: Sequence[int] = (),
    ) -> None:
        self.dots, self.K, self.dtype, self.size, self.gaps = dots, K, dtype, MAGNITUDES[dtype], gaps
        self.asked = 0

    def __call__(self, probes: Sequence[Probe]) -> list[int]:
        """Return how many units of each probe survive.

        Raises:
            NotRevealedError: an answer is no count, whichever of the pair is the negative one.
        """
        if not self.gaps:
            return self._whole(probes)
        parts = [part for probe in probes for part in self._with_gaps(probe)]
        counts = iter(self._whole(parts))
        return [sum(next(counts) for _ in self._with_gaps(probe)) for probe in probes]

    def _with_gaps(self, probe: Probe) -> list[Probe]:
        """Split a probe's units into rows that leave a gap: whether a unit survives, no other unit decides."""
        i, j, units = probe
        held = {i, j, *units}
        if any(gap not in held for gap in self.gaps):
            return [probe]
        gap = next(gap for gap in self.gaps if gap not in (i, j))
        return [(i, j, [unit for unit in units if unit != gap]), (i, j, [gap])]

    def _whole(self, probes: Sequence[Probe]) -> list[int]:
        counts = self._ask(probes, 1.0)
        broken = [i for i, count in enumerate(counts) if count == BROKEN]
        if broken:  # rounding toward zero cuts -M when a unit meets it; the other order of signs may not
            for i, count in zip(broken, self._ask([probes[i] for i in broken], -1.0), strict=True):
                counts[i] = count
        if BROKEN in counts:
            i, j, units = probes[counts.index(BROKEN)]
            raise NotRevealedError(f"inputs {i} and {j} as ±M among {len(units)} units gave no whole number of units")
        return counts

    def _ask(self, probes: Sequence[Probe], sign: float) -> list[int]:
        counts: list[int] = []
        for at in range(0, len(probes), 1024):
            some = probes[at : at + 1024]
            x = torch.zeros(len(some), self.K, dtype=self.dtype)
            rows = torch.arange(len(some))
            flat = torch.tensor([r * self.K + u for r, (_, _, units) in enumerate(some) for u in units])
            x.view(-1)[flat.long()] = self.size.unit
            x[rows, torch.tensor([p[0] for p in some])] = self.size.large * sign
            x[rows, torch.tensor([p[1] for p in some])] = -self.size.large * sign
            out = self.dots(x).double() / self.size.unit
            self.asked += len(some)
            same = (out == out[:, :1]).all(1)
            for (_, _, units), count, agreed in zip(some, out[:, 0].tolist(), same.tolist(), strict=True):
                fine = agreed and 0 <= count <= len(units) and count == int(count)  # NaN and inf are no counts
                counts.append(int(count) if fine else BROKEN)
        return counts


def reveal(count: Callable[[Sequence[Probe]], list[int]], leaves: Sequence[int], most: int, seed: int = 0) -> Node:
    """Return the tree in which some inputs are added; all others are zero.

    Args:
        count: tells how many units survive, for many probes at once.
        leaves: at least two inputs.
        most: units a probe may hold.
        seed: of the pivots.
    Raises:
        NotRevealedError: nothing is ever lost, or answers contradict each other.
    """
    root = _run(_tree(list(leaves), most, random.Random(seed), None), count)
    check(root, count, list(leaves), most, seed)
    return root


def check(
    root: Node, count: Callable[[Sequence[Probe]], list[int]], leaves: list[int], most: int, seed: int = 0
) -> None:
    """Ask about random pairs among random units, and compare with what the tree says.

    Raises:
        NotRevealedError: some answers are another tree's: the order depends on a row's place in the call, for example.
    """
    if len(leaves) < 3:
        return
    draw = random.Random(seed + 1)
    probes: list[Probe] = []
    for _ in range(CHECKS):
        i, j, *units = draw.sample(leaves, min(len(leaves), 2 + draw.randint(1, most)))
        probes.append((i, j, units))
    masks = sorted(clades(root), key=int.bit_count)
    wrong = 0
    for (i, j, units), survivors in zip(probes, count(probes), strict=True):
        both = 1 << i | 1 << j
        common = next(mask for mask in masks if mask & both == both)
        wrong += sum(not common >> u & 1 for u in units) != survivors
    if wrong:
        raise NotRevealedError(f"{wrong} of {CHECKS} random probes contradict the tree that the others gave")


def _run(asking: Asking[Node], count: Callable[[Sequence[Probe]], list[int]]) -> Node:
    """Drive a generator of questions that itself runs many at once."""
    try:
        probes = next(asking)
        while True:
            probes = asking.send(count(probes))
    except StopIteration as done:
        return done.value


def _together(askings: list[Asking[Answer]]) -> Asking[list[Answer]]:
    """Run questions side by side: one batch holds what each of them asks next."""
    results: dict[int, Answer] = {}
    waiting: list[tuple[int, Asking[Answer], list[Probe]]] = []

    def step(i: int, asking: Asking[Answer], answers: list[int] | None) -> None:
        try:
            waiting.append((i, asking, next(asking) if answers is None else asking.send(answers)))
        except StopIteration as done:
            results[i] = done.value

    for i, asking in enumerate(askings):
        step(i, asking, None)
    while waiting:
        batch, waiting = waiting, []
        answers = yield [probe for _, _, probes in batch for probe in probes]
        at = 0
        for i, asking, probes in batch:
            step(i, asking, answers[at : at + len(probes)])
            at += len(probes)
    return [results[i] for i in range(len(askings))]


def _tree(leaves: list[int], most: int, draw: random.Random, outside: int | None, stuck: bool = False) -> Asking[Node]:
    """Find the tree of some leaves; `outside` is a leaf that joins above them all.

    The result's root has a child -1 (never a leaf) where the outside leaf is one more term of the very same step.
    `stuck`: one pivot taught nothing, so take a random one.
    """
    if len(leaves) == 1:
        return Node(leaves[0])
    pivot = leaves[draw.randrange(len(leaves)) if stuck else 0]  # chains mostly start at the first
    others = [leaf for leaf in leaves if leaf != pivot]
    groups = yield from _rank(pivot, others, most)
    if len(groups) == 1 and len(others) > 1:
        pairs = list(pairwise(others))
        lost = yield [(a, b, [pivot]) for a, b in pairs]
        if not any(lost):  # every neighbour pair meets where the pivot does: one fused step
            return (yield from _maybe_open(Node(kids=[Node(leaf) for leaf in leaves]), outside))
    subtrees = yield from _together([_tree(group, most, draw, pivot, len(groups) == 1) for group in groups])
    total = Node(pivot)
    for sub in subtrees:
        kids = sub.kids[1:] if sub.kids and sub.kids[0].leaf == -1 and not sub.kids[0].kids else [sub]
        total = Node(kids=[total, *kids])
    return (yield from _maybe_open(total, outside))


def _maybe_open(node: Node, outside: int | None) -> Asking[Node]:
    """Ask whether a subtree's last step is the step in which the outside leaf joins; if so, mark its root."""
    if outside is None:
        return node
    a, b = node.kids[0].any_leaf(), node.kids[1].any_leaf()
    survived = yield [(a, b, [outside])]
    return node if survived[0] else Node(kids=[Node(-1), *node.kids])


def _rank(pivot: int, group: list[int], most: int, whole: bool = True) -> Asking[list[list[int]]]:
    """Split leaves into groups by where they join the pivot's path, the deepest first.

    `whole`: these are all leaves of a tree besides the pivot, so that some pair must lose everything.
    """
    if len(group) == 1:
        return [group]
    sample = group if len(group) <= most else [group[i * len(group) // most] for i in range(most)]
    chosen = set(sample)
    left = yield [(pivot, j, [u for u in sample if u != j]) for j in group]
    by_lost: dict[int, list[int]] = {}
    for j, survivors in zip(group, left, strict=True):
        by_lost.setdefault(len(sample) - survivors, []).append(j)
    if whole and max(by_lost) != len(sample):
        raise NotRevealedError(
            "no pair of ±M loses all units: sums are wider than M needs, or are not made term by term"
        )
    if len(by_lost) > 1:
        parts = yield from _together([_rank(pivot, by_lost[lost], most, False) for lost in sorted(by_lost)])
        return [part for ranked in parts for part in ranked]
    # All lose as much: they join at one place, unless some that were not sampled join above it.
    alone = [j for j in group if j not in chosen]
    above = (yield [(pivot, sample[0], [j]) for j in alone]) if alone else []
    higher = [j for j, survived in zip(alone, above, strict=True) if survived]
    lower = [j for j in group if j not in set(higher)]
    return [lower, *((yield from _rank(pivot, higher, most, False)) if higher else [])]
