"""int8 lm_head for 1 to 5 rows on the HIP GEMV: one scale a vocabulary row, or one a group."""

from __future__ import annotations

import torch

from moeracle.kernels.hip.common import (
    Knobs,
    aligned_rows,
    blocks_for,
    dtype_defines,
    group_shift,
    knobs_for,
    lds_bytes,
    result,
    run,
)


def int8_lm_head(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    knobs: Knobs | None = None,
    store32: bool = False,
) -> torch.Tensor:
    """Multiply a few rows by an int8 vocabulary.

    y[t, v] = D(sum over chunks of s[v, k/G] * (sum_k x[t, k] * q[v, k]) + bias[v])

    Args:
        x: [T, K], bf16 or fp16, any strides; T in 0..5, T*K at most 32768, K a multiple of 16.
        codes: int8 [V, K], -128 included.
        scale: fp32 [V] or [V, K/G]; G a multiple of 16, and a power of two or K.
        bias: [V] in x's dtype, or None; added in fp32.
        knobs: template knobs instead of hip/source/knobs.json's.
        store32: return the fp32 sums, unrounded.
    Returns:
        [T, V] in x's dtype; codes exact in D, fp32 sums of fma/lanes32x16/fused, one rounding at the store.
    Raises:
        ValueError: a size the kernel refuses, or shapes or dtypes that do not fit.
        ToolchainError: no compiler for the device, or the kernel does not compile.
    Source: docs/formats.md section 5; github.com/ROCm/vllm/pull/933 for groups.
    """
    (T, K), V = x.shape, codes.shape[0]
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x: got {x.dtype}, must be torch.bfloat16 or torch.float16")
    if codes.dtype != torch.int8 or codes.shape != (V, K):
        raise ValueError(f"codes: got {codes.dtype} of shape {tuple(codes.shape)}, must be torch.int8 [V, K={K}]")
    groups = 1 if scale.ndim == 1 else scale.shape[1]
    if scale.dtype != torch.float32 or scale.shape[0] != V or scale.ndim > 2 or K % groups:
        got = f"got {scale.dtype} of shape {tuple(scale.shape)}"
        raise ValueError(f"scale: {got}, must be torch.float32 [V] or [V, K/G]")
    if bias is not None and (bias.shape != (V,) or bias.dtype != x.dtype):
        raise ValueError(f"bias: got {bias.dtype} of shape {tuple(bias.shape)}, must be {x.dtype} [{V}]")
    y = result((T, V), x, store32)
    if T == 0 or V == 0:
        return y
    G = K // groups
    chosen = knobs_for("int8_gemv", T, K, G) | (knobs or {})
    rows, bytes_ = aligned_rows(x), aligned_rows(codes)
    blocks = blocks_for(V, chosen["WAVES"] * chosen["YTILE"], x.device)
    tensors = (rows, bytes_, scale, x if bias is None else bias.contiguous(), y)
    sizes = (int(bias is not None), V, K, group_shift(G, K), blocks)
    of_scale = (scale.stride(0), scale.stride(1) if scale.ndim == 2 else 0)
    strides = (rows.stride(0), bytes_.stride(0) // 4, *of_scale)
    macros = chosen | {"ROWS": T} | dtype_defines(x.dtype, store32)
    run("int8_gemv", macros, (blocks,), lds_bytes(T, K, chosen), *tensors, *sizes, strides=strides)
    return y
