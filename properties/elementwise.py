"""Builders for the ops without a weight: routing, dispatch, activation and the int8 quantizer."""

from __future__ import annotations

import numpy as np
import torch

from moeracle.ref.dispatch import moe_permute

from .case import Case
from .data import X_TINY, activations, bell, spread_out, tiny
from .exact import ALL_CODES, GemmPlan
from .generator import FORMATS, Bits, Format, Stream, integer_bits, power_bits, to_tensor
from .inputs import DYADIC_STEPS, EXACT, expert_map, rows_of, strided
from .problem import Problem
from .routings import draw_topk

NONFINITE_ROWS = 6  # rows take turns: clean, one NaN, one +inf, one -inf, all -inf, all NaN


def build_topk(case: Case) -> Problem:
    """topk_softmax: logits [T, E], top_k, renormalize."""
    fmt, stream = FORMATS[case.dtype], Stream(case.seed, "logits")
    logits = to_tensor(_logits(case, fmt, stream), fmt)
    if case.data == "nonfinite":
        _spoil(logits, stream, case.seed)
    return Problem(case, {"logits": logits, "top_k": case.k, "renormalize": "renorm" in case.flags})


def _logits(case: Case, fmt: Format, stream: Stream) -> Bits:
    shape = (case.T, case.E)
    if case.data == "ties":  # four values, and every third row all equal
        values = stream.below(shape, 4) - 1
        values[::3] = values[::3, :1]
        return integer_bits(values, -1, fmt)
    if case.data == "wide":
        return spread_out(stream, fmt, shape, -12, 6)
    bits = bell(stream, fmt, shape)
    if case.data == "outliers":  # one expert far ahead: the others' scores almost vanish
        bits[np.arange(case.T), stream.below((case.T,), case.E)] = integer_bits(np.array([24]), 0, fmt)[0]
    return bits


def _spoil(logits: torch.Tensor, stream: Stream, seed: int) -> None:
    T, E = logits.shape
    at = stream.below((T,), E)
    for row in range(T):
        kind = (row + seed) % NONFINITE_ROWS
        value = float(["0", "nan", "inf", "-inf", "-inf", "nan"][kind])
        if kind >= 4:
            logits[row] = value
        elif kind:
            logits[row, int(at[row])] = value


def build_align(case: Case) -> Problem:
    """moe_align_block_size: topk_ids [T, k], block_size, num_experts, expert_map or None."""
    ids, _ = draw_topk(case.routing, case.T, case.E, case.k, case.seed)
    args = {"topk_ids": ids, "block_size": case.B, "num_experts": case.E, "expert_map": expert_map(case)}
    return Problem(case, args, exact=True)


def build_permute(case: Case) -> Problem:
    """moe_permute: x [T, K], topk_ids [T, k], num_experts, expert_map or None."""
    ids, _ = draw_topk(case.routing, case.T, case.E, case.k, case.seed)
    x = rows_of(_rows(case, case.T), case)
    args = {"x": x, "topk_ids": ids, "num_experts": case.E, "expert_map": expert_map(case)}
    return Problem(case, args, exact=True)


def build_unpermute(case: Case) -> Problem:
    """moe_unpermute: y [R, K] in expert order, topk_weights [T, k], inv [R]; ignored slots' rows are zero."""
    T, k, K = case.T, case.k, case.K
    exact = case.data in EXACT
    ids, weights = draw_topk(case.routing, T, case.E, k, case.seed, dyadic_steps=DYADIC_STEPS if exact else 0)
    of_slot = _rows(case, T * k).reshape(T, k, K)
    if case.data == "cancelling":  # slot 2i+1 undoes slot 2i, but for an ulp in half of the elements
        pairs, fmt = k // 2, FORMATS[case.dtype]
        ulp: Bits = (Stream(case.seed, "ulp").bits((T, pairs, K), 8) & 1).astype(fmt.uint)
        of_slot[:, 1 : 2 * pairs : 2] = (of_slot[:, 0 : 2 * pairs : 2] ^ fmt.uint(fmt.sign)) + ulp
        weights[:, 1 : 2 * pairs : 2] = weights[:, 0 : 2 * pairs : 2]
    y_of_slot = to_tensor(of_slot.reshape(T * k, K), FORMATS[case.dtype])
    y_of_slot[ids.reshape(-1) < 0] = 0
    _, _, inv = moe_permute(torch.empty(T, 0), ids, case.E)
    y = torch.empty_like(y_of_slot)
    y[inv.long()] = y_of_slot
    return Problem(case, {"y": y, "topk_weights": weights, "inv": inv}, {"topk_ids": ids}, exact)


def _rows(case: Case, rows: int) -> Bits:
    plan = None
    if case.data in EXACT:
        plan = GemmPlan(True, 127, 1, 0, ALL_CODES, signed=case.data == "integers")
    recipe = "normal" if case.data == "cancelling" else case.data
    return activations(recipe, FORMATS[case.dtype], rows, case.K, case.seed, plan=plan, variant=X_TINY)


def build_silu(case: Case) -> Problem:
    """silu_and_mul: h [T, 2I], gate columns first."""
    fmt, shape = FORMATS[case.dtype], (case.T, case.I)
    gate, up = _gate_and_up(case.data, fmt, shape, Stream(case.seed, "gate"), Stream(case.seed, "up"))
    h = to_tensor(np.concatenate([gate, up], axis=1), fmt)
    return Problem(case, {"h": strided(h, case)}, exact=case.data in EXACT)


def _gate_and_up(recipe: str, fmt: Format, shape: tuple[int, int], gates: Stream, ups: Stream) -> tuple[Bits, Bits]:
    half = fmt.mantissa == 10
    if recipe == "allgates":  # times 1, so that what is stored is silu itself
        return every_finite(gates, fmt, shape), np.full(shape, power_bits(0, fmt), fmt.uint)
    if recipe in EXACT:  # gates in multiples of 128: silu is ReLU, and every product fits fp16
        low = 0 if recipe == "samesign" else -15
        gate, up = low + gates.below(shape, 16 - low), low + ups.below(shape, 16 - low)
        return integer_bits(gate, 7, fmt), integer_bits(up, 0, fmt)
    if recipe == "wide":  # gates to beyond ±100
        return spread_out(gates, fmt, shape, -12 if half else -24, 8), spread_out(
            ups, fmt, shape, -8 if half else -24, 5 if half else 24
        )
    gate, up = bell(gates, fmt, shape, 1), bell(ups, fmt, shape)
    if recipe == "outliers":
        gate = np.where(gates.bits(shape, 8) < 8, bell(gates, fmt, shape, 5), gate)
        up = np.where(ups.bits(shape, 8) < 8, bell(ups, fmt, shape, 5), up)
    elif recipe == "subnormal":  # one factor of each product is subnormal
        first = gates.bits(shape, 8) < 128
        gate = np.where(first, tiny(gates, fmt, shape), gate)
        up = np.where(first, up, tiny(ups, fmt, shape))
    return gate, up


def every_finite(stream: Stream, fmt: Format, shape: tuple[int, int]) -> Bits:
    """Return all finite patterns of a 16-bit format in turn (65,280 of bf16, 63,488 of fp16), from any one on."""
    patterns = np.arange(1 << fmt.width, dtype=np.int64)
    finite = patterns[(patterns & (fmt.sign - 1)) >> fmt.mantissa < (fmt.sign >> fmt.mantissa) - 1]
    bits: Bits = np.resize(np.roll(finite, int(stream.below((1,), len(finite))[0])), shape).astype(fmt.uint)
    return bits


def build_quantize(case: Case) -> Problem:
    """quantize_int8: w [V, K], group_size."""
    fmt, stream, shape = FORMATS[case.dtype], Stream(case.seed, "w"), (case.V, case.K)
    if case.data == "integers":  # multiples of s/2 with the largest at 127 s: half of them are ties
        values = stream.below(shape, 509) - 254
        values[:, :: case.K if case.G == -1 else case.G] = 254
        lower: Bits = (stream.below((case.V, 1), 6) << fmt.mantissa).astype(fmt.uint)  # a power of two for each row
        bits = integer_bits(values, -1, fmt)
        bits = np.where(values == 0, bits, bits - lower)
    elif case.data == "wide":
        bits = spread_out(stream, fmt, shape, -14 if fmt.mantissa == 10 else -30, 10)
    elif case.data == "subnormal":  # and a row of zeros, whose amax is below the quantizer's floor
        bits = tiny(stream, fmt, shape)
        bits[0] = 0
    elif case.data == "outliers":
        bits = activations("outliers", fmt, *shape, case.seed)
    else:
        bits = bell(stream, fmt, shape, -5)
    return Problem(case, {"w": to_tensor(bits, fmt), "group_size": case.G}, exact=case.data == "integers")
