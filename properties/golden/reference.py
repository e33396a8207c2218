"""The library's own reference op on a Problem: run in fp64 and rounded once, in the shape that a kernel returns."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.activation import silu_and_mul
from moeracle.ref.dispatch import moe_align_block_size, moe_permute, moe_unpermute
from moeracle.ref.gemm import grouped_gemm, int4_linear, padded_gemm
from moeracle.ref.lm_head import int8_lm_head
from moeracle.ref.moe import moe_w4a16
from moeracle.ref.quantize import quantize_int8
from moeracle.ref.rounding import round_to
from moeracle.ref.routing import topk_softmax
from moeracle.ref.shared_expert import fused_silu_mul, shared_expert, tiny_dot
from moeracle.ref.weight import Int4Weight

from ..problem import Problem
from .derive import RESULTS

# These make no rounding that a contract could choose, so their reference must agree bit for bit on any data.
ALWAYS = ("unpack_int4", "dequantize_int4", "topk_softmax", "moe_align_block_size", "moe_permute", "quantize_int8")


def run_reference(problem: Problem) -> dict[str, torch.Tensor]:
    """Return the reference op's results by name; floats are computed in fp64 and rounded once to the case's dtype."""
    op, a = problem.case.op, problem.args
    dtype = problem.case.torch_dtype
    if op in RESULTS:
        return dict(zip(RESULTS[op], _tuple(op, a), strict=True))
    if op == "unpack_int4":
        return {"out": a["w"].codes()}
    wide: dict[str, torch.Tensor] = {}
    f64 = torch.float64
    if op == "moe_w4a16":
        moe_w4a16(*a.values(), dtype=f64, stages=wide)
    elif op == "padded_gemm":
        wide["out"] = padded_gemm(*a.values(), block_size=problem.truth["block_size"], dtype=f64)
    elif op == "tiny_dot":
        wide["out"] = tiny_dot(a["x"], a["w"], sigmoid=a["sigmoid"], dtype=f64)
    elif op == "shared_expert":
        return _shared(*a.values())
    elif op == "dequantize_int4":
        wide["out"] = a["w"].dequantize(f64)
    else:
        by_name: dict[str, Any] = {
            "int4_linear": int4_linear,
            "grouped_gemm": grouped_gemm,
            "silu_and_mul": silu_and_mul,
            "moe_unpermute": moe_unpermute,
            "int8_lm_head": int8_lm_head,
        }
        wide["out"] = by_name[op](*a.values(), dtype=f64)
    assert dtype is not None
    return {name: round_to(value, dtype) for name, value in wide.items()}


def _shared(x: torch.Tensor, up: Int4Weight, down: Int4Weight, gate: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the shared expert's stages, each from the rounded one before."""
    f64 = torch.float64
    h = round_to(int4_linear(x, up, dtype=f64), x.dtype)
    a = fused_silu_mul(*h.chunk(2, dim=1))
    y = round_to(int4_linear(a, down, dtype=f64), x.dtype)
    return {"h": h, "a": a, "y": y, "out": shared_expert(x, up, down, gate, rounding="fused", dtype=f64)}


def _tuple(op: str, a: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    if op == "topk_softmax":
        return topk_softmax(a["logits"], a["top_k"], renormalize=a["renormalize"])
    if op == "quantize_int8":
        return quantize_int8(a["w"], a["group_size"])
    return (moe_align_block_size if op == "moe_align_block_size" else moe_permute)(*a.values())
