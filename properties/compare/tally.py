"""Compare what a kernel stored with what it may store, piece by piece, and remember what matters."""

from __future__ import annotations

from typing import NamedTuple

import torch

from moeracle.ref.bounds.band import Band, nan_or_value, store
from moeracle.ref.bounds.deferred import Deferred
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.rounding import FORMATS, ulp

from ..common.drift import Drift, Errors
from ..common.verdict import StageResult
from .error_map import RATIO_EDGES, count_ratios
from .statistics import measure

WIDEST = 64  # widths are counted up to so many ulp
SAMPLE = 1 << 13  # elements of one piece from which statistics are taken; every element is judged


class Worst(NamedTuple):
    """The illegal element farthest outside, in ulp; a NaN is infinitely far."""

    ulp: float
    row: int
    column: int
    got: float
    lo: float
    hi: float
    exact: bool


class Tally:
    """Counts of one stage, filled by `visit` with Bands; nothing of the Bands is kept.

    Args:
        stage: the stage's name.
        got: the kernel's stored tensor [rows, columns].
        contract: whose store rounding applies.
        sample: of pieces with more elements than this, statistics are taken from evenly spaced rows only.
        errors: what the stage's errors may look like; None: no statistical test.
        saturates: whether a sigmoid made the stage, so that one number may be right everywhere.
        other_experts: int64 [rows], for each row another expert's answer to the same token, -1 where there is none.
    """

    def __init__(
        self,
        stage: str,
        got: torch.Tensor,
        contract: Contract,
        sample: int = SAMPLE,
        errors: Errors | None = None,
        other_experts: torch.Tensor | None = None,
        saturates: bool = False,
    ) -> None:
        self.result = StageResult(stage, 0, ratios=[0] * len(RATIO_EDGES))
        self.got, self.contract, self.sample = got, contract, sample
        self.errors, self.other_experts, self.drift = errors, other_experts, Drift()
        self.worst: Worst | None = None
        self.largest_error = 0.0
        self.largest_expected = 0.0
        self.saturates, self._everywhere = saturates, (-torch.inf, torch.inf)  # what passes as every element
        self._outside: torch.Tensor | None = None
        self._zeros_pass, self._has_signal = True, False
        self._swap_passes = self._other_expert_passes = False
        self._widths = torch.zeros(WIDEST + 1, dtype=torch.int64)

    def visit(self, rows: torch.Tensor, band: Band | Deferred, first_column: int = 0) -> None:
        """Judge stored elements against their Band, given before the store rounding.

        Args:
            rows: int64 [n], which rows of `got`.
            band: [n, m].
            first_column: of `got`; the Band is about this one and the m-1 after it.
        """
        if isinstance(band, Deferred):
            if self.contract.store_rounding == "rne" and band.likely.numel() > self.sample:
                self._visit_deferred(rows, band, first_column)
                return
            band = band.whole()
        if band.lo.numel() == 0:
            return
        got = self.got[:, first_column : first_column + band.lo.shape[1]].index_select(0, rows).double()
        self.result.judged += got.numel()
        self.result.exact += int((band.lo == band.hi).sum())
        every = self._every(got)
        self._measure(Band(band.lo[::every], band.hi[::every]), got[::every], rows[::every], first_column)
        self._judge(rows, band, got, first_column)

    def _every(self, got: torch.Tensor) -> int:
        """Return 1, or for a large piece the step between the rows of which statistics are taken."""
        return max(1, -(-got.numel() // self.sample))

    def _visit_deferred(self, rows: torch.Tensor, band: Deferred, first_column: int) -> None:
        """Judge by the middle of the Band alone whatever is its rounding; the rest, if little, element by element."""
        got = self.got[:, first_column : first_column + band.likely.shape[1]].index_select(0, rows)
        self.result.judged += got.numel()
        self.result.exact += band.exact()
        every = self._every(got)
        picked = torch.arange(0, len(rows), every, device=rows.device)
        sampled, likely = band.rows(picked), band.likely.to(got.dtype)
        self._measure(sampled, got[::every].double(), rows[::every], first_column)
        few = likely[::every].double()
        trusted = not bool((self._illegal(sampled, few) & ~few.isnan()).any())  # else a unit is not as it is known
        # torch rounds fp64 to fp32, then to 16 bits; both roundings of a value in the Band are monotone. A NaN is equal
        # to none.
        at = _places(got != likely)
        count = len(at[0])
        if not trusted or count > got.numel() // band.few:
            self._judge(rows, band.whole(), got.double(), first_column)
        elif count:
            self._judge_few(rows, at, band.at(*at), got[at].double(), first_column)

    def _judge(self, rows: torch.Tensor, band: Band, got: torch.Tensor, first_column: int) -> None:
        # RN(lo) <= got <= RN(hi) is sure within half of got's smaller spacing; only what lies beyond is rounded to be
        # certain: few elements, so they are gathered.
        half = self._half_spacing(got)
        unsure = ~((band.lo - half < got) & (got < band.hi + half))  # NaN is never sure
        at = unsure.nonzero(as_tuple=True)
        if at[0].numel():
            self._judge_few(rows, at, Band(band.lo[at], band.hi[at]), got[at], first_column)

    def _judge_few(
        self, rows: torch.Tensor, at: tuple[torch.Tensor, ...], few: Band, stored: torch.Tensor, first_column: int
    ) -> None:
        """Judge single elements, given where they are in the piece; every other one of it is legal."""
        bad = self._illegal(few, stored)
        if bool(bad.any()):
            illegal = Band(few.lo[bad], few.hi[bad])
            self._remember(rows[at[0][bad]], first_column + at[1][bad], stored[bad], illegal)

    def _illegal(self, few: Band, stored: torch.Tensor) -> torch.Tensor:
        legal = store(few, self.contract, self.got.dtype)
        return ~((legal.lo <= stored) & (stored <= legal.hi)) & ~nan_or_value(few, stored)  # NaN is in no interval

    def _half_spacing(self, got: torch.Tensor) -> torch.Tensor:
        """Return half the distance to got's nearer neighbour, or less; zero where stores truncate.

        A power of two's nearer neighbour is the one in the binade below: so got is first made a little smaller.
        """
        if self.contract.store_rounding != "rne":
            return torch.zeros((), dtype=torch.float64, device=got.device)
        p, emin, _ = FORMATS.get(self.got.dtype, FORMATS[torch.float32])
        exponent = (got.float() * (1 - 2.0**-12)).view(torch.int32) & (0xFF << 23)
        exponent.clamp_(min=max(emin + 127, p + 1) << 23).sub_((p + 1) << 23)  # below bf16's 2^-118: 0, never sure
        return exponent.view(torch.float32).double()

    def _measure(self, band: Band, got: torch.Tensor, rows: torch.Tensor, first_column: int) -> None:
        """Take the statistics of some rows."""
        legal = store(band, self.contract, self.got.dtype)
        one_ulp = ulp(torch.maximum(legal.lo.abs(), legal.hi.abs()), self.got.dtype)
        self._count_widths(legal, one_ulp)
        self._look_for_signal(legal, got)
        self._ask_other_experts(legal, rows, first_column)
        if self.errors is not None:
            self.drift = self.drift.plus(measure(self.errors, band, got, self.contract, self.got.dtype))
        mid = band.mid
        overflown = got.isinf() & (legal.lo <= got) & (got <= legal.hi)  # where the store overflows, inf is right
        right = nan_or_value(band, got)
        error = torch.where((got == mid) | overflown | right, 0.0, (got - mid).abs().nan_to_num(torch.inf))
        rounding = one_ulp.mul_(0.5 if self.contract.store_rounding == "rne" else 1.0)
        ratio = torch.where(right | (band.radius == torch.inf), 0.0, error / (band.radius + rounding))
        self.result.max_ratio = max(self.result.max_ratio, float(ratio.amax()))
        self.result.ratios = [a + b for a, b in zip(self.result.ratios, count_ratios(ratio), strict=True)]
        self.largest_expected = max(self.largest_expected, float(mid.abs().amax()))
        self.largest_error = max(self.largest_error, float(error.amax()))

    def _count_widths(self, legal: Band, one_ulp: torch.Tensor) -> None:
        width = ((legal.hi - legal.lo) / one_ulp).nan_to_num(0.0, posinf=WIDEST)
        self._widths += torch.bincount(width.clamp_(max=WIDEST).long().flatten(), minlength=WIDEST + 1).cpu()

    def _look_for_signal(self, legal: Band, got: torch.Tensor) -> None:
        """Find out whether zeros, or two neighbouring rows in each other's place, would pass although wrong."""
        if not self._has_signal:
            self._has_signal = bool((legal.lo != 0).any()) or bool((legal.hi != 0).any())
        if self.saturates:
            lo, hi = self._everywhere
            self._everywhere = max(lo, float(legal.lo.max())), min(hi, float(legal.hi.min()))
        if self._zeros_pass:
            self._zeros_pass = bool(((legal.lo <= 0) & (legal.hi >= 0)).all())
        if not self._swap_passes and got.shape[0] > 1:
            upper, lower = Band(legal.lo[:-1], legal.hi[:-1]), Band(legal.lo[1:], legal.hi[1:])
            both = _rows_within(upper, got[1:]) & _rows_within(lower, got[:-1])
            if bool(both.any()):
                self._swap_passes = bool((both & ((upper.lo != lower.lo) | (upper.hi != lower.hi)).any(1)).any())

    def _ask_other_experts(self, legal: Band, rows: torch.Tensor, first_column: int) -> None:
        """Find out whether another expert's answer to the same token would pass in a row's place."""
        if self.other_experts is None or self._other_expert_passes:
            return
        other = self.other_experts[rows]
        has = other >= 0
        if bool(has.any()):
            theirs = self.got[:, first_column : first_column + legal.lo.shape[1]][other[has]].double()
            lo, hi = legal.lo[has], legal.hi[has]
            # Where one value is legal, what passes is the same answer.
            passes = ((lo <= theirs) & (theirs <= hi)).all(1) & (lo != hi).any(1)
            self._other_expert_passes = bool(passes.any())

    def _remember(self, rows: torch.Tensor, columns: torch.Tensor, got: torch.Tensor, band: Band) -> None:
        """Remember illegal elements: of which rows and columns, what was stored there and their Band."""
        self.result.illegal += len(rows)
        if self._outside is None:
            self._outside = torch.zeros(self.got.shape, device=self.got.device)
        legal = store(band, self.contract, self.got.dtype)
        size = torch.maximum(legal.lo.abs(), legal.hi.abs())
        outside = torch.maximum(legal.lo - got, got - legal.hi) / ulp(size, self.got.dtype)
        outside = outside.nan_to_num(torch.inf)
        # An illegal element is outside by more than nothing, however little that is in ulp.
        self._outside[rows, columns] = outside.float().clamp(min=torch.finfo(torch.float32).tiny)
        i = int(outside.argmax())
        if self.worst is None or float(outside[i]) > self.worst.ulp:
            value, lo, hi = (float(t[i]) for t in (got, legal.lo, legal.hi))
            exact = bool(band.lo[i] == band.hi[i])
            self.worst = Worst(float(outside[i]), int(rows[i]), int(columns[i]), value, lo, hi, exact)

    def illegal_mask(self) -> torch.Tensor:
        """Return bool [rows, columns] on the CPU: the illegal elements."""
        return self.outside_ulp() > 0

    def outside_ulp(self) -> torch.Tensor:
        """Return float32 [rows, columns] on the CPU: how many ulp outside the legal set, 0 where legal."""
        return torch.zeros(self.got.shape) if self._outside is None else self._outside.cpu()

    @property
    def vacuous(self) -> str:
        """What wrong output would pass, or "": zeros where the answer is not zero, two rows swapped, another expert's.

        Of a large piece, the sampled rows are asked.
        """
        if self._zeros_pass and self._has_signal:
            return "zeros"
        lo, hi = self._everywhere
        if self.saturates and lo <= hi and self.result.judged > 1:
            return f"{lo:g} everywhere"
        if self._other_expert_passes:
            return "another expert's row"
        return "rows in each other's place" if self._swap_passes else ""

    def finish(self, conditioned: bool = True) -> StageResult:
        """Return the stage's result, its median width filled in."""
        total = int(self._widths.sum())
        if total:
            self.result.width_ulp = float(int((self._widths.cumsum(0) * 2 >= total).nonzero()[0]))
        self.result.conditioned = conditioned
        if conditioned:
            self.result.drift = self.drift
        return self.result


def _places(few: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return where a bool matrix is true: eight elements at a time where it can be, since nearly all are false."""
    if few.shape[1] % 8 or few.device.type != "cpu":
        return few.nonzero(as_tuple=True)
    row, eight = few.view(torch.int64).nonzero(as_tuple=True)
    some, of_eight = few.view(len(few), -1, 8)[row, eight].nonzero(as_tuple=True)
    return row[some], eight[some] * 8 + of_eight


def _rows_within(band: Band, rows: torch.Tensor) -> torch.Tensor:
    """Return bool [rows]: which rows are legal in every column."""
    return ((band.lo <= rows) & (rows <= band.hi)).all(1)
