"""What a published rule compares: an op's final float result and the reference's, rounded to the same dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moeracle.ref.activation import silu_and_mul
from moeracle.ref.dispatch import moe_permute, moe_unpermute
from moeracle.ref.gemm import grouped_gemm, int4_linear, padded_gemm
from moeracle.ref.lm_head import int8_lm_head
from moeracle.ref.moe import moe_w4a16
from moeracle.ref.quantize import quantize_int8
from moeracle.ref.routing import topk_softmax
from moeracle.ref.shared_expert import shared_expert, tiny_dot

from .problem import Problem

Output = Any


def _quantized(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply codes [V, K] by their scales: what a test of a quantizer compares."""
    per_group = scale.reshape(len(codes), -1)
    return codes.float() * per_group.repeat_interleave(codes.shape[1] // per_group.shape[1], 1)


REFERENCE: dict[str, Callable[..., Output]] = {
    "unpack_int4": lambda w: w.codes(),
    "dequantize_int4": lambda w: w.dequantize().to(w.scale.dtype),
    "topk_softmax": lambda logits, top_k, renormalize: topk_softmax(logits, top_k, renormalize=renormalize),
    "moe_permute": moe_permute,
    "moe_unpermute": lambda y, *rest: moe_unpermute(y, *rest).to(y.dtype),
    "int4_linear": lambda x, *rest: int4_linear(x, *rest).to(x.dtype),
    "grouped_gemm": lambda x, *rest: grouped_gemm(x, *rest).to(x.dtype),
    "padded_gemm": lambda x, *rest: padded_gemm(x, *rest).to(x.dtype),
    "silu_and_mul": lambda h: silu_and_mul(h).to(h.dtype),
    "moe_w4a16": lambda x, *rest: moe_w4a16(x, *rest).to(x.dtype),
    "quantize_int8": quantize_int8,
    "shared_expert": lambda x, *rest: shared_expert(x, *rest).to(x.dtype),
    "tiny_dot": lambda x, w, sigmoid: tiny_dot(x, w, sigmoid=sigmoid).to(x.dtype),
    "int8_lm_head": lambda x, *rest: int8_lm_head(x, *rest).to(x.dtype),
}


def reference_output(problem: Problem) -> Output | None:
    """Return what the reference gives for a problem, in the op's own result types; None where no float is in it."""
    op = problem.case.op
    return REFERENCE[op](*problem.args.values()) if op in REFERENCE else None


def compared(op: str, output: Output) -> torch.Tensor | None:
    """Return the float tensor of an op's result that a tolerance can be put on; None if there is none.

    moe_w4a16: out; topk_softmax: the weights; moe_permute: the rows of experts; quantize_int8: code * scale.
    """
    if op == "moe_align_block_size" or output is None:
        return None
    if op == "quantize_int8":
        return _quantized(*output)
    if op == "moe_permute":
        return output[0][: int(output[1][-1])]
    if op == "topk_softmax":
        return output[0]
    return output["out"] if isinstance(output, dict) else output
