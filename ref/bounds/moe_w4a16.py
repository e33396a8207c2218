"""Bands through the MoE layer: the walk from x to out, stage by stage, expert by expert."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..activation import SILU
from ..contracts.contract import Contract
from ..ops.moe_w4a16 import rows_by_expert
from ..rounding import round_in_fp64
from ..weights.dense import DenseWeight
from ..weights.weight import Int4Weight
from .activation import activation_band, silu_mul_band
from .band import Band, exactly, store, sum_band, to_go_on_with, weigh_band
from .deferred import (
    Deferred,
    deferred_dot,
    deferred_near,
    deferred_schedule,
    deferred_silu_mul,
    deferred_sum,
    weighed,
    whole,
    worth_it,
)
from .dot import DotWeights, dot_band, dot_weights
from .near import near_unit, near_values
from .ranks import join_ranks, kept_band, partial_bands

__all__ = ["layer_bands"]

AT_ONCE = 1 << 17  # elements of a stage worked on together: they should stay in the cache
DEFERRED_AT_ONCE = 1 << 19  # few passes over them
AT_ONCE_ON_A_GPU = 1 << 26  # there, launches are what takes time
SMALL_WEIGHT = 1 << 17  # elements that are dequantized together
WEIGHTS_ON_A_GPU = 1 << 28
NEAR_WEIGHTS_ON_A_GPU = 1 << 30  # of two bytes each


Bands = Iterator[tuple[str, torch.Tensor, Band]]  # a stage, some of its rows, and what is legal there
Pieces = Iterator[tuple[str, torch.Tensor, Band | Deferred]]
Rows = list[tuple[int, torch.Tensor]]  # experts, and some rows of each


class ExpertWeights:
    """The dot_weights of a few experts at a time, valid until others are asked for.

    Small weights are dequantized all at once; large ones, on a CPU, expert by expert into the same buffers, and on a
    GPU as many as make few launches of it.

    Args:
        w: [E, N, K].
        contract, dtype: as dot_weights takes them.
        defer: Bands may be Deferred.
    """

    def __init__(
        self, w: Int4Weight | DenseWeight, contract: Contract, dtype: torch.dtype, defer: bool = False
    ) -> None:
        _, N, K = w.shape
        self.w, self.contract, self.dtype = w, contract, dtype
        self.unit = near_unit(w, contract, dtype) if defer else None
        on_cpu = w.device.type == "cpu"
        self.at_once = max(1, (SMALL_WEIGHT if on_cpu else WEIGHTS_ON_A_GPU) // max(1, N * K))
        self.near_at_once = self.at_once if on_cpu else max(1, NEAR_WEIGHTS_ON_A_GPU // max(1, N * K))
        self.every: DotWeights | None = None
        self.last: list[int] = []
        self.near_last: list[int] = []
        self.formed: DotWeights | None = None
        self.near_formed: torch.Tensor | None = None
        self.buffers: DotWeights | None = None

    def __call__(self, experts: list[int]) -> DotWeights:
        """Return DotWeights [n, N, K] of experts, at most at_once different ones."""
        if self.formed is None or self.last != experts:
            count, N, K = self.w.shape
            if count <= self.at_once:
                if self.every is None:
                    self.every = dot_weights(self.w, self.contract, self.dtype)
                self.formed = self.every.experts(experts)
            else:
                if self.buffers is None and self.at_once == 1 and self.w.device.type == "cpu":
                    shape = (1, N, K)
                    self.buffers = DotWeights(torch.empty(shape, dtype=torch.float64), torch.empty(shape))
                self.formed = dot_weights(self.w.experts(experts), self.contract, self.dtype, into=self.buffers)
            self.last = list(experts)
        return self.formed

    def dots(self, rows: Rows, operand: Band, exact: bool, weight: torch.Tensor | None = None) -> Band:
        """Return the Band of the dot products of all these rows, one expert after another.

        Args:
            rows: (expert, rows of it).
            operand: what they multiply, [n, K] in that order.
            exact: the data promise exact sums.
            weight: float64 [n, 1], router weights that enter before the store, or None.
        """
        bands, first = [], 0
        known = operand.hi is operand.lo
        for start in range(0, len(rows), self.at_once):
            some = rows[start : start + self.at_once]
            weights, counts = self([e for e, _ in some]), [len(of_e) for _, of_e in some]
            mine = slice(first, first + sum(counts))
            first = mine.stop
            lo = operand.lo[mine]
            part = Band(lo, lo if known else operand.hi[mine])
            more = {"exact": exact, "counts": counts, "weight": None if weight is None else weight[mine]}
            bands.append(dot_band(part, weights, self.contract, self.dtype, **more))  # type: ignore[arg-type]
        if len(bands) == 1:
            return bands[0]
        return Band(torch.cat([b.lo for b in bands]), torch.cat([b.hi for b in bands]))

    def deferred(
        self, rows: Rows, operand: torch.Tensor, exact: bool, weight: torch.Tensor | None = None
    ) -> Band | Deferred:
        """Return what `dots` does, its ends left open where these experts' weights are all there at once.

        Args:
            rows, exact, weight: as `dots` takes them.
            operand: D [n, K], known.
        """
        if not exact and worth_it(operand.shape[0], self.w.N):
            found, counts, experts = None, [len(of_e) for _, of_e in rows], [e for e, _ in rows]
            if self.unit is not None and len(rows) <= self.near_at_once:
                found = deferred_near(operand, self.near(experts), self.contract, self.dtype, counts)
            elif len(rows) <= self.at_once:
                rest = (self.contract, self.dtype, counts)
                found = deferred_dot(exactly(operand), self(experts), *rest)
                if found is None and weight is None:
                    found = deferred_schedule(operand, self(experts), *rest)
            if found is not None:
                return found if weight is None else found.weighed(weight)
        return self.dots(rows, exactly(operand), exact, weight)

    def near(self, experts: list[int]) -> torch.Tensor:
        """Return near_values [n, N, K] of experts, at most near_at_once different ones."""
        assert self.unit is not None
        if self.near_formed is None or self.near_last != experts:
            into = self.near_formed if self.near_at_once == 1 else None
            self.near_formed = near_values(self.w.experts(experts), self.contract, self.dtype, self.unit, into)
            self.near_last = list(experts)
        return self.near_formed


def batches(rows: Rows, at_once: int, experts: int | None = None) -> Iterator[Rows]:
    """Split the experts into runs of at most `at_once` rows; one with more is cut into equal pieces.

    Args:
        rows: of each expert.
        at_once: rows that make a run full; it also ends with a piece of more than half as many.
        experts: how many of them make one full, too; None: any number.
    """
    batch: Rows = []
    size = 0
    for e, of_e in rows:
        pieces = max(1, -(-len(of_e) // at_once))
        for piece in of_e.split(max(1, -(-len(of_e) // pieces))):
            if batch and size + len(piece) > at_once:
                yield batch
                batch, size = [], 0
            batch.append((e, piece))
            size += len(piece)
            if size >= at_once or 2 * len(piece) > at_once or len(batch) == experts:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def layer_bands(
    x: torch.Tensor,
    w13: Int4Weight | DenseWeight,
    w2: Int4Weight | DenseWeight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    contract: Contract,
    *,
    given: dict[str, torch.Tensor],
    expert_map: torch.Tensor | None = None,
    exact: bool = False,
    defer: bool = False,
) -> Pieces:
    """Walk one MoE layer and yield (stage, rows, Band): what is legal there, before the store rounding.

    A stage that the kernel gave is the exact input of the next one, so widths stay a few ulp; a stage that it did not
    give goes on as a Band, rounded where the contract stores it. Memory: one expert's weights, AT_ONCE elements of
    Bands, and for kernels that do not give y, its Band [T*k, H].

    Args:
        x, w13, w2, topk_weights, topk_ids, expert_map: as moe_w4a16's.
        contract: what is allowed.
        given: the kernel's stored stages among h [R,2I] ([R,I] without up rows), a [R,I], y [R,H], in slot order, and
            partial [ranks*T,H] under a contract with ranks.
        exact: the data promise exact sums; each element is still checked.
        defer: where h is given, Bands may be Deferred, each valid until the next is asked for.
    Yields:
        The stage's name, rows int64 [n] (routed rows; tokens for "out"; rank*T + token for "partial") and their Band
        [n, columns].
    """
    T, k = topk_ids.shape
    R, H, dtype = T * k, w2.N, x.dtype
    defer = defer and "h" in given
    on_cpu = x.device.type == "cpu"
    at_once = (DEFERRED_AT_ONCE if defer else AT_ONCE) if on_cpu else AT_ONCE_ON_A_GPU
    row_weight = topk_weights.double().reshape(R, 1)
    of_gemm2 = contract.of_gemm2
    w13_of, w2_of = (
        ExpertWeights(w13, contract, dtype, defer),
        ExpertWeights(w2, of_gemm2, dtype, defer and "a" in given),
    )
    known_y = "y" in given
    y_lo = y_hi = torch.empty(0)
    if not known_y:
        y_lo = torch.zeros(R, H, dtype=torch.float64, device=x.device)
        y_hi = torch.zeros(R, H, dtype=torch.float64, device=x.device)
    mine = torch.zeros(R, 1, dtype=torch.float64, device=x.device)

    def passed_on(stage: str, rows: torch.Tensor, band: Band | Deferred) -> Band:
        if stage in given:
            return exactly(given[stage][rows])
        band = to_go_on_with(whole(band))
        return store(band, contract, dtype, stage) if stage in contract.stores else band

    def of_x(r: torch.Tensor) -> torch.Tensor:
        if contract.router_weight != "input_dtype":
            return x[r // k]
        return (x[r // k].float() * row_weight[r].to(dtype).float()).to(dtype)

    gated = w13.N == 2 * w2.K
    defer_silu = defer and gated and contract.activation == SILU  # no other activation's middle is worked out alone
    most = None if on_cpu else min(w.near_at_once if w.unit else w.at_once for w in (w13_of, w2_of))
    for batch in batches(rows_by_expert(topk_ids, expert_map), max(1, at_once // max(H, w13.N)), most):
        rows = torch.cat([of_e for _, of_e in batch])
        mine[rows] = 1.0
        of_rows = row_weight[rows]
        h = w13_of.deferred(batch, of_x(rows), exact) if defer else w13_of.dots(batch, exactly(of_x(rows)), exact)
        if contract.router_weight == "input":
            h = weighed(h, of_rows)
        yield "h", rows, h
        known = passed_on("h", rows, h)
        if defer_silu and known.hi is known.lo and not exact and worth_it(len(rows), w2.K):
            a: Band | Deferred = deferred_silu_mul(known.lo, contract, dtype, silu_mul_band)
        else:
            a = silu_mul_band(known, contract, dtype) if gated else activation_band(known, contract)
        yield "a", rows, a
        late = of_rows if contract.router_weight == "gemm2" else None
        if defer and "a" in given:
            y = w2_of.deferred(batch, given["a"][rows], exact, late)
        else:
            y = w2_of.dots(batch, passed_on("a", rows, a), exact, late)
        if contract.router_weight == "gemm2_dtype":  # rounded to D, then multiplied in D by the weight rounded to D
            y = weigh_band(store(whole(y), contract, dtype, "y"), round_in_fp64(of_rows, dtype))
        yield "y", rows, y
        if not known_y:
            y = passed_on("y", rows, y)
            y_lo[rows], y_hi[rows] = y.lo, y.hi

    local = mine.reshape(T, k, 1)
    rank = torch.empty(0) if contract.ranks is None else contract.ranks.rank_of(topk_ids, int(w13.shape[0]))
    multiplied = contract.router_weight == "unpermute"
    factor = row_weight.reshape(T, k, 1) * local if multiplied else local
    for tokens in torch.arange(T, device=x.device).split(max(1, at_once // (max(1, k) * H))):
        if known_y:
            y64 = given["y"].reshape(T, k, H)[tokens].double() * factor[tokens]
            y64 = torch.where(local[tokens] == 0, 0.0, y64)  # rows of slots that do nothing may hold anything, even NaN
            terms = Band(y64, y64)
        else:
            ends = [side.reshape(T, k, H)[tokens] * factor[tokens] for side in (y_lo, y_hi)]
            terms = Band(torch.minimum(*ends), torch.maximum(*ends))
        ids = topk_ids[tokens]
        if contract.ranks is not None and contract.ranks.partial:
            of_tokens = partial_bands(
                terms, rank[tokens], contract, dtype, multiplied=multiplied, exact=exact, experts=ids
            )
            kept = []
            for r, band in enumerate(of_tokens):
                rows = r * T + tokens
                yield "partial", rows, band
                stored = given.get("partial")
                kept.append(kept_band(band, contract, dtype) if stored is None else exactly(stored[rows]))
            yield "out", tokens, join_ranks(kept, contract, dtype)
            continue
        if defer and known_y and not exact and worth_it(len(tokens), H):
            out = deferred_sum(terms.lo, contract, dtype, multiplied, ids)
            if out is not None:
                yield "out", tokens, out
                continue
        yield "out", tokens, sum_band(terms, contract, dtype, multiplied=multiplied, exact=exact, experts=ids)
