"""Bands of a layer over ranks: each rank's partial top-k sum, and the sum of the ranks' partial sums."""

from __future__ import annotations

import torch

from ..contracts.contract import Contract
from .band import Band, join_band, store, sum_band, to_fp32

__all__ = ["join_ranks", "kept_band", "partial_bands"]


def partial_bands(
    terms: Band,
    rank: torch.Tensor,
    contract: Contract,
    dtype: torch.dtype,
    *,
    multiplied: bool,
    exact: bool = False,
    experts: torch.Tensor | None = None,
) -> list[Band]:
    """Return the Band of each rank's part of a top-k sum, before it is stored: the slots whose experts it counts.

    Args:
        terms, contract, dtype, multiplied, exact, experts: as sum_band takes them.
        rank: int [T, k], the rank that counts each slot, -1 for none.
    Returns:
        One Band [T, H] a rank; exactly 0 where it counts no slot.
    """
    assert contract.ranks is not None
    found = []
    for r in range(contract.ranks.count):
        mine = (rank == r)[:, :, None]
        lo = torch.where(mine, terms.lo, 0.0)
        of_rank = Band(lo, lo if terms.hi is terms.lo else torch.where(mine, terms.hi, 0.0))
        band = sum_band(of_rank, contract, dtype, multiplied=multiplied, exact=exact, experts=experts)
        few = mine.sum(1) <= (0 if multiplied else 1)  # a row that is added to nothing is not rounded
        if not contract.ftz and bool(few.any()):
            whole = Band(of_rank.lo.sum(1), of_rank.hi.sum(1))
            band = Band(*(torch.where(few, one, several) for one, several in zip(whole, band, strict=True)))
        found.append(band)
    return found


def join_ranks(kept: list[Band], contract: Contract, dtype: torch.dtype) -> Band:
    """Return the Band of the sum of the ranks' partial sums, before it is stored.

    In a ring a total begins at some rank and goes round once, so each of as many orders as there are ranks is legal;
    which one an element meets depends on how the buffer was cut. Two ranks know one order: addition commutes.

    Args:
        kept: partial sums as each rank hands them on, [T, H]: known, or of `kept_band`.
        contract: with ranks.
        dtype: D.
    """
    ranks = contract.ranks
    assert ranks is not None
    to, way = (dtype, contract.rounding("out", dtype)) if ranks.add == "dtype" else (None, "rne")
    if ranks.join != "ring":
        return join_band(kept, ranks.join, to, way, trees=True)
    turns = [join_band(kept[r:] + kept[:r], "sequential", to, way) for r in range(ranks.count)]
    return Band(torch.stack([b.lo for b in turns]).amin(0), torch.stack([b.hi for b in turns]).amax(0))


def kept_band(band: Band, contract: Contract, dtype: torch.dtype) -> Band:
    """Return a rank's partial sum as it is handed on: rounded to D as a result is stored, or to fp32."""
    assert contract.ranks is not None
    return store(band, contract, dtype, "out") if contract.ranks.kept == "dtype" else to_fp32(band)
