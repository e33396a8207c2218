"""Faults of a layer over ranks: maps, shared experts, and what becomes of the ranks' partial sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract

from .base import ARITHMETIC, Step, fault, issue, pull

__all__ = ["OF_RANK", "ORDERS_OF_RANKS", "reordered"]

T = torch.Tensor
LAYERS = ("moe_w4a16",)
REDUCED = "grouped,ranks=4/dtype/add=dtype"
OFFSET = issue("flashinfer-ai/flashinfer", 3547)
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


def map_of_next(rank: int) -> Step:
    """Return the step of a rank that reads the next rank's map: it takes those experts' slots, with its own weights."""

    def stage(sim: Any, base: Any, stage: str, args: dict[str, Any], before: dict[str, T]) -> T:
        if stage not in ("partial", "out") or (stage == "out" and "partial" in before):
            return base(stage, args, before)
        ranks, E, ids = sim.contract.ranks, args["w13"].E, args["topk_ids"].long()
        mine, theirs = (ranks.experts_of(r % ranks.count, E - ranks.shared) for r in (rank, rank + 1))
        table = torch.full((E,), -1)
        table[theirs[: len(mine)]] = torch.tensor(mine[: len(theirs)])
        wrong = {**args, "topk_ids": torch.where(ids < 0, ids, table[ids.clamp(min=0)])}
        of_wrong: dict[str, T] = {}
        for name in ("h", "a", "y"):
            of_wrong[name] = base(name, wrong, of_wrong)
        partials = base("partial", args, before).clone()
        rows = slice(rank % ranks.count * len(ids), (rank % ranks.count + 1) * len(ids))
        partials[rows] = base("partial", wrong, of_wrong)[rows]
        return partials if stage == "partial" else base("out", args, {**before, "partial": partials})

    return stage


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


def reordered(source: Callable[[int, int], int]) -> Step:
    """Return the step by which each rank returns another one's tokens.

    Args:
        source: of a rank, and the number of ranks: whose tokens it returns; as many as both have.
    """

    def gathered(sim: Any, base: Any, out: T) -> T:
        ranks, out = sim.contract.ranks, base(out)
        moved = out.clone()
        for rank in range(ranks.count):
            here, there = (ranks.tokens_of(r, len(out)) for r in (rank, source(rank, ranks.count)))
            size = min(here.stop - here.start, there.stop - there.start)
            moved[here.start : here.start + size] = out[there.start : there.start + size]
        return moved

    return gathered


# Orders of ranks in which results may come back: of a rank, whose tokens it returns.
ORDERS_OF_RANKS: dict[str, Callable[[int, int], int]] = {
    "reversed": lambda rank, count: count - 1 - rank,
    "the next rank's": lambda rank, count: (rank + 1) % count,
    "the rank before's": lambda rank, count: (rank - 1) % count,
    "pairs exchanged": lambda rank, count: min(rank ^ 1, count - 1),
}

# By id: the step that a rank does wrongly, and what does it in its place.
OF_RANK: dict[str, tuple[str, Callable[[int], Step]]] = {
    "F250": ("stage", map_of_next),
    "F253": ("collected", missing),
    "F254": ("collected", twice),
    "F255": ("keep_partial", stale),
    "F256": ("collected", alone),
    "F258": ("experts_of", wrong_numbers),
}


def _of_last(id: str, title: str, stage: str, source: str, contract: str = REDUCED) -> None:
    step, of = OF_RANK[id]
    fault(id, title, ops=LAYERS, stage=stage, source=source, step=step, contract=contract,
          not_under=_only_over_ranks)(of(LAST))  # fmt: skip


_of_last("F250", "one rank reads the next rank's expert map", "partial", OFFSET)
fault("F251", "results of ranks returned in another order of ranks", ops=LAYERS, stage="out", step="gathered",
      source=pull("vllm-project/vllm", 52639), contract="grouped,ranks=4/dtype/join=sequential/own",
      not_under=_only_own)(reordered(ORDERS_OF_RANKS["reversed"]))  # fmt: skip


@fault("F252", "an expert that lies on every rank counted by every rank", ops=LAYERS, stage="partial", step="counted",
       source=pull("sgl-project/sglang", 26845), contract=f"{REDUCED}/shared1", not_under=_only_shared)  # fmt: skip
def shared_everywhere(sim: Any, base: Any, experts: T, num_experts: int) -> T:
    return base(experts, num_experts) | (experts >= num_experts - sim.contract.ranks.shared)


_of_last("F253", "one rank's partial sum missing from the sum over ranks", "out", pull("sgl-project/sglang", 32511))
_of_last("F254", "one rank's partial sum counted twice", "out", issue("vllm-project/vllm-ascend", 6710))
_of_last("F255", "one rank's partial sum one token behind", "partial", pull("ROCm/mori", 93))
_of_last(
    "F256", "the sum over ranks left out: one rank's partial sum returned", "out", pull("sgl-project/sglang", 32963)
)


@fault("F257", "ranks added in another order than promised", ops=LAYERS, stage="out", source=ARITHMETIC,
       step="collected", contract=f"{REDUCED}/join=sequential", not_under=_only_in_order)  # fmt: skip
def other_order(sim: Any, base: Any, partials: T) -> T:
    return base(partials).flip(0)


OF_TWO = REDUCED.replace("=4", "=2")  # where no rank has a single expert in most cases
_of_last("F258", "one rank's expert map is off by one local number", "h", OFFSET, OF_TWO)
