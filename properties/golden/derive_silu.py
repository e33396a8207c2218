"""The correctly rounded activation."""

from __future__ import annotations

import math

import torch

from moeracle.ref.contract import Contract

from ..problem import Problem
from .derive import Derived, Rounding, store, to_fp32
from .rational import as_tensor
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
