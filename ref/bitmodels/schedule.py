"""Schedules: the instruction, the order of K and how partial sums are joined, as a value and as text.

Text: the instruction, then parts joined by "/", in any order; a part that is not given has its default.

    wgmma.k16.sm90/t64                  tiles of 64 inputs
    fma/t256/bits128.1.2.4/tree2-sequential.8-halves
    mul_add/t24/halves/combine=pairwise/s4/join=halves/descending

    tN tile    nN tiles    sN split_k    dN deal    pN products    heldN held    an order's name    lanes32x8
    tree...    combine=...    join=... split_combine    descending tile_order    fused scale_fused
    zerofused zero_fused    scalelast scale_last    biasfused bias_fused    order0.1.4.5... k_order
    bits4.1.2 k_order, as a linear map: bit b of a place adds the b-th number to its input
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, fields
from typing import Any

from ..errors import require, unknown
from .fp32_trees import ORDERS
from .tensor_core import INSTRUCTIONS, Instruction

CHOICES: dict[str, tuple[str, ...]] = {
    "order": (*ORDERS, "lanes", "tree"),
    "tile_order": ("ascending", "descending"),
    "combine": ("chained", *ORDERS),
    "split_combine": ORDERS,
}
NUMBERS = {"t": "tile", "n": "tiles", "s": "split_k", "d": "deal", "p": "products", "held": "held"}
FLAGS = {
    "fused": "scale_fused", "zerofused": "zero_fused", "scalelast": "scale_last", "biasfused": "bias_fused",
}  # fmt: skip
MOST = 1 << 20  # of what a text may count: a typing error must not ask for all memory
PARTS = (
    *ORDERS, "lanesLxC", "treeN-ORDER.N-ORDER", "tN", "nN", "sN", "dN", "pN", "heldN",
    "descending", *FLAGS, "combine=ORDER", "join=ORDER", "orderK.K", "bitsK.K",
)  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """The order in which one output's K products are added. K is cut into splits, splits into tiles; tails are zeros.

    Args:
        instruction: one of INSTRUCTIONS.
        tile: inputs a tile, or None for all of a split. With a scale, a tile's partial sum is what is scaled.
        tiles: tiles a split, or None for as many as K needs.
        order: inside a tile: one of ORDERS, or "lanes" or "tree" (fp32 only); a matrix unit takes its instructions
            "sequential" or "reversed".
        tile_order: "ascending" or "descending".
        combine: "chained": a tile continues from the accumulator; else tiles start at +0 and are added in this order.
        split_k: how many parts of K are summed by themselves.
        split_combine: the order in which the splits' sums (or the dealt ones') are added, fp32 nearest.
        deal: tiles are dealt in turn to this many accumulators, each chained; split_combine joins them at the end.
        products: how many of a matrix instruction's inputs belong to one sum, the others being zeros; 0: all of them.
        k_order: a permutation of range(n), n dividing the tile: place i takes input k_order[i] of each n inputs.
        lanes, chunk: of order "lanes": lanes a wave (16 or 32) and inputs that a lane takes at once.
        levels: of order "tree": (n, one of ORDERS) from the inside out: each n neighbouring sums become one, as a
            thread's registers, a warp's lanes and a block's warps do. A tile's sum then starts at +0, and tiles are
            added to the accumulator; combine is "sequential".
        held: of order "tree", 0 or the inputs of its first levels, 1 for none of them: sums of so many inputs are held
            over the tiles, each in its own accumulator from +0, and the other levels join them once, at the end.
        scale_fused: the scale enters by fused multiply-add.
        zero_fused: so does a hoisted zero point, fma(-zero, sum of a, sum of products); else product and difference
            are rounded each.
        scale_last: the one scale of a row multiplies the finished sum.
        bias_fused: then the bias is added in the same operation.
    Raises:
        ValueError: a field holds none of its legal values, or fields contradict each other.
    """

    instruction: str
    tile: int | None = None
    tiles: int | None = None
    order: str = "sequential"
    tile_order: str = "ascending"
    combine: str = "chained"
    split_k: int = 1
    split_combine: str = "sequential"
    k_order: tuple[int, ...] = ()
    lanes: int = 0
    chunk: int = 0
    levels: tuple[tuple[int, str], ...] = ()
    scale_fused: bool = False
    zero_fused: bool = False
    deal: int = 1
    products: int = 0
    held: int = 0
    scale_last: bool = False
    bias_fused: bool = False

    def __post_init__(self) -> None:
        if self.instruction not in INSTRUCTIONS:
            raise unknown("instruction", self.instruction, INSTRUCTIONS)
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise unknown(field, getattr(self, field), allowed)
        for field in ("tile", "tiles", "split_k", "deal"):
            value = getattr(self, field)
            require(value is None or 1 <= value <= MOST, f"{field}: got {value}, must be 1 to {MOST}")
        most = 0 if self.how.core is None else self.how.step
        require(0 <= self.products <= most, f"products: got {self.products}, must be 0 to {most} ({self.instruction})")
        k, n = self.step, len(self.k_order)
        require(not (self.tile or k) % k, f"tile: got {self.tile}, must be a multiple of {self.instruction}'s K={k}")
        permuted = sorted(self.k_order) == list(range(n))
        require(permuted, f"k_order: got {self.k_order}, must be a permutation of range({n})")
        divides = n == 0 or (self.tile is not None and self.tile % n == 0)
        require(divides, f"k_order: got {n} places, must divide tile={self.tile}")
        if self.how.core is not None:
            legal = ("sequential", "reversed")
            require(self.order in legal, f"order: got {self.order!r}, must be {' or '.join(legal)} for a matrix unit")
        apart = self.deal == 1 or (self.split_k == 1 and self.combine == "chained")
        require(apart, f"deal: got {self.deal}, must be 1 with splits, or with tiles that are not chained")
        require(self.scale_last or not self.bias_fused, "bias_fused: goes with scale_last")
        self._check_lanes()
        self._check_levels()

    def _check_lanes(self) -> None:
        by_lanes = self.order == "lanes"
        require(
            by_lanes == (self.lanes > 0) == (self.chunk > 0), "lanes, chunk: go with order 'lanes', and it with them"
        )
        if by_lanes:
            alone = (self.tile, self.combine, self.tile_order, self.split_k) == (None, "chained", "ascending", 1)
            alone = alone and self.deal == 1
            require(alone, "order: got 'lanes', must stand alone: lanes and chunk say all, without tiles or splits")
            require(self.lanes in (16, 32), f"lanes: got {self.lanes}, must be 16 or 32")
            require(self.chunk <= MOST, f"chunk: got {self.chunk}, must be 1 to {MOST}")

    def _check_levels(self) -> None:
        chain = bool(self.levels) and self.levels[0][1] == "sequential" and not self.held
        must = "must be 'tree' from a sequential level on, without held sums"
        require(chain or not self.how.narrow, f"order: got {self.order!r} with {self.instruction}, {must}")
        require((self.order == "tree") == bool(self.levels), "levels: go with order 'tree', and it with them")
        for size, order in self.levels:
            require(size >= 1, f"levels: got {size}, must be 1 or more")
            if order not in ORDERS:
                raise unknown("levels", order, ORDERS)
        if self.levels:
            reach = math.prod(size for size, _ in self.levels)
            require(reach == self.tile, f"levels: join {reach} inputs, must join tile={self.tile}")
            need = "must be an order of tiles for order 'tree'"
            chained = self.combine == "chained" and not self.held and not self.scale_fused
            require(not chained, f"combine: got 'chained', {need} (unless the scale is fused)")
        reaches = [math.prod(size for size, _ in self.levels[:n]) for n in range(len(self.levels))]
        of_levels = self.held == 0 or (self.held in reaches and self.combine == "chained" and self.deal == 1)
        require(of_levels, f"held: got {self.held}, must be the inputs of a tree's first levels, its tiles chained")

    @property
    def step(self) -> int:
        """Inputs that one instruction adds to one sum."""
        return self.products or self.how.k

    @property
    def how(self) -> Instruction:
        """What the instruction does."""
        return INSTRUCTIONS[self.instruction]

    def spans(self, K: int) -> list[list[tuple[int, int]]]:
        """Return each split's tiles (start, stop), in the order they are added; the last may end beyond K, in zeros.

        Raises:
            ValueError: the schedule does not cover K.
        """
        tile = self.tile or max(-(-K // self.split_k), 1)
        tile += -tile % self.step
        tiles = self.tiles or max(-(-K // (tile * self.split_k)), 1)
        covered = tile * tiles * self.split_k
        require(
            covered >= K,
            f"schedule: covers {covered} inputs (split_k={self.split_k}, tiles={tiles}, tile={tile}), must cover K={K}",
        )
        starts = [[(s * tiles + t) * tile for t in range(min(tiles, -(-K // tile)))] for s in range(self.split_k)]
        kept = [[(k, k + tile) for k in split if k < K] for split in starts]
        return [split[::-1] if self.tile_order == "descending" else split for split in kept]

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read a schedule's text; `Schedule.parse(str(schedule)) == schedule`.

        Raises:
            ValueError: one line naming the part that is wrong, and the nearest legal one.
        """
        instruction, *parts = str(text).replace(" ", "").split("/")
        found: dict[str, Any] = {"instruction": instruction}
        if instruction not in INSTRUCTIONS:
            raise unknown("instruction", instruction, INSTRUCTIONS)
        for part in parts:
            for field, value in _read(part).items():
                require(field not in found, f"schedule: got {field} twice in {text!r}, must be given once")
                found[field] = value
        return cls(**found)

    def __str__(self) -> str:
        lists = {
            "lanes": f"lanes{self.lanes}x{self.chunk}",
            "tree": "tree" + ".".join(f"{n}-{order}" for n, order in self.levels),
        }
        texts = {
            **{field: f"{letter}{getattr(self, field)}" for letter, field in NUMBERS.items()},
            "order": lists.get(self.order, self.order),
            "tile_order": self.tile_order,
            "combine": f"combine={self.combine}",
            "split_combine": f"join={self.split_combine}",
            "k_order": _order_text(self.k_order),
            **{field: name for name, field in FLAGS.items()},
        }
        given = [texts[f.name] for f in fields(self) if f.name in texts and getattr(self, f.name) != f.default]
        return "/".join([self.instruction, *given])


def _read(part: str) -> dict[str, Any]:
    """Return the fields that one part of a text sets."""
    if part in ORDERS:
        return {"order": part}
    if part == "descending":
        return {"tile_order": part}
    if part in FLAGS:
        return {FLAGS[part]: True}
    name, _, value = part.partition("=")
    if name in ("combine", "join") and value:
        return {"combine" if name == "combine" else "split_combine": value}
    if match := re.fullmatch(r"([tnsdp]|held)(\d+)", part):
        return {NUMBERS[match[1]]: int(match[2])}
    if match := re.fullmatch(r"lanes(\d+)x(\d+)", part):
        return {"order": "lanes", "lanes": int(match[1]), "chunk": int(match[2])}
    if match := re.fullmatch(r"tree(\d+-[a-z]+(?:\.\d+-[a-z]+)*)", part):
        levels = (level.partition("-") for level in match[1].split("."))
        return {"order": "tree", "levels": tuple((int(size), order) for size, _, order in levels)}
    if match := re.fullmatch(r"(order|bits)(\d+(?:\.\d+)*)", part):
        numbers = tuple(int(n) for n in match[2].split("."))
        return {"k_order": numbers if match[1] == "order" else linear_order(numbers)}
    raise unknown("schedule part", part, PARTS)


@functools.lru_cache(maxsize=256)
def linear_order(bits: tuple[int, ...]) -> tuple[int, ...]:
    """Return the permutation of 2^len(bits) places in which bit b of a place adds bits[b] to its input.

    Args:
        bits: powers of two, each below 2^len(bits) once, as compilers write a thread's registers, lanes and warps.
    """
    require(len(bits) <= 16, f"bits: got {len(bits)} of them, must be 16 or fewer")
    return tuple(sum(bit for b, bit in enumerate(bits) if i >> b & 1) for i in range(1 << len(bits)))


@functools.lru_cache(maxsize=256)  # messages about a schedule hold its text, whether or not they are raised
def _order_text(k_order: tuple[int, ...]) -> str:
    bits = tuple(k_order[1 << b] for b in range(max(len(k_order).bit_length() - 1, 0)))
    if len(bits) > 1 and linear_order(bits) == k_order:
        return "bits" + ".".join(map(str, bits))
    return "order" + ".".join(map(str, k_order))
