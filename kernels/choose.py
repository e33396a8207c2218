"""Where one op has kernels of two families, which of them serves a call."""

from __future__ import annotations

import torch

from moeracle.kernels.hopper.cases import on_hopper
from moeracle.kernels.hopper.int8_lm_head import lm_head_on_hopper, why_not_hopper
from moeracle.kernels.triton.int8_lm_head import int8_lm_head_portable, sizes
from moeracle.kernels.triton.tiles import Tile


def int8_lm_head(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    config: Tile | None = None,
) -> torch.Tensor:
    """Multiply activations with int8 weights, scaled per channel or per group.

    out[t, v] = D(sum_k x[t, k] * codes[v, k] * scale[v, k // G] + bias[v])

    Args:
        x: [T, K], bf16 or fp16, any strides; T may be 0.
        codes: int8 [V, K], any strides; V*K may exceed 2^31.
        scale: fp32 [V] (G = K) or [V, K/G]; any floating dtype is widened.
        bias: [V] or None, added in fp32.
        config: the matrix kernel with block_m tokens and block_n vocabulary rows a program; None: what fits T.
    Returns:
        [T, V] in x's dtype; partial sums of unscaled codes within one group, times the scale, summed, all in fp32, one
        rounding. Sums are the matrix unit's; but ordinary fp32 for groups that are no multiple of 16 and, away from
        compute capability 9.0, for T = 1.
    Raises:
        ValueError: shapes or dtypes that do not fit.
    Source: docs/formats.md section 5.
    """
    T, V, K, G = sizes(x, codes, scale, bias)
    if config is None and x.device.type == "cuda" and on_hopper() and not why_not_hopper(K, G, codes):
        y = torch.empty(T, V, dtype=x.dtype, device=x.device)
        return lm_head_on_hopper(x, codes, scale, bias, y, G) if y.numel() else y
    return int8_lm_head_portable(x, codes, scale, bias, config=config)
