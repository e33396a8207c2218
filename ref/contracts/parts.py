"""Parts of K: a dot product cut in pieces that are summed by themselves, stored, and then joined.

Text: parts joined by "/": how many or how long, then what differs from the defaults.

    8/up32/dtype            8 parts, each a multiple of 32 long, each sum rounded to D, joined in fp32 in any order
    8/deal32/dtype          8 parts, tiles of 32 inputs dealt to them in turn: 0..31 and 256..287 to the first
    k128/dtype/add=dtype    parts of 128 inputs, each sum rounded to D, and the total too after each addition (atomics)
    k128+/dtype/add=dtype   the same of runs of 128 inputs or more, the last one shorter: how many at most is known
    k256/join=pairwise      fp32 partial sums, joined in fp32 in pairs
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..bitmodels.fp32_trees import ORDERS
from ..errors import require, unknown

__all__ = ["Parts"]

KEPT = ("fp32", "dtype")
JOINS = ("any", *ORDERS)
MOST = 1 << 20
FORMS = ("N", "kN", "kN+", "upN", "dealN", *KEPT, "add=fp32", "add=dtype", "join=ORDER")


@dataclass(frozen=True)
class Parts:
    """How K is cut, what is kept of a part's sum, and how the parts are added.

    Args:
        count: how many parts, 0 where their length is given.
        length: inputs a part, 0 where their number is given.
        unit: a part's length is rounded up to a multiple of this, where their number is given.
        deal: inputs a tile, of tiles that go to the parts in turn, where their number is given; 0: a part is one run.
        longer: whether parts may also be longer than their length: no one cut is declared, and any join is legal.
        kept: "fp32" or "dtype": what a part's sum is rounded to before it is joined.
        add: "fp32" or "dtype": what the total is rounded to after each addition.
        join: "any" order, as atomics add, or one of ORDERS.
    Raises:
        ValueError: a field holds none of its legal values.
    """

    count: int = 0
    length: int = 0
    unit: int = 1
    kept: str = "fp32"
    add: str = "fp32"
    join: str = "any"
    deal: int = 0
    longer: bool = False

    def __post_init__(self) -> None:
        one = (self.count > 0) != (self.length > 0)
        got = f"{self.count} parts and {self.length} inputs a part"
        require(one, f"parts: got {got}, must be given how many (8) or how long (k128) they are, not both")
        for name in ("count", "length", "unit", "deal"):
            value = getattr(self, name)
            require(0 <= value <= MOST, f"parts: got {name} {value}, must be at most {MOST}")
        require(self.unit >= 1 and (self.unit == 1 or self.count > 0), "parts: upN must go with a number of parts")
        alone = self.deal == 0 or (self.count > 0 and self.unit == 1)
        require(alone, "parts: dealN must go with a number of parts, without upN")
        free = not self.longer or (self.length > 0 and self.join == "any")
        require(free, "parts: kN+ must go with a length, and without join=ORDER")
        for name, value, legal in (("parts", self.kept, KEPT), ("add", self.add, KEPT), ("join", self.join, JOINS)):
            if value not in legal:
                raise unknown(name, value, legal)

    def inputs(self, K: int) -> list[slice | list[int]]:
        """Return the inputs of each part of K, in order, as an index; a part without any is left out.

        Of parts that may be longer, these are the shortest.
        """
        if self.deal:
            tiles = [range(start, min(start + self.deal, K)) for start in range(0, K, self.deal)]
            dealt = [tiles[i :: self.count] for i in range(self.count)]
            return [[k for tile in part for k in tile] for part in dealt if part]
        length = self.length or max(-(-K // self.count), 1)
        length += -length % self.unit
        return [slice(start, min(start + length, K)) for start in range(0, K, length)]

    @classmethod
    def parse(cls, text: str) -> Parts:
        """Read the text; `Parts.parse(str(parts)) == parts`.

        Raises:
            ValueError: one line naming what is wrong.
        """
        found: dict[str, int | str | bool] = {}
        for part in text.split("/"):
            longer = re.fullmatch(r"k[0-9]{1,9}\+", part) is not None
            name, value = _read(part.removesuffix("+") if longer else part)
            found |= {"longer": True} if longer else {}
            require(name not in found, f"parts: got {name} twice in {text!r}, must be given once")
            found[name] = value
        return cls(**found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        given = [f"k{self.length}{'+' if self.longer else ''}" if self.length else str(self.count)]
        given += [f"up{self.unit}"] * (self.unit > 1) + [f"deal{self.deal}"] * (self.deal > 0)
        given += [self.kept] * (self.kept != "fp32")
        given += [f"add={self.add}"] * (self.add != "fp32") + [f"join={self.join}"] * (self.join != "any")
        return "/".join(given)


def _read(part: str) -> tuple[str, int | str]:
    if part in KEPT:
        return "kept", part
    if match := re.fullmatch(r"(k|up|deal|)([0-9]{1,9})", part):
        return {"k": "length", "up": "unit", "deal": "deal", "": "count"}[match[1]], int(match[2])
    name, equals, value = part.partition("=")
    if name in ("add", "join") and equals:
        return name, value
    raise unknown("parts", part, FORMS)
