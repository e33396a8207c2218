"""Ranks: a layer whose experts lie on several processes, and what each rounds before their partial sums are added.

Text: parts joined by "/": how many ranks, then what differs from the defaults.

    4/dtype/add=dtype              each rank rounds its part of the top-k sum to D; all-reduced in D, in any order
    4/dtype/add=dtype/join=ring    the same in rank order that begins at any rank, as a ring of ranks adds
    4/dtype/join=sequential/own    tokens are of one rank each; it adds what the ranks sent it in fp32, rank 0 first
    4/rows/own                     rows come back one by one, and the rank that a token is of adds them as one rank does
    8/deal/dtype/add=dtype         expert e lies on rank e mod 8, in place of equal runs of experts
    2/rows/own/shared1             the last expert lies on every rank: the rank that a token is of computes it
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..bitmodels.fp32_trees import ORDERS
from ..errors import require, unknown

__all__ = ["Ranks"]

KEPT = ("rows", "fp32", "dtype")
ADDED = ("fp32", "dtype")
JOINS = ("any", "ring", *ORDERS)
MOST = 256
FORMS = ("N", "deal", "own", "sharedN", *KEPT, "add=fp32", "add=dtype", "join=ORDER")


@dataclass(frozen=True)
class Ranks:
    """Which rank holds which experts and tokens, what is kept of a rank's partial sum, and how the ranks' are added.

    Args:
        count: how many ranks.
        deal: expert e lies on rank e mod count; else each rank holds one run of experts, the first ones one more where
            they do not come out even.
        own: each token is of one rank, which is given it and returns its result: runs of tokens, the first ones one
            longer where they do not come out even; else every rank is given all tokens and returns the same bits.
        shared: the last so many experts lie on every rank, and are counted once: by the rank that a token is of, or by
            rank 0 where tokens are everyone's.
        kept: what a rank's partial sum of a token is rounded to: "fp32" or "dtype"; "rows": there is none, since rows
            are added by whoever returns the token, as a single rank would.
        add: "fp32" or "dtype": what the total is rounded to after each addition.
        join: "any" order, "ring" (rank order that begins at any rank), or one of ORDERS.
    Raises:
        ValueError: a field holds none of its legal values.
    """

    count: int
    kept: str = "fp32"
    add: str = "fp32"
    join: str = "any"
    deal: bool = False
    own: bool = False
    shared: int = 0

    def __post_init__(self) -> None:
        require(2 <= self.count <= MOST, f"ranks: got {self.count} ranks, must be 2 to {MOST}")
        require(0 <= self.shared <= MOST, f"ranks: got shared{self.shared}, must be at most {MOST}")
        for name, value, legal in (("ranks", self.kept, KEPT), ("add", self.add, ADDED), ("join", self.join, JOINS)):
            if value not in legal:
                raise unknown(name, value, legal)
        plain = self.kept != "rows" or (self.add, self.join) == ("fp32", "any")
        require(plain, "ranks: got rows with add or join, must be left out: no partial sums are added")

    @property
    def partial(self) -> bool:
        """Whether each rank makes a partial sum."""
        return self.kept != "rows"

    def experts_of(self, rank: int, E: int) -> list[int]:
        """Return the experts that lie on a rank, in the order of their local numbers."""
        routed = max(0, E - self.shared)
        if self.deal:
            mine = list(range(rank, routed, self.count))
        else:
            base, more = divmod(routed, self.count)
            first = rank * base + min(rank, more)
            mine = list(range(first, first + base + (rank < more)))
        return mine + list(range(routed, E))

    def tokens_of(self, rank: int, T: int) -> slice:
        """Return the tokens that a rank is given: all, or its own."""
        if not self.own:
            return slice(0, T)
        base, more = divmod(T, self.count)
        first = rank * base + min(rank, more)
        return slice(first, first + base + (rank < more))

    def rank_of_tokens(self, T: int) -> torch.Tensor:
        """Return the rank that each token is of, int64 [T]: 0 where tokens are everyone's."""
        owner = torch.zeros(T, dtype=torch.int64)
        for rank in range(self.count if self.own else 0):
            owner[self.tokens_of(rank, T)] = rank
        return owner

    def rank_of(self, ids: torch.Tensor, E: int) -> torch.Tensor:
        """Return the rank that counts each slot, int64 [T, k]; -1 where a slot does nothing.

        Args:
            ids: int [T, k], -1 for a slot that does nothing.
            E: experts of all ranks.
        """
        owner = torch.full((E + 1,), -1, dtype=torch.int64)
        for rank in range(self.count):
            owner[torch.tensor(self.experts_of(rank, E), dtype=torch.int64)] = rank
        owner[E] = -1
        found = owner.to(ids.device)[torch.where(ids < 0, E, ids).long()]
        if not self.shared:
            return found
        of_token = self.rank_of_tokens(ids.shape[0]).to(ids.device)[:, None]
        return torch.where(ids >= E - self.shared, of_token, found)

    @classmethod
    def parse(cls, text: str) -> Ranks:
        """Read the text; `Ranks.parse(str(ranks)) == ranks`.

        Raises:
            ValueError: one line naming what is wrong.
        """
        found: dict[str, int | str | bool] = {}
        for part in text.split("/"):
            name, value = _read(part)
            require(name not in found, f"ranks: got {name} twice in {text!r}, must be given once")
            found[name] = value
        require("count" in found, f"ranks: got {text!r}, must begin with how many ranks there are: 4/dtype/add=dtype")
        return cls(**found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        given = [str(self.count), *["deal"] * self.deal, *[self.kept] * (self.kept != "fp32")]
        given += [f"add={self.add}"] * (self.add != "fp32") + [f"join={self.join}"] * (self.join != "any")
        return "/".join([*given, *["own"] * self.own, *[f"shared{self.shared}"] * (self.shared > 0)])


def _read(part: str) -> tuple[str, int | str | bool]:
    if part in KEPT:
        return "kept", part
    if part in ("deal", "own"):
        return part, True
    if match := re.fullmatch(r"(shared|)([0-9]{1,9})", part):
        return match[1] or "count", int(match[2])
    name, equals, value = part.partition("=")
    if name in ("add", "join") and equals:
        return name, value
    raise unknown("ranks", part, FORMS)
