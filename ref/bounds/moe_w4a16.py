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
from .band import Band, exactly, store, sum_band, weigh_band
from .deferred import Deferred, deferred_dot, deferred_silu_mul, deferred_sum, weighed, whole, worth_it
from .dot import DotWeights, dot_band, dot_weights

__all__ = ["layer_bands"]

AT_ONCE = 1 << 17  # elements of a stage worked on together: they should stay in the cache
DEFERRED_AT_ONCE = 1 << 19  # few passes over them
AT_ONCE_ON_A_GPU = 1 << 26  # there, launches are what takes time
SMALL_WEIGHT = 1 << 17  # elements that are dequantized together
WEIGHTS_ON_A_GPU = 1 << 28


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
    """

    def __init__(self, w: Int4Weight | DenseWeight, contract: Contract, dtype: torch.dtype) -> None:
        experts, N, K = w.shape
        self.w, self.contract, self.dtype = w, contract, dtype
        on_cpu = w.device.type == "cpu"
        self.at_once = max(1, (SMALL_WEIGHT if on_cpu else WEIGHTS_ON_A_GPU) // max(1, N * K))
        self.every = dot_weights(w, contract, dtype) if experts <= self.at_once else None
        self.last: list[int] = []
        self.formed: DotWeights | None = self.every
        self.buffers: DotWeights | None = None
        if on_cpu and self.at_once == 1 and self.every is None:
            shape = (1, N, K)
            self.buffers = DotWeights(torch.empty(shape, dtype=torch.float64), torch.empty(shape))

    def __call__(self, experts: list[int]) -> DotWeights:
        """Return DotWeights [n, N, K] of experts, at most at_once different ones."""
        if self.formed is None or self.last != experts:
            whole = self.every
            if whole is None:
                self.formed = dot_weights(self.w.experts(experts), self.contract, self.dtype, into=self.buffers)
            else:
                self.formed = whole.experts(experts)
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

    def deferred(self, rows: Rows, operand: Band, exact: bool, weight: torch.Tensor | None = None) -> Band | Deferred:
        """Return what `dots` does, its ends left open where these experts' weights are all there at once."""
        if len(rows) <= self.at_once and not exact and worth_it(operand.lo.shape[0], self.w.N):
            counts = [len(of_e) for _, of_e in rows]
            found = deferred_dot(operand, self([e for e, _ in rows]), self.contract, self.dtype, counts)
            if found is not None:
                return found if weight is None else found.weighed(weight)
        return self.dots(rows, operand, exact, weight)


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
        given: the kernel's stored stages among h [R,2I] ([R,I] without up rows), a [R,I], y [R,H], in slot order.
        exact: the data promise exact sums; each element is still checked.
        defer: where h is given, Bands may be Deferred, each valid until the next is asked for.
    Yields:
        The stage's name, rows int64 [n] (routed rows; tokens for "out") and their Band [n, columns].
    """
    T, k = topk_ids.shape
    R, H, dtype = T * k, w2.N, x.dtype
    defer = defer and "h" in given
    on_cpu = x.device.type == "cpu"
    at_once = (DEFERRED_AT_ONCE if defer else AT_ONCE) if on_cpu else AT_ONCE_ON_A_GPU
    row_weight = topk_weights.double().reshape(R, 1)
    of_gemm2 = contract.of_gemm2
    w13_of, w2_of = ExpertWeights(w13, contract, dtype), ExpertWeights(w2, of_gemm2, dtype)
    known_y = "y" in given
    y_lo = y_hi = torch.empty(0)
    if not known_y:
        y_lo = torch.zeros(R, H, dtype=torch.float64, device=x.device)
        y_hi = torch.zeros(R, H, dtype=torch.float64, device=x.device)
    mine = torch.zeros(R, 1, dtype=torch.float64, device=x.device)

    def passed_on(stage: str, rows: torch.Tensor, band: Band | Deferred) -> Band:
        if stage in given:
            return exactly(given[stage][rows])
        return store(whole(band), contract, dtype, stage) if stage in contract.stores else whole(band)

    def of_x(r: torch.Tensor) -> Band:
        if contract.router_weight != "input_dtype":
            return exactly(x[r // k])
        return exactly((x[r // k].float() * row_weight[r].to(dtype).float()).to(dtype))

    gated = w13.N == 2 * w2.K
    defer_silu = defer and gated and contract.activation == SILU  # no other activation's middle is worked out alone
    most = None if on_cpu else min(w13_of.at_once, w2_of.at_once)
    dots13, dots2 = (of_w.deferred if defer else of_w.dots for of_w in (w13_of, w2_of))
    for batch in batches(rows_by_expert(topk_ids, expert_map), max(1, at_once // max(H, w13.N)), most):
        rows = torch.cat([of_e for _, of_e in batch])
        mine[rows] = 1.0
        of_rows = row_weight[rows]
        h = dots13(batch, of_x(rows), exact)
        if contract.router_weight == "input":
            h = weighed(h, of_rows)
        yield "h", rows, h
        known = passed_on("h", rows, h)
        if defer_silu and known.hi is known.lo and not exact and worth_it(len(rows), w2.K):
            a: Band | Deferred = deferred_silu_mul(known.lo, contract, dtype, silu_mul_band)
        else:
            a = silu_mul_band(known, contract, dtype) if gated else activation_band(known, contract)
        yield "a", rows, a
        y = dots2(batch, passed_on("a", rows, a), exact, of_rows if contract.router_weight == "gemm2" else None)
        if contract.router_weight == "gemm2_dtype":  # rounded to D, then multiplied in D by the weight rounded to D
            y = weigh_band(store(whole(y), contract, dtype, "y"), round_in_fp64(of_rows, dtype))
        yield "y", rows, y
        if not known_y:
            y = passed_on("y", rows, y)
            y_lo[rows], y_hi[rows] = y.lo, y.hi

    local = mine.reshape(T, k, 1)
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
        if defer and known_y and not exact and worth_it(len(tokens), H):
            out = deferred_sum(terms.lo, contract, dtype, multiplied, ids)
            if out is not None:
                yield "out", tokens, out
                continue
        yield "out", tokens, sum_band(terms, contract, dtype, multiplied=multiplied, exact=exact, experts=ids)
