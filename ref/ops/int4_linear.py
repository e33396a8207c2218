"""One int4 matrix: y[t, n] = sum_k x[t, k] * (u[n, k] - z[n, k//G]) * s[n, k//G] + bias[n]."""

from __future__ import annotations

import torch

from ..errors import require
from ..weights.weight import Int4Weight


def check_columns(x: torch.Tensor, w: Int4Weight) -> None:
    """Refuse activations whose columns are not the weight's K."""
    require(x.ndim == 2 and x.shape[1] == w.K, f"x: got shape {tuple(x.shape)}, must be [rows, K={w.K}]")


def int4_linear(
    x: torch.Tensor, w: Int4Weight, bias: torch.Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Multiply activations by one int4 matrix.

    y[t, n] = sum_k x[t, k] * W[n, k] + bias[n]

    Args:
        x: [T, K], bf16, fp16 or fp32.
        w: Int4Weight of shape [N, K].
        bias: [N] or None.
        dtype: what to compute and return in, torch.float32 or torch.float64.
    Returns:
        [T, N] in `dtype`; error below (K+1) * 2^-24 of sum |x||W| in fp32.
    Raises:
        ValueError: x's columns are not w's K, or bias is not [N].
    Source: docs/formats.md sections 1 and 2.
    """
    T, N = x.shape[0], w.N
    check_columns(x, w)
    y = x.to(dtype) @ w.dequantize(dtype).T
    if bias is not None:
        require(bias.shape == (N,), f"bias: got shape {tuple(bias.shape)}, must be [N={N}]")
        y += bias.to(dtype)
    return y.reshape(T, N)
