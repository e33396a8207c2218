"""The correctly rounded MoE layer, stage by stage under a contract, and the table of all derivations."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.errors import unknown
from moeracle.ref.moe import rows_by_expert

from ..problem import Problem
from . import derive as plain
from .derive import Derived, Rounding, int4_values, store, to_fp32
from .rational import as_tensor, dots, nearest, scaled
from .transcendental import silu_fp32


def derive_silu(problem: Problem, contract: Contract) -> Derived:
    """silu(gate) * up, stored."""
    h = problem.args["h"]
    return {"out": silu_and_mul(h, contract, h.dtype, True)}


def silu_and_mul(h: torch.Tensor, contract: Contract, dtype: torch.dtype, stored: bool) -> torch.Tensor:
    """Return silu(gate) * up: silu rounded to fp32 (and to D where the contract says so), the product to fp32.

    Args:
        h: [R, 2I].
        stored: round the product to D; otherwise it stays fp32.
    """
    I, keep = h.shape[1] // 2, store(contract, dtype)
    rows = []
    for row in h.double().tolist():
        products = []
        for gate, up in zip(row[:I], row[I:], strict=True):
            s = silu_fp32(gate)
            if contract.silu == "rounded":
                s = _kept(s, keep)
            products.append(_kept(s * up, to_fp32))  # 24 + 11 bits: exact in fp64
        rows.append([_kept(p, keep) for p in products] if stored else products)
    return as_tensor(rows, I, dtype if stored else torch.float32)


def _kept(value: float, rounding: Rounding) -> float:
    """Round a value; zeros keep their sign, and what is not finite stays."""
    return rounding(value) if value and math.isfinite(value) else value


def derive_moe(problem: Problem, contract: Contract) -> Derived:
    """Each stage from the one before as it is stored; only the stages that the contract stores are returned."""
    x, w13, w2, topk_weights, topk_ids = (problem.args[n] for n in ("x", "w13", "w2", "topk_weights", "topk_ids"))
    dtype, (T, k), H, I = x.dtype, topk_ids.shape, w2.N, w2.K
    R, keep = T * k, store(contract, dtype)
    factor = [Fraction(f) for f in topk_weights.double().flatten().tolist()]
    h, a = torch.zeros(R, 2 * I, dtype=dtype), torch.zeros(R, I, dtype=dtype)
    y_rows: list[list[Fraction]] = [[Fraction(0)] * H] * R
    mine = [Fraction(0)] * R
    for e, rows in rows_by_expert(topk_ids):
        slots = rows.tolist()
        sums = dots(scaled(x[rows // k]), int4_values(w13.expert(e), contract, dtype)).fractions()
        if contract.router_weight == "input":
            sums = [[Fraction(to_fp32(v * factor[r])) for v in row] for r, row in zip(slots, sums, strict=True)]
        h_rounding, h_dtype = (keep, dtype) if "h" in contract.stores else (to_fp32, torch.float32)
        h_e = as_tensor([[h_rounding(v) for v in row] for row in sums], 2 * I, h_dtype)
        a_e = silu_and_mul(h_e, contract, dtype, "a" in contract.stores)
        h[rows], a[rows] = h_e.to(dtype), a_e.to(dtype)
        y_e = dots(scaled(a_e), int4_values(w2.expert(e), contract, dtype)).fractions()
        for r, row in zip(slots, y_e, strict=True):
            y_rows[r], mine[r] = _finished(row, factor[r], contract, dtype), Fraction(1)
    y = as_tensor([[nearest(v, dtype, contract.store_rounding) for v in row] for row in y_rows], H, dtype)
    multiplied = contract.router_weight == "unpermute"
    factors = [f * m for f, m in zip(factor, mine, strict=True)] if multiplied else mine
    out = [
        plain.slot_sum(y_rows[t * k : t * k + k], factors[t * k : t * k + k], H, contract, dtype, multiplied)
        for t in range(T)
    ]
    stages = {"h": h, "a": a, "y": y, "out": as_tensor(out, H, dtype)}
    return {name: stage for name, stage in stages.items() if name in contract.stores}


def _finished(row: list[Fraction], factor: Fraction, contract: Contract, dtype: torch.dtype) -> list[Fraction]:
    """Return one row of y as the top-k sum reads it: weighed where GEMM2 does that, rounded where it is stored."""
    in_gemm2 = contract.router_weight in ("gemm2", "gemm2_dtype")
    if "y" in contract.stores:
        stored = plain.weighed([row], [float(factor)] if in_gemm2 else None, contract, dtype)[0]
        return [Fraction(v) for v in stored]
    return [Fraction(to_fp32(v * factor)) for v in row] if in_gemm2 else row


DERIVATIONS: dict[str, Callable[[Problem, Contract], Derived]] = {
    "unpack_int4": plain.derive_unpack,
    "dequantize_int4": plain.derive_dequantize,
    "topk_softmax": plain.derive_topk,
    "moe_align_block_size": plain.derive_align,
    "moe_permute": plain.derive_permute,
    "moe_unpermute": plain.derive_unpermute,
    "int4_linear": plain.derive_linear,
    "grouped_gemm": plain.derive_grouped,
    "padded_gemm": plain.derive_padded,
    "silu_and_mul": derive_silu,
    "moe_w4a16": derive_moe,
    "quantize_int8": plain.derive_quantize,
    "int8_lm_head": plain.derive_lm_head,
}


def derive(problem: Problem, contract: Contract) -> Derived:
    """Return the correctly rounded results of a problem under a contract, by name: see `derive.py`.

    Args:
        problem: with its tensors on the CPU; values finite, except topk_softmax's logits and silu_and_mul's gates.
        contract: its roundings count, its accumulator and order do not.
    Returns:
        Contiguous tensors by result or stage name, in the dtypes that a kernel returns.
    Raises:
        ValueError: an op without a derivation, or values that cannot be summed.
    """
    op = problem.case.op
    if op not in DERIVATIONS:
        raise unknown("golden: op", op, DERIVATIONS)
    try:
        return {name: t.contiguous() for name, t in DERIVATIONS[op](problem, contract).items()}
    except OverflowError:
        raise ValueError(f"golden: {problem.case} overflows on the way; must stay finite to have one value") from None
