"""Bands: closed intervals of what a legal kernel may hold, and the operations whose rounding is one fp32 step.

A Band [lo, hi] holds every value that some kernel keeping the contract could have at that point, before it is stored. A
stored value `got` is legal exactly when RN(lo) <= got <= RN(hi), RN being the contract's store rounding: rounding is
monotone, so no smaller set is sound.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..contracts.contract import Contract
from ..rounding import round_in_fp64
from .scheduled import scheduled_sum

__all__ = ["Band", "add_band", "exactly", "store", "sum_band", "weigh_band"]

TINY = 2.0**-149  # the smallest fp32 subnormal: what one operation may lose by underflow
SMALLEST_NORMAL = 2.0**-126  # of fp32: below it, flush-to-zero makes 0


class Band(NamedTuple):
    """Closed interval of fp64 values, element by element; lo == hi where only one value is legal.

    Args:
        lo: fp64, any shape.
        hi: fp64, that shape, nowhere below lo.
    """

    lo: torch.Tensor
    hi: torch.Tensor

    @property
    def mid(self) -> torch.Tensor:
        return (self.lo + self.hi) / 2

    @property
    def radius(self) -> torch.Tensor:
        return (self.hi - self.lo) / 2


def exactly(x: torch.Tensor) -> Band:
    """Return the Band of known values.

    Args:
        x: any float dtype and shape.
    Returns:
        Band of x's shape with lo = hi = x.
    """
    x64 = x.double()
    return Band(x64, x64)


def store(band: Band, contract: Contract, dtype: torch.dtype) -> Band:
    """Round a Band as the contract's stores do; what remains are the legal stored values' bounds.

    Args:
        band: what the kernel has in fp32, any shape.
        contract: its store rounding and ftz are read.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
    Returns:
        Band of values of D, that shape.
    """
    lo = round_in_fp64(band.lo, dtype, contract.store_rounding)
    hi = lo if band.hi is band.lo else round_in_fp64(band.hi, dtype, contract.store_rounding)
    if contract.ftz:  # an fp32 subnormal may have become zero on its way here
        lo = torch.where((band.lo > 0) & (band.lo < SMALLEST_NORMAL), 0.0, lo)
        hi = torch.where((band.hi < 0) & (band.hi > -SMALLEST_NORMAL), 0.0, hi)
    return Band(lo, hi)


def to_fp32(band: Band) -> Band:
    """Round a Band to fp32, nearest: what one fp32 operation with an exact fp64 result does."""
    return Band(band.lo.float().double(), band.hi.float().double())


def lowest_bit(x: torch.Tensor) -> torch.Tensor:
    """Return the value of the lowest set bit of each fp64 element; inf for zero."""
    mantissa, exponent = torch.frexp(x.abs())
    whole = torch.ldexp(mantissa, torch.full_like(exponent, 53)).long()
    low = torch.ldexp((whole & -whole).double(), exponent - 53)
    return torch.where(x == 0, torch.inf, low)


def add_band(band: Band, bias: torch.Tensor) -> Band:
    """Add a known bias in fp32, nearest.

    Args:
        band: [..., N].
        bias: [N], known.
    Returns:
        Band of that shape.
    """
    return to_fp32(Band(band.lo + bias.double(), band.hi + bias.double()))


def weigh_band(band: Band, weight: torch.Tensor) -> Band:
    """Multiply by known fp32 weights in fp32, nearest: RN32 of a 48-bit product is monotone in each factor.

    Args:
        band: any shape.
        weight: fp32, a shape that broadcasts to it.
    Returns:
        Band of values of fp32.
    """
    p, q = band.lo * weight, band.hi * weight
    return to_fp32(Band(torch.minimum(p, q), torch.maximum(p, q)))


def sum_band(terms: Band, contract: Contract, dtype: torch.dtype, *, multiplied: bool, exact: bool = False) -> Band:
    """Return the Band of a sum over top-k slots, before it is stored.

    Args:
        terms: [T, k, H]; each already times its router weight, exactly (not rounded), if `multiplied`.
        multiplied: the kernel multiplies by the router weight here, with one fp32 rounding a term (or none, fused).
        exact: the data promise exact sums; each element is still checked.
        contract: how it adds: accumulator, sum_schedule, ftz, in D or in fp32.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
    Returns:
        Band; lo is hi where the contract has a sum_schedule and the terms are known.
    """
    k = terms.lo.shape[1]
    if contract.sum_schedule is not None and terms.hi is terms.lo:
        return exactly(scheduled_sum(terms.lo, contract.sum_schedule))
    if contract.sum_in_dtype(k):
        return _sum_in_dtype(terms, contract, dtype, multiplied)
    u = 2.0**-24 if contract.adder.sums_nearest else 2.0**-23
    size = torch.maximum(terms.lo.abs(), terms.hi.abs()).sum(1)
    rounded = (k - 1) + int(multiplied)
    radius = size * math.expm1(rounded * math.log1p(u)) + (rounded * TINY if k else 0.0)
    if contract.ftz:
        radius = radius + 2 * k * 2.0**-126
    if exact:
        grain = torch.minimum(lowest_bit(terms.lo), lowest_bit(terms.hi)).amin(1) if k else size
        radius = torch.where(size <= grain * 2.0**24, 0.0, radius)
    return Band(terms.lo.sum(1) - radius, terms.hi.sum(1) + radius)


def _sum_in_dtype(terms: Band, contract: Contract, dtype: torch.dtype, multiplied: bool) -> Band:
    """Add slot by slot with a store rounding after each fp32 multiplication and addition: monotone, so ends suffice."""
    ends = []
    for side in terms:
        total = torch.zeros_like(side[:, 0])
        for j in range(side.shape[1]):
            term = side[:, j]
            if multiplied:  # y times an fp32 weight needs up to 35 bits: fp32 rounds it first
                term = round_in_fp64(term.float().double(), dtype, contract.store_rounding)
            total = round_in_fp64(total + term, dtype, contract.store_rounding)
        ends.append(total)
    return Band(*ends)
