"""A weight with a single output: out[t] = sum_k x[t, k] * w[k], as a gate has."""

from __future__ import annotations

import torch

from ..errors import require


def tiny_dot(
    x: torch.Tensor, w: torch.Tensor, *, sigmoid: bool = False, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Multiply by a weight with a single output, N = 1, optionally through a sigmoid.

        out[t, 0] = sum_k x[t, k] * w[k],  then 1 / (1 + exp(-out)) if asked

    Args:
        x: [T, K], bf16, fp16, fp32 or fp64; T may be 0.
        w: [K] or [1, K].
        sigmoid: apply the sigmoid to the unrounded sum.
        dtype: what products and sum are computed and returned in, torch.float32 or torch.float64.
    Returns:
        [T, 1] `dtype`, not yet cast to D; the sum within K * 2^-24 * sum_k |x w| in fp32, in no promised order.
    Raises:
        ValueError: shapes that do not fit.
    Source: docs/formats.md section 7.
    """
    require(x.ndim == 2, f"x: got shape {tuple(x.shape)}, must be [T, K]")
    K = x.shape[1]
    require(w.shape in ((K,), (1, K)), f"w: got shape {tuple(w.shape)}, must be ({K},) or (1, {K})")
    out = x.to(dtype) @ w.to(dtype).reshape(K, 1)
    return torch.sigmoid(out) if sigmoid else out
