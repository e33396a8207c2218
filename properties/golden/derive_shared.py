"""The correctly rounded shared expert, and products with one column."""

from __future__ import annotations

from fractions import Fraction

import torch

from moeracle.ref.contract import Contract

from ..problem import Problem
from .derive import Derived, int4_values, store, to_fp32
from .derive_silu import silu_and_mul
from .rational import as_tensor, dots, scaled
from .transcendental import sigmoid_fp32


def derive_tiny(problem: Problem, contract: Contract) -> Derived:
    """One dot product a token, rounded to fp32, through the sigmoid if asked, stored."""
    x, w, sigmoid = problem.args.values()
    keep = store(contract, x.dtype)
    sums = tiny_sums(x, w)
    return {"out": as_tensor([[keep(sigmoid_fp32(s) if sigmoid else s)] for s in sums], 1, x.dtype)}


def tiny_sums(x: torch.Tensor, w: torch.Tensor) -> list[float]:
    """Return x·w of each token, correctly rounded to fp32."""
    return [to_fp32(row[0]) for row in dots(scaled(x), scaled(w.reshape(1, -1))).fractions()]


def derive_shared(problem: Problem, contract: Contract) -> Derived:
    """Each stage from the one before as it is stored; out is y times the gate, rounded where the contract says."""
    x, w_gate_up, w_down, gate_weight = problem.args.values()
    dtype, keep, (T, H) = x.dtype, store(contract, x.dtype), x.shape
    rounded = {stage: keep if stage in contract.stores else to_fp32 for stage in ("h", "a")}
    sums = dots(scaled(x), int4_values(w_gate_up, contract, dtype)).fractions()
    wide = dtype if "h" in contract.stores else torch.float32
    h = as_tensor([[rounded["h"](v) for v in row] for row in sums], 2 * w_down.K, wide)
    a = silu_and_mul(h, contract, dtype, "a" in contract.stores)
    y = dots(scaled(a), int4_values(w_down, contract, dtype)).fractions() if T else []
    stages = {"h": h.to(dtype), "a": a.to(dtype), "y": as_tensor([[keep(v) for v in row] for row in y], H, dtype)}
    if gate_weight is None:
        stages["out"] = stages["y"]
    else:
        gated = [_gated(row, s, contract, dtype) for row, s in zip(y, tiny_sums(x, gate_weight), strict=True)]
        stages["out"] = as_tensor(gated, H, dtype)
    return {name: stage for name, stage in stages.items() if name in contract.stores}


def _gated(row: list[Fraction], dot: float, contract: Contract, dtype: torch.dtype) -> list[float]:
    """Return one token's stored output: D(y) times D(sigmoid) in fp32, or y, as it is stored, times sigmoid."""
    keep = store(contract, dtype)
    s = sigmoid_fp32(keep(dot) if contract.gate == "unfused" else dot)
    if contract.gate == "fp32":
        y = [Fraction(keep(v)) for v in row] if "y" in contract.stores else row
        return [keep(to_fp32(v * Fraction(s))) for v in y]
    return [keep(to_fp32(Fraction(keep(v)) * Fraction(keep(s)))) for v in row]
