"""The correctly rounded MoE layer, stage by stage under a contract, and the table of all derivations."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.errors import require, unknown
from moeracle.ref.moe import rows_by_expert

from ..case import Case
from ..optable import OPS
from ..problem import Problem
from . import derive as plain
from .derive import Derived, int4_values, store, to_fp32
from .derive_shared import derive_shared, derive_tiny
from .derive_silu import derive_silu, silu_and_mul
from .rational import as_tensor, dots, nearest, scaled


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


MOST = 20_000_000  # products that a derivation works out one by one: some seconds

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
    "shared_expert": derive_shared,
    "tiny_dot": derive_tiny,
    "quantize_int8": plain.derive_quantize,
    "int8_lm_head": plain.derive_lm_head,
}


def cost(case: Case) -> int:
    """Return about how many products, or elements where there are none, a derivation works out one by one."""
    sizes, rows = case.sizes, max(1, case.R)
    if OPS[case.op].layer:
        return rows * 3 * sizes["H"] * sizes["I"]
    wide = sizes.get("N", 1) * sizes.get("V", 1) * sizes.get("I", 1)
    if case.op in ("unpack_int4", "dequantize_int4", "quantize_int8"):
        return wide * sizes["K"] * sizes.get("E", 1)
    return rows * wide * sizes.get("K", 1) * (sizes["E"] if case.op == "topk_softmax" else 1)


def derive(problem: Problem, contract: Contract) -> Derived:
    """Return the correctly rounded results of a problem under a contract, by name: see `derive.py`.

    Args:
        problem: with its tensors on the CPU; values finite, except topk_softmax's logits and silu_and_mul's gates.
        contract: its roundings count, its accumulator and order do not.
    Returns:
        Contiguous tensors by result or stage name, in the dtypes that a kernel returns.
    Raises:
        ValueError: an op without a derivation, values that cannot be summed, or a case of more than MOST products.
    """
    op = problem.case.op
    if op not in DERIVATIONS:
        raise unknown("golden: op", op, DERIVATIONS)
    require(
        cost(problem.case) <= MOST, f"golden: {problem.case} is too large to derive, must be at most {MOST:,} products"
    )
    try:
        return {name: t.contiguous() for name, t in DERIVATIONS[op](problem, contract).items()}
    except OverflowError:
        raise ValueError(f"golden: {problem.case} overflows on the way; must stay finite to have one value") from None
