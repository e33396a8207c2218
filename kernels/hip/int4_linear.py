"""Dense W4A16 for 1 to 5 rows on the HIP GEMV: one source for gfx11, NVIDIA and the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.weight_args import weight_args
from moeracle.kernels.hip.common import (
    ZERO_KNOB,
    Knobs,
    aligned_rows,
    blocks_for,
    decode_defines,
    dtype_defines,
    group_shift,
    knobs_for,
    lds_bytes,
    result,
    run,
    weight_words,
)

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight


def int4_linear(
    x: torch.Tensor,
    w: Int4Weight,
    bias: torch.Tensor | None = None,
    *,
    decode: str = "truncate",
    knobs: Knobs | None = None,
    store32: bool = False,
) -> torch.Tensor:
    """Multiply a few rows by one int4 matrix.

    y = D(sum over chunks of s * (sum_k x * (u - z)) + bias)

    Args:
        x: [T, K], bf16 or fp16, any strides; T in 0..5, T*K at most 32768.
        w: Int4Weight [N, K], layout exllama; symmetric, or zero layout rdna or unpacked; G a multiple of A_CHUNK, and a
            power of two or K.
        bias: [N] in x's dtype, or None; added in fp32.
        decode: how bf16 codes are read: "truncate", "sub_finite", or "sum" (128 + u, corrected by (128 + z) * sum(x)).
        knobs: template knobs instead of hip/source/knobs.json's.
        store32: return the fp32 sums, unrounded.
    Returns:
        [T, N] in x's dtype; u - z exact, fp32 sums of fma/lanes32x<A_CHUNK>, one rounding at the store.
    Raises:
        ValueError: a size the kernel refuses, another layout, or shapes or dtypes that do not fit.
        ToolchainError: no compiler for the device, or the kernel does not compile.
    Source: wvSplitK of github.com/ROCm/vllm/pull/908, as a description.
    """
    T = x.shape[0]
    args = weight_args(w, x, experts=False)
    if bias is not None and (bias.shape != (args.N,) or bias.dtype != x.dtype):
        raise ValueError(f"bias: got {bias.dtype} of shape {tuple(bias.shape)}, must be {x.dtype} [{args.N}]")
    y = result((T, args.N), x, store32)
    if T == 0:
        return y
    chosen = knobs_for("int4_gemv", T, args.K, args.G) | (knobs or {})
    words, _, word_stride = weight_words(args, chosen["A_CHUNK"])
    rows = aligned_rows(x)
    blocks = blocks_for(args.N, chosen["WAVES"] * chosen["YTILE"], x.device)
    defines = chosen | {"ROWS": T, "ZERO": ZERO_KNOB[args.zero_kind]} | decode_defines(decode, x.dtype)
    _, _, _, _, s_row, s_group, _, z_row, z_group = args.strides
    tensors = (rows, words, args.scale, args.zero, x if bias is None else bias.contiguous(), y)
    sizes = (int(bias is not None), args.N, args.K, group_shift(args.G, args.K), blocks)
    strides = (rows.stride(0), word_stride, s_row, s_group, z_row, z_group)
    macros = defines | dtype_defines(x.dtype, store32)
    run("int4_gemv", macros, (blocks,), lds_bytes(T, args.K, chosen), *tensors, *sizes, strides=strides)
    return y
