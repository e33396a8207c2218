"""Bands of the shared expert: the dense gated MLP stage by stage, and the gate of one dot product."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..contracts.accumulators import elsewhere
from ..contracts.contract import Contract
from ..weights.weight import Int4Weight
from .activation import silu_mul_band
from .band import TINY, Band, exactly, store, to_fp32, to_go_on_with
from .dot import DotWeights, dot_band, dot_weights
from .moe_w4a16 import Bands
from .scheduled import Operands

__all__ = ["gate_band", "shared_expert_bands", "sigmoid_band", "tiny_dot_band"]

AT_ONCE = 512  # tokens worked on together
TINY_DOT = "grouped,accumulator=fp32"  # the contract of a product with one column, unless another is named


def tiny_dot_band(
    x: torch.Tensor, w: torch.Tensor, contract: Contract, *, sigmoid: bool = False, exact: bool = False
) -> Band:
    """Return the Band of x·w before its cast, [T, 1]: exact products, added in fp32 as the contract adds.

    Args:
        x: [T, K] of D.
        w: [K] or [1, K] of D.
        contract: accumulator, depth, ftz and schedule are read, the latter as this sum's own.
        sigmoid: apply it to the fp32 sum.
        exact: the data promise exact sums; each element is still checked.
    Returns:
        Band [T, 1].
    """
    values = w.reshape(1, -1).double()
    plain = replace(contract.unscheduled, weight="cast", zero_offset=0, parts=None, deterministic=True)
    rules = replace(plain, schedule=contract.schedule)
    operands = None if rules.schedule is None else Operands(w.reshape(1, -1))
    dot = to_fp32(dot_band(exactly(x), DotWeights(values, values.abs().float(), operands), rules, x.dtype, exact=exact))
    return sigmoid_band(dot, contract) if sigmoid else dot


def sigmoid_band(x: Band, contract: Contract) -> Band:
    """Return the Band of 1 / (1 + exp(-x)) in fp32, of values or of a Band.

    As silu, whose factor it is: relative error (8 + 1.2|x| sigma(-x)) * 2^-23, none from 32 on, below -87 perhaps 0.

    Args:
        x: Band of any shape, of values in fp32.
        contract: its ftz is read.
    Returns:
        Band of x's shape.
    """
    lo, hi = _sigmoid_range(x.lo, contract), _sigmoid_range(x.hi, contract)
    return to_fp32(Band(lo.lo, hi.hi))


def _sigmoid_range(x: torch.Tensor, contract: Contract) -> Band:
    x = x.clamp(min=-800)
    s = torch.sigmoid(x)
    error = torch.where(x < 32, s * ((8 + 1.2 * x.abs() * (1 - s)) * 2.0**-23), 0.0)
    radius = error + torch.where((s < 2.0**-152) | (x >= 32), 0.0, TINY)
    vanishes = x < -87.3
    if contract.ftz:
        vanishes = vanishes | (s < 2.0**-125)
    return Band(torch.where(vanishes, 0.0, s - radius), s + radius)


def gate_band(y: Band, dot: Band, contract: Contract, dtype: torch.dtype) -> Band:
    """Return the Band of the gated output before its store.

    fused: D(y) * D(sigmoid(dot));  unfused: D(y) * D(sigmoid(D(dot)));  fp32: y * sigmoid(dot), y as `stores` has it

    Args:
        y: [T, H], sums in fp32.
        dot: [T, 1], likewise.
        contract: its gate is read.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
    Returns:
        Band [T, H].
    """
    if contract.gate == "unfused":
        dot = store(dot, contract, dtype, "y")
    s = sigmoid_band(dot, contract)
    if contract.gate != "fp32":
        y, s = store(y, contract, dtype, "y"), store(s, contract, dtype, "y")
    ends = [y.lo * s.lo, y.lo * s.hi, y.hi * s.lo, y.hi * s.hi]  # s is not negative, y may be
    return to_fp32(Band(torch.stack(ends).amin(0), torch.stack(ends).amax(0)))


def shared_expert_bands(
    x: torch.Tensor,
    w_gate_up: Int4Weight,
    w_down: Int4Weight,
    gate_weight: torch.Tensor | None,
    contract: Contract,
    *,
    given: dict[str, torch.Tensor],
    exact: bool = False,
) -> Bands:
    """Walk the shared expert and yield (stage, tokens, Band): what is legal there, before the store rounding.

    A stage that the kernel gave is the exact input of the next one; h and a that it did not give go on as Bands,
    rounded where the contract stores them.

    Args:
        x, w_gate_up, w_down, gate_weight: as shared_expert's.
        contract: what is allowed; `gate` says where the gate rounds.
        given: the kernel's stored stages among h [T,2I], a [T,I], y [T,H] (before the gate).
        exact: the data promise exact sums; each element is still checked.
    Yields:
        The stage's name, tokens int64 [n] and the stage's Band [n, columns].
    """
    dtype = x.dtype
    of_gemm2 = contract.of_gemm2
    up, down = dot_weights(w_gate_up, contract, dtype), dot_weights(w_down, of_gemm2, dtype)
    other = elsewhere(contract.accumulator)  # a dot of one column is added there
    of_gate = replace(
        contract.unscheduled,
        weight="cast",
        accumulator=other,
        depth=None,
        parts=None,
        deterministic=True,
        schedule=contract.gate_schedule,
    )

    def passed_on(stage: str, tokens: torch.Tensor, band: Band) -> Band:
        if stage in given:
            return exactly(given[stage][tokens])
        band = to_go_on_with(band)
        return store(band, contract, dtype, stage) if stage in contract.stores else band

    for tokens in torch.arange(x.shape[0], device=x.device).split(AT_ONCE):
        h = dot_band(exactly(x[tokens]), up, contract, dtype, exact=exact)
        yield "h", tokens, h
        a = silu_mul_band(passed_on("h", tokens, h), contract, dtype)
        yield "a", tokens, a
        y = dot_band(passed_on("a", tokens, a), down, of_gemm2, dtype, exact=exact)
        yield "y", tokens, y
        y = passed_on("y", tokens, y)  # stored once more without a gate, which changes nothing
        if gate_weight is not None:
            y = gate_band(y, tiny_dot_band(x[tokens], gate_weight, of_gate, exact=exact), contract, dtype)
        yield "out", tokens, y
