"""Exact dequantization of int4 codes."""

from __future__ import annotations

import torch

from ..errors import require

SCALE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def dequantize_int4(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Turn int4 codes into weights.

    w[n, k] = (codes[n, k] - zero[n, k // G]) * scale[n, k // G], with zero = 8 everywhere when `zero` is None

    Args:
        codes: uint8 [..., N, K], each in 0..15.
        scale: bf16, fp16 or fp32 [..., N, K/G], any strides; its last dimension says what G is.
        zero: uint8 [..., N, K/G], each in 0..15, or None for the symmetric zero point 8.
        dtype: torch.float32 or torch.float64.

    Returns:
        Contiguous [..., N, K] in `dtype`. Exact for bf16 and fp16 scales (at most 12 and 15 significant bits), and for
        fp32 scales in fp64; for fp32 scales in fp32, one round-to-nearest of the exact product.

    Raises:
        ValueError: codes or zero not uint8; scale or zero of the wrong shape; another dtype.

    Source: https://github.com/vllm-project/vllm (uint4b8 and uint4 with zero points).
    """
    require(codes.ndim >= 2, f"codes: got shape {tuple(codes.shape)}, must be [..., N, K]")
    require(dtype in (torch.float32, torch.float64), f"dtype: got {dtype}, must be torch.float32 or torch.float64")
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    return dequantize_into(out, codes, scale, zero)


def dequantize_into(
    out: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None, middle: int = 8
) -> torch.Tensor:
    """Dequantize into `out`, a contiguous fp32 or fp64 [..., N, K], without a temporary of its size; returns `out`.

    middle: the zero point where `zero` is None.
    """
    *lead, N, K = codes.shape
    groups = _groups(codes, scale, zero)
    out.copy_(codes)
    by_group = out.view(*lead, N, groups, K // max(groups, 1))
    # Subtract first: (u-z)*s is exact and cannot overflow where the weight does not, u*s - z*s can.
    if zero is None:
        by_group.sub_(middle)
    else:
        by_group.sub_(zero.to(out.dtype).unsqueeze(-1))
    by_group.mul_(scale.to(out.dtype).unsqueeze(-1))
    return out


def _groups(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> int:
    """How many groups of K share a scale, after checking that scale and zero fit the codes."""
    *lead, N, K = codes.shape
    require(codes.dtype == torch.uint8, f"codes: got {codes.dtype}, must be torch.uint8")
    require(scale.dtype in SCALE_DTYPES, f"scale: got {scale.dtype}, must be {', '.join(map(str, SCALE_DTYPES))}")
    rows = (*lead, N)
    groups = scale.shape[-1] if scale.ndim else 0
    fits = tuple(scale.shape[:-1]) == rows and (K % groups == 0 if groups else K == 0)
    shape = ", ".join(map(str, rows))
    require(fits, f"scale: got shape {tuple(scale.shape)}, must be [{shape}, K/G] with K/G a divisor of K = {K}")
    if zero is not None:
        require(zero.dtype == torch.uint8, f"zero: got {zero.dtype}, must be torch.uint8")
        same = zero.shape == scale.shape
        require(same, f"zero: got shape {tuple(zero.shape)}, must be scale's shape {tuple(scale.shape)}")
    return groups
