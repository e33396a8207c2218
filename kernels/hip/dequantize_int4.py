"""int4 weights to dense ones on HIP: what the dense GEMV multiplies where a checkpoint's shared expert is int4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.weight_args import weight_args
from moeracle.kernels.hip.common import ZERO_KNOB, check_groups, dtype_defines, group_shift, run, weight_words

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

WAVES = 4


def dequantize_int4(w: Int4Weight) -> torch.Tensor:
    """Return the weights in the scale's dtype D.

    D((u - z) * s)

    Args:
        w: Int4Weight [N, K] or [E, N, K], layout exllama, scale bf16 or fp16; symmetric, or zero layout rdna or
            unpacked; G a multiple of 8, and a power of two or K.
    Returns:
        [..., N, K] of D, contiguous; one rounding.
    Raises:
        ValueError: another layout or scale dtype, or a G that is no shift of k.
    """
    K = w.packed.shape[-1] * 8
    args = weight_args(w, torch.empty(0, K, dtype=w.scale.dtype), experts=w.packed.ndim == 3)
    check_groups(args.G, K, 8)
    out = torch.empty(*w.packed.shape[:-1], K, dtype=w.scale.dtype, device=w.packed.device)
    macros = {"WAVES": WAVES, "ZERO": ZERO_KNOB[args.zero_kind]} | dtype_defines(w.scale.dtype)
    grid = (-(-out.numel() // 8 // (WAVES * 32)),)
    sizes = (args.E, args.N, K, group_shift(args.G, K))
    words, expert, row = weight_words(args, 16)
    strides = (expert, row, *args.strides[3:])
    run("dequantize_int4", macros, grid, 0, words, args.scale, args.zero, out, *sizes, strides=strides)
    return out
