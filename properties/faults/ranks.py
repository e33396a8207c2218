"""Faults of a layer over ranks: maps, shared experts, and what becomes of the ranks' partial sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract

from .base import ARITHMETIC, Step, fault

__all__ = ["OF_RANK"]

T = torch.Tensor
LAYERS = ("moe_w4a16",)
REDUCED = "grouped,ranks=4/dtype/add=dtype"
LAST = -1  # the rank on which the catalogue plants what one rank does wrongly


def _only_over_ranks(contract: Contract) -> str | None:
    """Faults of partial sums need ranks that make them."""
    return None if contract.ranks is not None and contract.ranks.partial else "no rank makes a partial sum"


def _only_shared(contract: Contract) -> str | None:
    """A shared expert is counted twice only where there is one."""
    none = contract.ranks is None or not contract.ranks.shared
    return _only_over_ranks(contract) or ("no expert lies on every rank" if none else None)


def _only_own(contract: Contract) -> str | None:
    """Results of ranks change places only where each rank has its own."""
    return None if contract.ranks is not None and contract.ranks.own else "every rank returns every token"


def _only_in_order(contract: Contract) -> str | None:
    """An order of ranks is wrong only where one is promised."""
    ranks = contract.ranks
    known = ranks is not None and ranks.join in ("sequential", "reversed") and ranks.count > 2
    return _only_over_ranks(contract) or (None if known else "it names no order of ranks that could be another")


# ---- What one rank does wrongly, by the rank ----


def wrong_numbers(rank: int) -> Step:
    """Return the step of a rank that reads each expert's local number one too high."""

    def experts_of(sim: Any, base: Any, topk_ids: T, num_experts: int) -> T:
        ids, ranks = base(topk_ids, num_experts), sim.contract.ranks
        mine = ranks.experts_of(rank % ranks.count, num_experts)
        table = torch.arange(num_experts)
        table[mine] = torch.tensor(mine).roll(-1)
        return torch.where(ids < 0, ids, table[ids.clamp(min=0)])

    return experts_of


def missing(rank: int) -> Step:
    """Return the step of a sum that a rank's part does not reach."""

    def collected(sim: Any, base: Any, partials: T) -> T:
        partials = base(partials).clone()
        partials[rank] = 0
        return partials

    return collected


def twice(rank: int) -> Step:
    """Return the step of a sum that a rank's part reaches twice."""

    def collected(sim: Any, base: Any, partials: T) -> T:
        partials = base(partials)
        again = partials[rank : rank + 1 or None]
        return torch.cat([partials, again])

    return collected


def alone(rank: int) -> Step:
    """Return the step of a rank that returns its own part, not the sum."""

    def collected(sim: Any, base: Any, partials: T) -> T:
        partials = base(partials)
        only = torch.zeros_like(partials)
        only[rank] = partials[rank]
        return only

    return collected


def stale(rank: int) -> Step:
    """Return the step of a rank whose part is one token behind."""

    def keep_partial(sim: Any, base: Any, total: T, of: int, dtype: torch.dtype) -> T:
        partial: T = base(total, of, dtype)
        return partial.roll(1, 0) if of == rank % sim.contract.ranks.count else partial

    return keep_partial


# By id: the step that a rank does wrongly, and what does it in its place.
OF_RANK: dict[str, tuple[str, Callable[[int], Step]]] = {
    "F250": ("experts_of", wrong_numbers),
    "F253": ("collected", missing),
    "F254": ("collected", twice),
    "F255": ("keep_partial", stale),
    "F256": ("collected", alone),
}


def _of_last(id: str, title: str, stage: str) -> None:
    step, of = OF_RANK[id]
    fault(id, title, ops=LAYERS, stage=stage, source=ARITHMETIC, step=step, contract=REDUCED,
          not_under=_only_over_ranks)(of(LAST))  # fmt: skip


_of_last("F250", "one rank's expert map is off by one local number", "h")


@fault("F251", "tokens of two ranks returned in each other's place", ops=LAYERS, stage="out", source=ARITHMETIC,
       step="gathered", contract="grouped,ranks=4/dtype/join=sequential/own", not_under=_only_own)  # fmt: skip
def exchanged(sim: Any, base: Any, out: T) -> T:
    ranks, out = sim.contract.ranks, base(out)
    first, last = (ranks.tokens_of(rank, len(out)) for rank in (0, ranks.count - 1))
    size = min(first.stop - first.start, last.stop - last.start)
    a, b = slice(first.start, first.start + size), slice(last.start, last.start + size)
    moved = out.clone()
    moved[a], moved[b] = out[b], out[a]
    return moved


@fault("F252", "an expert that lies on every rank counted by every rank", ops=LAYERS, stage="partial",
       source=ARITHMETIC, step="counted", contract=f"{REDUCED}/shared1", not_under=_only_shared)  # fmt: skip
def shared_everywhere(sim: Any, base: Any, experts: T, num_experts: int) -> T:
    return base(experts, num_experts) | (experts >= num_experts - sim.contract.ranks.shared)


_of_last("F253", "one rank's partial sum missing from the sum over ranks", "out")
_of_last("F254", "one rank's partial sum counted twice", "out")
_of_last("F255", "one rank's partial sum one token behind", "partial")
_of_last("F256", "the sum over ranks left out: one rank's partial sum returned", "out")


@fault("F257", "ranks added in another order than promised", ops=LAYERS, stage="out", source=ARITHMETIC,
       step="collected", contract=f"{REDUCED}/join=sequential", not_under=_only_in_order)  # fmt: skip
def other_order(sim: Any, base: Any, partials: T) -> T:
    return base(partials).flip(0)
