"""Bands: closed intervals of what a legal kernel may hold, and the operations whose rounding is one fp32 step.

A Band [lo, hi] holds every value that some kernel keeping the contract could have at that point, before it is stored. A
stored value `got` is legal exactly when RN(lo) <= got <= RN(hi), RN being the contract's store rounding: rounding is
monotone, so no smaller set is sound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..bitmodels.fp32_trees import reduce_by
from ..contracts.contract import Contract
from ..rounding import FORMATS, round_in_fp64, ulp
from .scheduled import scheduled_sum

__all__ = [
    "Band",
    "add_band",
    "bias_band",
    "exactly",
    "join_band",
    "nan_or_value",
    "store",
    "sum_band",
    "to_go_on_with",
    "weigh_band",
]

TINY = 2.0**-149  # the smallest fp32 subnormal: what one operation may lose by underflow
SMALLEST_NORMAL = 2.0**-126  # of fp32: below it, flush-to-zero makes 0


class Band(NamedTuple):
    """Closed interval of fp64 values, element by element; lo == hi where only one value is legal.

    Where both ends are NaN, NaN alone is legal; [NaN, -inf], [NaN, 0] and [+inf, NaN] are NaN or that number
    (nan_or_value).

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


def nan_or_value(band: Band, got: torch.Tensor) -> torch.Tensor:
    """Say where a stored value is legal that is in no interval: NaN, or the one number that is legal beside it.

    An infinity that overflow left, times a factor that some forms of an activation have as 0, is either.

    Args:
        band: before or after its store.
        got: of its shape, what was stored.
    Returns:
        bool, that shape.
    """
    of_lo, of_hi = band.lo.isnan(), band.hi.isnan()
    beside = (of_lo & ((band.hi == -torch.inf) | (band.hi == 0))) | (of_hi & (band.lo == torch.inf))
    number = torch.where(of_lo, band.hi, band.lo)
    return (got.isnan() & (beside | (of_lo & of_hi))) | ((got == number) & beside)


def to_go_on_with(band: Band) -> Band:
    """Return the Band that later stages are derived from: of NaN or 0 the 0, of NaN or an infinity NaN.

    Args:
        band: of a stage that the kernel does not store.
    Returns:
        Band of its shape.
    """
    of_lo = band.lo.isnan()
    either = of_lo != band.hi.isnan()
    if not bool(either.any()):
        return band
    number = torch.where(of_lo & (band.hi == 0), 0.0, torch.nan)
    return Band(torch.where(either, number, band.lo), torch.where(either, number, band.hi))


def store(band: Band, contract: Contract, dtype: torch.dtype, stage: str = "out") -> Band:
    """Round a Band as the contract's stores do; what remains are the legal stored values' bounds.

    Args:
        band: what the kernel has in fp32, any shape.
        contract: its store rounding and ftz are read.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
        stage: whose store it is: h, a, y or out.
    Returns:
        Band of values of D, that shape.
    """
    return rounded(band, contract, dtype, contract.rounding(stage, dtype))


def rounded(band: Band, contract: Contract, dtype: torch.dtype, way: str) -> Band:
    """Round a Band to `dtype` in the given way, "rne" or "rtz", where FTZ is as the contract says."""
    lo = round_in_fp64(band.lo, dtype, way)
    hi = lo if band.hi is band.lo else round_in_fp64(band.hi, dtype, way)
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


def bias_band(band: Band, bias: torch.Tensor, contract: Contract, dtype: torch.dtype, *, late: bool = False) -> Band:
    """Add a known bias where the contract does: to the sum, or in D to what was stored.

    Args:
        band: [..., N], before the store.
        bias: [N], known.
        contract: its bias and its store rounding are read.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
        late: the band is what was stored times a scale, which a compiler may fuse with the addition of the bias.
    Returns:
        Band of that shape, before the store.
    """
    if contract.bias == "sum":
        return add_band(band, bias)
    added = add_band(store(band, contract, dtype), bias)
    if contract.bias == "stored" or not late:
        return added
    fused = Band(band.lo + bias.double(), band.hi + bias.double())
    return Band(torch.minimum(added.lo, fused.lo), torch.maximum(added.hi, fused.hi))


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


ENUMERATED = 6  # terms whose every order is looked at: 2^6 subsets
Rounding = Callable[[torch.Tensor], torch.Tensor]


def join_band(
    terms: list[Band], order: str, dtype: torch.dtype | None, way: str = "rne", *, trees: bool = False
) -> Band:
    """Return the Band of a sum of Bands, each addition rounded once: in a named order, or in any, as atomics add.

    Rounding is monotone in each term, so in a known order the ends suffice. In any order, with few terms, the least
    total of a set of them is that of the set without its last one, plus that one, over all choices of the last: all
    orders are looked at. With more, each of the n - 1 additions may lose half an ulp of the largest partial sum, and to
    nearest no more than its term, since the sum before it is a candidate; so partial sums stay below twice the exact
    ones, and below (1+u)^(n-1) times.

    Args:
        terms: n of any one shape, what is added; the total starts at +0.
        order: one of ORDERS, or "any".
        dtype: what each addition is rounded to: D, or None for fp32.
        way: how, "rne" or "rtz".
        trees: in any order, sums may be added to sums, too, as ranks do, in place of one term after another.
    Returns:
        Band of that shape.
    """
    to = torch.float32 if dtype is None else dtype
    round_ = lambda x: round_in_fp64(x, to, way)
    ends = [round_(torch.stack(sides)) for sides in zip(*terms, strict=True)]
    if order != "any":
        return Band(*(reduce_by(side, order, lambda x, y: round_(x + y)) for side in ends))
    if len(terms) <= ENUMERATED:
        return Band(_least(ends[0], round_, trees), -_least(-ends[1], round_, trees))
    lo, hi = ends
    largest = torch.maximum(hi.clamp(min=0).sum(0), lo.clamp(max=0).sum(0).neg())
    if trees:
        additions = ((lo != 0) | (hi != 0)).sum(0).sub(1).clamp(min=0)
        growth = min(2.0, (1 + 2.0 ** -(FORMATS[to][0] + 1)) ** (len(terms) - 1))
        lost = additions * ulp(largest * growth, to) * (0.5 if way == "rne" else 1.0)
        return Band(lo.sum(0) - lost, hi.sum(0) + lost)
    if way != "rne":  # toward zero: no partial sum grows
        lost = (len(terms) - 1) * ulp(largest, to)
    else:
        growth = min(2.0, (1 + 2.0 ** -(FORMATS[to][0] + 1)) ** (len(terms) - 1))
        most = torch.minimum(torch.maximum(lo.abs(), hi.abs()), ulp(largest * growth, to) * 0.5)
        lost = most.sum(0) - most.amin(0)  # the first to be added loses nothing
    return Band(lo.sum(0) - lost, hi.sum(0) + lost)


def _least(terms: torch.Tensor, round_: Rounding, trees: bool = False) -> torch.Tensor:
    """Return the least total that any order of adding terms [n, ...] gives: one after another, or in any tree."""
    n = len(terms)
    least: dict[int, torch.Tensor] = {1 << i: terms[i] for i in range(n)}
    for chosen in range(1, 1 << n):
        if chosen not in least:
            if trees:
                parts = [part for part in range(1, chosen) if part | chosen == chosen and part < chosen ^ part]
                totals = [least[part] + least[chosen ^ part] for part in parts]
            else:
                totals = [least[chosen & ~(1 << i)] + terms[i] for i in range(n) if chosen >> i & 1]
            least[chosen] = round_(torch.stack(totals).amin(0))
    return least[(1 << n) - 1]


def sum_band(
    terms: Band,
    contract: Contract,
    dtype: torch.dtype,
    *,
    multiplied: bool,
    exact: bool = False,
    experts: torch.Tensor | None = None,
) -> Band:
    """Return the Band of a sum over top-k slots, before it is stored.

    Args:
        terms: [T, k, H]; each already times its router weight, exactly (not rounded), if `multiplied`.
        multiplied: the kernel multiplies by the router weight here, with one fp32 rounding a term (or none, fused).
        exact: the data promise exact sums; each element is still checked.
        contract: how it adds: accumulator, sum_schedule, slot_order, ftz, in D or in fp32.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
        experts: [T, k], what a slot_order of "experts" sorts slots by; None: slots are in that order.
    Returns:
        Band; lo is hi where the contract has a sum_schedule and the terms are known.
    """
    k = terms.lo.shape[1]
    if contract.slot_order == "experts" and experts is not None:
        order = experts.long().argsort(dim=1, stable=True)[:, :, None].expand(terms.lo.shape)
        known = terms.hi is terms.lo
        lo = terms.lo.gather(1, order)
        terms = Band(lo, lo if known else terms.hi.gather(1, order))
    if contract.sum_schedule is not None and terms.hi is terms.lo:
        return exactly(scheduled_sum(terms.lo, contract.sum_schedule))
    if contract.sum_in_dtype(k) and k:
        way = contract.rounding("out", dtype)
        each = terms
        if multiplied:  # y times an fp32 weight needs up to 35 bits: fp32 rounds it first
            each = Band(*(round_in_fp64(side.float().double(), dtype, way) for side in terms))
        slots = [Band(each.lo[:, j], each.hi[:, j]) for j in range(k)]
        return join_band(slots, "any" if contract.slot_order == "any" else "sequential", dtype, way)
    u = 2.0**-24 if contract.adder.sums_nearest else 2.0**-23
    size = torch.maximum(terms.lo.abs(), terms.hi.abs()).sum(1)
    roundings = (k - 1) + int(multiplied)
    radius = size * math.expm1(roundings * math.log1p(u)) + (roundings * TINY if k else 0.0)
    if contract.ftz:
        radius = radius + 2 * k * 2.0**-126
    if exact:
        grain = torch.minimum(lowest_bit(terms.lo), lowest_bit(terms.hi)).amin(1) if k else size
        radius = torch.where(size <= grain * 2.0**24, 0.0, radius)
    lo, hi = terms.lo.sum(1), terms.hi.sum(1)  # where an infinity is sure, it is the sum, and the radius infinite
    return Band(torch.where(lo.isinf(), lo, lo - radius), torch.where(hi.isinf(), hi, hi + radius))
