"""What a kernel stores that sums exactly and rounds correctly wherever its contract rounds: one value an element.

    dot products and top-k sums     exact, in integers
    silu, times up, times the router weight, plus bias    each correctly rounded to fp32, in the contract's order
    weights cast to D, and every store                    correctly rounded to D, in the contract's direction

Rounding is monotone, so this value lies in every legal set, whatever order of accumulation the contract allows. Weights
are unpacked and rows routed by `moeracle.ref`: where that changes, these values do, which is what golden data are for.
A sum that is zero is +0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch

from moeracle.ref.bounds.scheduled import zeros_read
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.errors import require, unknown
from moeracle.ref.weights.weight import Int4Weight

from ..cases.case import Problem
from ..cases.optable import OPS
from ..cases.record import record_of
from .rational import Scaled, as_tensor, dots, nearest, scaled, scaled_floats
from .transcendental import activated_fp32

__all__ = ["derive"]

Derived = dict[str, torch.Tensor]
Rounding = Callable[[Fraction | float], float]

MOST = 20_000_000  # products that a derivation works out one by one: some seconds


def derive(problem: Problem, contract: Contract) -> Derived:
    """Return the correctly rounded results of a problem under a contract, by name.

    Args:
        problem: with its tensors on the CPU; values finite, except topk_softmax's logits and silu_and_mul's gates.
        contract: its roundings count, its accumulator and order do not.
    Returns:
        Contiguous tensors by result or stage name, in the dtypes that a kernel returns.
    Raises:
        ValueError: an unknown op, values that cannot be summed, or a case of more than MOST products.
    """
    case = problem.case
    if case.op not in OPS:
        raise unknown("golden: op", case.op, OPS)
    record = record_of(case.op)
    require(record.cost(case) <= MOST, f"golden: {case} is too large to derive, must be at most {MOST:,} products")
    try:
        return {name: t.contiguous() for name, t in record.derive(problem, contract).items()}
    except OverflowError:
        raise ValueError(f"golden: {case} overflows on the way; must stay finite to have one value") from None


def to_fp32(value: Fraction | float) -> float:
    """Round once to fp32, to nearest."""
    return nearest(value, torch.float32)


def store(contract: Contract, dtype: torch.dtype, stage: str = "out") -> Rounding:
    """Return the rounding of a stage's store."""
    return functools.partial(nearest, dtype=dtype, mode=contract.rounding(stage, dtype))


def int4_values(w: Int4Weight, contract: Contract, dtype: torch.dtype) -> Scaled:
    """Return the weights [N, K] as the contract's dot products see them: (u-z)*s exactly, or rounded to D ("cast").

    Args:
        w: one matrix.
    """
    codes, zeros = w.codes().tolist(), zeros_read(w, contract)
    groups, of = w.scale.shape[-1], w.columns().tolist()
    late, cast = contract.after_store(groups), contract.weight == "cast" and not contract.after_sum(groups)
    scale = torch.ones_like(w.scale) if late else w.scale.to(dtype) if contract.scale_cast else w.scale
    z = [[w.middle] * w.scale.shape[-1]] * w.N if zeros is None else zeros.tolist()
    s = scale.double().tolist()

    @functools.cache
    def value(code: int, scale: float) -> float:
        exact = code * scale  # at most 8 + 24 bits: exact in fp64
        return nearest(exact, dtype, contract.weight_rounding) if cast else exact

    flat = [value(u - z[n][of[k]], s[n][of[k]]) for n, row in enumerate(codes) for k, u in enumerate(row)]
    return scaled_floats(flat, (w.N, w.K))


def int4_sums(
    a: torch.Tensor, w: Int4Weight, contract: Contract, dtype: torch.dtype, factors: list[Fraction] | None = None
) -> list[list[Fraction]]:
    """Return a w^T before the store, rounded where the contract rounds on the way, else exactly.

    Args:
        a: [M, K].
        w: one matrix.
        factors: of each row, a router weight that enters before a store: of each part where the contract weighs parts.
    """
    cut, values, rows = contract.parts, int4_values(w, contract, dtype), scaled(a)
    keep = store(contract, dtype)
    pieces = [
        dots(Scaled(rows.whole[:, at], rows.exponent), Scaled(values.whole[:, at], values.exponent)).fractions()
        for at in ([slice(0, w.K)] if cut is None else cut.inputs(w.K))
    ]
    of_parts = factors if contract.weighs_parts else None
    if cut is not None and cut.kept == "dtype":
        pieces = [[[Fraction(keep(y)) for y in row] for row in _weighed(piece, of_parts)] for piece in pieces]
    add = keep if cut is not None and cut.add == "dtype" else (lambda y: y)
    total = pieces[0]
    for piece in pieces[1:]:
        both = zip(total, piece, strict=True)
        total = [[Fraction(add(x + y)) for x, y in zip(one, two, strict=True)] for one, two in both]
    if contract.after_store(w.scale.shape[-1]):
        s = [Fraction(v) for v in w.scale.to(dtype).double().flatten().tolist()]
        total = [[Fraction(keep(y)) * f for y, f in zip(row, s, strict=True)] for row in total]
    if w.bias is not None:
        first = (lambda y: Fraction(keep(y))) if contract.bias != "sum" else (lambda y: y)
        biases = _weighed([[Fraction(b) for b in w.bias.double().tolist()]] * len(total), of_parts)
        total = [
            [Fraction(to_fp32(first(y) + b)) for y, b in zip(row, bias, strict=True)]
            for row, bias in zip(total, biases, strict=True)
        ]
    return total if contract.weighs_parts else _weighed(total, factors)


def _weighed(rows: list[list[Fraction]], factors: list[Fraction] | None) -> list[list[Fraction]]:
    """Return rows times their router weights, in fp32."""
    if factors is None:
        return rows
    return [[Fraction(to_fp32(y * f)) for y in row] for row, f in zip(rows, factors, strict=True)]


def rows_of_floats(rows: Iterable[Iterable[Fraction]], rounding: Rounding) -> list[list[float]]:
    """Round each value of some rows."""
    return [[rounding(value) for value in row] for row in rows]


def biased(
    sums: list[list[Fraction]], N: int, bias: torch.Tensor | None, contract: Contract, dtype: torch.dtype
) -> torch.Tensor:
    """Return dot products [rows, N], plus bias [N] where there is one, stored."""
    keep = store(contract, dtype)
    if bias is None:
        return as_tensor(rows_of_floats(sums, keep), N, dtype)
    add = [Fraction(b) for b in bias.double().tolist()]
    first = (lambda y: Fraction(keep(y))) if contract.bias != "sum" else (lambda y: y)
    rows = [[keep(to_fp32(first(y) + b)) for y, b in zip(row, add, strict=True)] for row in sums]
    return as_tensor(rows, N, dtype)


def weighed(
    rows: list[list[Fraction]],
    factors: list[float] | None,
    contract: Contract,
    dtype: torch.dtype,
    stage: str = "out",
) -> list[list[float]]:
    """Return GEMM2's stored rows: times the router weight in fp32 before the store, or in D after it.

    Args:
        rows: exact sums.
        factors: one router weight a row, or None.
    """
    keep = store(contract, dtype, stage)
    if factors is None:
        return rows_of_floats(rows, keep)
    pairs = zip(rows, factors, strict=True)
    if contract.router_weight == "gemm2_dtype":
        in_d = [(row, Fraction(nearest(f, dtype))) for row, f in pairs]
        return [[keep(to_fp32(Fraction(keep(y)) * f)) for y in row] for row, f in in_d]
    return [[keep(to_fp32(y * Fraction(f))) for y in row] for row, f in pairs]


def slot_sum(
    terms: list[list[Fraction]],
    factors: list[Fraction],
    H: int,
    contract: Contract,
    dtype: torch.dtype,
    multiplied: bool,
) -> list[float]:
    """Return one token's stored sum over its slots.

    Args:
        terms: a row of H values for each slot.
        factors: what each slot is multiplied by.
        multiplied: the factors are router weights, applied here; otherwise they only say which slots count.
    """
    keep = store(contract, dtype)
    if not contract.sum_in_dtype(len(terms)):
        return [keep(sum((row[n] * f for row, f in zip(terms, factors, strict=True)), Fraction(0))) for n in range(H)]
    total = [0.0] * H
    for row, f in zip(terms, factors, strict=True):
        for n in range(H):
            term = keep(to_fp32(row[n] * f)) if multiplied else row[n] * f
            total[n] = keep(Fraction(total[n]) + Fraction(term))
    return total


def tiny_sums(x: torch.Tensor, w: torch.Tensor) -> list[float]:
    """Return x·w of each token, correctly rounded to fp32."""
    return [to_fp32(row[0]) for row in dots(scaled(x), scaled(w.reshape(1, -1))).fractions()]


def activated(
    h: torch.Tensor, contract: Contract, dtype: torch.dtype, stored: bool, stage: str = "out", gated: bool = True
) -> torch.Tensor:
    """Return silu(gate) * up: silu rounded to fp32 (and to D where the contract says so), the product to fp32.

    Of another activation: that in silu's place, its limits kept, and up + 1 rounded to fp32.

    Args:
        h: [R, 2I], or [R, I] where it is not gated.
        stored: round the product to D; otherwise it stays fp32.
        stage: whose store that is.
        gated: whether there is an up to multiply with.
    """
    I, keep, way = h.shape[1] // (1 + gated), store(contract, dtype, stage), contract.silu_rounding(dtype)
    how, limit = contract.activation, contract.activation.limit
    keep_silu = None if way is None else functools.partial(nearest, dtype=dtype, mode=way)
    rows = []
    for row in h.double().tolist():
        products = []
        for gate, up in zip(row[:I], row[I:] if gated else [1.0] * I, strict=True):
            if limit is not None:
                gate = gate if how.after else min(gate, limit)
                up = min(max(up, -limit), limit) if gated else up
            s = activated_fp32(gate, how)
            s = min(s, limit) if how.after and limit is not None else s
            up = _kept(up + how.up, to_fp32) if how.up and gated else up
            if keep_silu is not None and gated:
                s = _kept(s, keep_silu)
            products.append(_kept(s * up, to_fp32))  # at most 24 + 24 bits: exact in fp64
        rows.append([_kept(p, keep) for p in products] if stored else products)
    return as_tensor(rows, I, dtype if stored else torch.float32)


def _kept(value: float, rounding: Rounding) -> float:
    """Round a value; zeros keep their sign, and what is not finite stays."""
    return rounding(value) if value and math.isfinite(value) else value
