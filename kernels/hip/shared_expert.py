"""The shared expert in two launches, and single dot products, on the bf16 / fp16 HIP GEMV for 1 to 5 rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.kernels.hip.common import (
    Knobs,
    aligned_rows,
    blocks_for,
    dtype_defines,
    knobs_for,
    lds_bytes,
    result,
    run,
)
from moeracle.kernels.hip.dequantize_int4 import dequantize_int4

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

EPILOGUE = {"plain": 0, "sigmoid": 1, "silu_mul": 2, "gate_mul": 3}  # dense_gemv.hip


def dense_gemv(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    epilogue: str = "plain",
    gate_x: torch.Tensor | None = None,
    gate_weight: torch.Tensor | None = None,
    knobs: Knobs | None = None,
    store32: bool = False,
) -> torch.Tensor:
    """Multiply a few rows by a dense matrix, with what follows it in the same launch.

    plain D(x w^T + bias); sigmoid D(sigmoid(x w^T)); silu_mul D(D(silu(D(gate))) * D(up)); gate_mul
    D(D(x w^T + bias) * D(sigmoid(gate_x . gate_weight)))

    Args:
        x: [T, K], bf16 or fp16; T in 0..5, K a multiple of 16, T*K at most 32768.
        w: [N, K] in x's dtype; for silu_mul [2N, K], gate rows first.
        bias: [N] in x's dtype, or None; not for sigmoid and silu_mul.
        epilogue: "plain", "sigmoid", "silu_mul" or "gate_mul".
        gate_x, gate_weight: of gate_mul: [T, H] and [H] or [1, H], H a multiple of 16.
        knobs: template knobs instead of hip/source/knobs.json's.
        store32: return fp32 where D would be stored last; not for silu_mul.
    Returns:
        [T, N] in x's dtype; fp32 sums of fma/lanes32x16.
    Raises:
        ValueError: a size the kernel refuses, or shapes or dtypes that do not fit.
        ToolchainError: no compiler for the device, or the kernel does not compile.
    Source: github.com/ROCm/vllm/pull/933, FUSED_SILU_MUL and FUSED_GATE_MUL, as a description.
    """
    (T, K), rows = x.shape, w.shape[0]
    if epilogue not in EPILOGUE:
        raise ValueError(f"epilogue: got {epilogue!r}, must be one of {', '.join(EPILOGUE)}")
    if x.dtype not in (torch.bfloat16, torch.float16) or w.dtype != x.dtype or w.shape[1] != K:
        raise ValueError(f"w: got {w.dtype} {tuple(w.shape)}, must be of x's {x.dtype} (bf16 or fp16) [N, {K}]")
    if epilogue == "silu_mul" and rows % 2:
        raise ValueError(f"w: got {rows} rows, must be even: gate rows, then as many up rows")
    N = rows // 2 if epilogue == "silu_mul" else rows
    if bias is not None and (bias.shape != (N,) or bias.dtype != x.dtype or epilogue in ("sigmoid", "silu_mul")):
        raise ValueError(f"bias: got {bias.dtype} of shape {tuple(bias.shape)}, must be {x.dtype} [{N}], or None")
    y = result((T, N), x, store32)
    if T == 0:
        return y
    chosen = knobs_for("dense_gemv.silu_mul" if epilogue == "silu_mul" else "dense_gemv", T, K, K) | (knobs or {})
    of_gate, gate, H = x, w, 0
    if epilogue == "gate_mul":
        of_gate, gate, H = _gate(x, gate_x, gate_weight, chosen["A_CHUNK"])
    a, b = aligned_rows(x), aligned_rows(w)
    blocks = blocks_for(N, chosen["WAVES"] * chosen["YTILE"], x.device)
    tensors = (a, b, x if bias is None else bias.contiguous(), of_gate, gate, y)
    sizes = (int(bias is not None), N, K, H, blocks)
    strides = (a.stride(0), b.stride(0), of_gate.stride(0))
    macros = chosen | {"ROWS": T, "EPILOGUE": EPILOGUE[epilogue]} | dtype_defines(x.dtype, store32)
    run("dense_gemv", macros, (blocks,), lds_bytes(T, K, chosen), *tensors, *sizes, strides=strides)
    return y


def _gate(
    x: torch.Tensor, gate_x: torch.Tensor | None, weight: torch.Tensor | None, chunk: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    if gate_x is None or weight is None:
        raise ValueError("gate_x, gate_weight: got None, must be given for epilogue 'gate_mul'")
    H = gate_x.shape[1]
    fits = gate_x.shape[0] == x.shape[0] and weight.numel() == H and gate_x.dtype == weight.dtype == x.dtype
    if not fits or H % chunk:
        raise ValueError(
            f"gate_x, gate_weight: got shapes {tuple(gate_x.shape)}, {tuple(weight.shape)}, must be "
            f"[{x.shape[0]}, H] and [H] of {x.dtype}, H a multiple of {chunk}"
        )
    return aligned_rows(gate_x), aligned_rows(weight.reshape(-1)), H


def tiny_dot(x: torch.Tensor, w: torch.Tensor, sigmoid: bool = False) -> torch.Tensor:
    """Multiply by a weight with a single output, optionally through a sigmoid of the unrounded sum.

    Args:
        x: [T, K], bf16 or fp16; T in 0..5.
        w: [K] or [1, K].
        sigmoid: apply it.
    Returns:
        [T, 1] in x's dtype, one rounding.
    """
    return dense_gemv(x, w.reshape(1, -1), epilogue="sigmoid" if sigmoid else "plain")


def shared_expert(
    x: torch.Tensor,
    w_gate_up: torch.Tensor | Int4Weight,
    w_down: torch.Tensor | Int4Weight,
    gate_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the dense gated MLP in two launches: GEMM1 with silu and product, GEMM2 with the sigmoid gate.

    a = D(D(silu(D(x Wg))) * D(x Wu));  out = D(D(a Wd) * D(sigmoid(x . g))), or D(a Wd) without a gate

    Args:
        x: [T, H], bf16 or fp16; T in 0..5.
        w_gate_up: [2I, H], gate rows first.  w_down: [H, I].  In x's dtype, or Int4Weights, which are cast to it first.
        gate_weight: [H] or [1, H], or None.
    Returns:
        [T, H] in x's dtype.
    """
    return shared_expert_stages(x, w_gate_up, w_down, gate_weight)["out"]


def shared_expert_stages(
    x: torch.Tensor,
    w_gate_up: torch.Tensor | Int4Weight,
    w_down: torch.Tensor | Int4Weight,
    gate_weight: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Run shared_expert and return what its two launches store: a [T, I] and out [T, H]."""
    gate_up = w_gate_up if isinstance(w_gate_up, torch.Tensor) else dequantize_int4(w_gate_up)
    down = w_down if isinstance(w_down, torch.Tensor) else dequantize_int4(w_down)
    a = dense_gemv(x, gate_up, epilogue="silu_mul")
    if gate_weight is None:
        return {"a": a, "out": dense_gemv(a, down)}
    return {"a": a, "out": dense_gemv(a, down, epilogue="gate_mul", gate_x=x, gate_weight=gate_weight)}
