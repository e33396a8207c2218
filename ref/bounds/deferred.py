"""Bands whose ends are worked out only where somebody asks.

Of a large layer nearly every stored element is the rounding of the middle of its Band: legal whatever the ends are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from ..contracts.contract import Contract
from ..rounding import round_in_fp64
from .band import Band, exactly, sum_band, weigh_band
from .chained import chained_band, scheduled_elements
from .dot import DotWeights, as_summed, dot_radius, magnitudes, scheduled_rows, times
from .near import near_products, products_of_elements, products_of_rows

__all__ = [
    "Deferred",
    "deferred_dot",
    "deferred_near",
    "deferred_schedule",
    "deferred_silu_mul",
    "deferred_sum",
    "weighed",
    "whole",
    "worth_it",
]

GATHERED = 1 << 22  # products of single elements that are formed at once
SMALL = 2.0**-100  # errors of underflow are nothing beside it
FEW = 32
WORTH_IT = 1 << 15  # elements from which a piece is deferred: of fewer, all are asked for
# From rows of the piece, int64 [p], and their counts, to their Band [p, m]; with columns [p], to that of elements [p].
Part: TypeAlias = Callable[[torch.Tensor, torch.Tensor | None], Band]


class Deferred:
    """A Band [n, m] of which one value everywhere is known.

    It holds until the weights of the next experts are asked for: their buffers are the same.

    Args:
        likely: float [n, m], values that lie in the Band, as they are and once rounded to fp32, or in a Band of one
            value are stored as that one is; NaN where none is known.
        part: from rows int64 [p] to their Band [p, m], and with columns int64 [p] to that of single elements [p], which
            may be narrower by what fp32 loses in a bound, and is never wider.
        open_ends: bool [n, m], where the two ends may be equal or may not; None: nowhere.
        closed: whether they are equal elsewhere; else they differ there.
        few: up to which share, 1/few, single elements are cheaper than all.
    """

    def __init__(
        self,
        likely: torch.Tensor,
        part: Part,
        open_ends: torch.Tensor | None = None,
        closed: bool = False,
        few: int = FEW,
    ) -> None:
        self.likely, self._part, self._open, self._closed, self.few = likely, part, open_ends, closed, few

    def exact(self) -> int:
        """Return how many elements have one value."""
        if self._open is None:
            return self.likely.numel() * self._closed
        at = self._open.nonzero(as_tuple=True)
        few = self.at(*at)
        return int((few.lo == few.hi).sum()) + (self._open.numel() - len(at[0])) * self._closed

    def rows(self, index: torch.Tensor) -> Band:
        """Return the Band of some rows, in ascending order."""
        return self._part(index, None)

    def at(self, rows: torch.Tensor, columns: torch.Tensor) -> Band:
        """Return the Band of single elements."""
        return self._part(rows, columns)

    def whole(self) -> Band:
        """Return all of the Band."""
        return self._part(torch.arange(self.likely.shape[0], device=self.likely.device), None)

    def weighed(self, weight: torch.Tensor) -> Band | Deferred:
        """Return the Band times known fp32 weights float64 [n, 1], in fp32: see weigh_band.

        Of a closed one, what a value is stored as is known, not the value itself, which the weight multiplies.
        """
        if self._closed:
            return weigh_band(self.whole(), weight)

        def part(i: torch.Tensor, j: torch.Tensor | None) -> Band:
            return weigh_band(self._part(i, j), weight[i] if j is None else weight[i, 0])

        return Deferred((self.likely * weight).float().double(), part)


def whole(band: Band | Deferred) -> Band:
    """Return a Band, worked out where it was deferred."""
    return band.whole() if isinstance(band, Deferred) else band


def weighed(band: Band | Deferred, weight: torch.Tensor) -> Band | Deferred:
    """Return a Band times known fp32 weights float64 [n, 1]: see weigh_band."""
    return band.weighed(weight) if isinstance(band, Deferred) else weigh_band(band, weight)


def worth_it(rows: int, columns: int) -> bool:
    """Say whether a piece is so large that its ends are better left open."""
    return rows * columns >= WORTH_IT


def deferred_dot(
    a: Band, w: DotWeights, contract: Contract, dtype: torch.dtype, counts: Sequence[int]
) -> Deferred | None:
    """Return dot_band's Band with the magnitudes' sums left out; None where the ends must be known at once.

    Where the radius is at least 2^-23 of |y|, y itself and y rounded to fp32 lie in the Band.

    Args:
        a, w, contract, dtype, counts: as dot_band takes them; the data promise no exact sums.
    """
    w, contract = as_summed(w, contract)
    K = w.values.shape[-1]
    plain = w.after is None and w.bias is None and contract.parts is None
    plain = plain and contract.schedule is None and not contract.ftz
    if a.hi is not a.lo or not plain:
        return None
    one = torch.ones((), dtype=torch.float64)
    if not float(dot_radius(0 * one, one, K, contract, dtype, w.roundings)) >= 2.0**-23:
        return None
    y, narrow = times(a.lo, w.values, counts), contract.weight == "cast"
    matrix_of = _matrices(counts, y.device)

    def part(i: torch.Tensor, j: torch.Tensor | None) -> Band:
        if j is None:
            middle, t = y[i], magnitudes(a.lo[i], w.sizes, _chosen(matrix_of(i), counts), narrow=narrow)
        else:
            middle = y[i, j]
            each = zip(*(index.split(max(1, GATHERED // K)) for index in (i, matrix_of(i), j)), strict=True)
            sums = [(a.lo[r].abs() * w.sizes[e, n]).sum(1) for r, e, n in each]
            t = torch.cat(sums)
        radius = dot_radius(middle, t, K, contract, dtype, w.roundings)
        return Band(middle - radius, middle + radius)

    return Deferred(y, part)


def _matrices(counts: Sequence[int], device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what says of rows which matrix each multiplies, the i-th one being for the next counts[i]."""
    last = torch.tensor(counts, device=device).cumsum(0)
    return lambda rows: torch.bucketize(rows, last, right=True)


def _chosen(matrices: torch.Tensor, counts: Sequence[int]) -> list[int]:
    return torch.bincount(matrices, minlength=len(counts)).tolist()


def deferred_near(
    a: torch.Tensor, values: torch.Tensor, contract: Contract, dtype: torch.dtype, counts: Sequence[int]
) -> Deferred:
    """Return dot_band's Band, of which the values of the machine's fastest unit are known: see near.py.

    Args:
        a: D [M, K].
        values: [n, N, K], from near_values.
        contract, dtype, counts: as dot_band takes them; the data promise no exact sums.
    """
    K, narrow, matrix_of = a.shape[1], contract.weight == "cast", _matrices(counts, a.device)

    def part(i: torch.Tensor, j: torch.Tensor | None) -> Band:
        of_row = matrix_of(i)
        if j is None:
            middle, t = products_of_rows(a[i], values, _chosen(of_row, counts), narrow)
        else:
            middle, t = products_of_elements(a, values, i, of_row, j)
        radius = dot_radius(middle, t, K, contract, dtype)
        return Band(middle - radius, middle + radius)

    return Deferred(near_products(a, values, counts), part)


def deferred_schedule(
    a: torch.Tensor, w: DotWeights, contract: Contract, dtype: torch.dtype, counts: Sequence[int]
) -> Deferred | None:
    """Return dot_band's Band of a schedule, followed only for sums that may be stored as one of two values.

    Args:
        a: D [M, K].
        w, contract, dtype, counts: as dot_band takes them.
    """
    w, contract = as_summed(w, contract)
    if contract.schedule is None or contract.parts is not None or w.after is not None or w.bias is not None:
        return None
    schedule, matrix_of = contract.schedule, _matrices(counts, a.device)
    found = chained_band(a, w, schedule, counts)
    if found is None or w.operands is None:
        return None
    (lo, hi), small = found
    values, lo, hi = w.operands.values, lo.float().to(dtype), hi.float().to(dtype)

    def part(i: torch.Tensor, j: torch.Tensor | None) -> Band:
        of_row = matrix_of(i)
        if j is None:
            sums = scheduled_rows(a[i].double(), w, contract, dtype, _chosen(of_row, counts))
        else:
            sums = scheduled_elements(a, values, schedule, i, of_row, j)
        return Band(sums, sums)

    return Deferred(torch.where(small & (lo == hi), lo, torch.nan), part, ~small, closed=True, few=3)


def deferred_silu_mul(
    h: torch.Tensor, contract: Contract, dtype: torch.dtype, band_of: Callable[[Band, Contract, torch.dtype], Band]
) -> Deferred:
    """Return silu_mul_band's Band of known h [n, 2I], whose middle is one fp64 silu.

    Args:
        h: float64, gate columns first.
        contract, dtype: as silu_mul_band takes them.
        band_of: silu_mul_band.
    """
    half = h.shape[1] // 2
    gate, up = h[:, :half], h[:, half:]
    s = torch.sigmoid(gate).mul_(gate.clamp(min=-800))
    way = contract.silu_rounding(dtype)
    if way is None:
        s = s.float().double()
        open_ends = gate >= 32  # no error there
    else:
        widest = (8 + 1.2 * _largest(gate)) * 2.0**-23  # of silu_band's relative errors
        below, above = ((s * (1 + error)).to(dtype) for error in (-widest, widest))
        open_ends = ~(below == above)
        s = round_in_fp64(s.float().double(), dtype, way)

    def part(i: torch.Tensor, j: torch.Tensor | None) -> Band:
        if j is None:
            return band_of(exactly(h[i]), contract, dtype)
        few = band_of(exactly(torch.stack([gate[i, j], up[i, j]], 1)), contract, dtype)
        return Band(few.lo[:, 0], few.hi[:, 0])

    likely = s.mul_(up).float().double()
    size = likely.abs()
    # Zeros, underflow of silu or of the product, overflow, NaN.
    open_ends |= ~((size > SMALL * max(1.0, _largest(up))) & (size < 1 / SMALL))
    return Deferred(likely, part, open_ends, closed=way is not None)


def _largest(x: torch.Tensor) -> float:
    low, high = torch.aminmax(x)
    return max(-float(low), float(high))


def deferred_sum(
    terms: torch.Tensor, contract: Contract, dtype: torch.dtype, multiplied: bool, experts: torch.Tensor
) -> Deferred | None:
    """Return sum_band's Band of known terms float64 [n, k, H]; None where their sum is in D, or not rounded enough.

    Args:
        terms, contract, dtype, multiplied, experts: as sum_band takes them; the data promise no exact sums.
    """
    k = terms.shape[1]
    if contract.sum_in_dtype(k) or contract.sum_schedule is not None or k - 1 + int(multiplied) < 2:
        return None

    def part(i: torch.Tensor, j: torch.Tensor | None) -> Band:
        some = terms[i] if j is None else terms[i, :, j][:, :, None]
        band = sum_band(Band(some, some), contract, dtype, multiplied=multiplied, experts=experts[i])
        return band if j is None else Band(band.lo[:, 0], band.hi[:, 0])

    return Deferred(terms.sum(1), part)
