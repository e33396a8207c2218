"""The int8 lm_head: logits from int8 weights."""

from __future__ import annotations

import torch

from ..errors import require

_CHUNK_BYTES = 32 << 20  # dequantized rows held at once; a whole 248320 x 2048 vocabulary would take 2 GB


def int8_lm_head(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Multiply activations with int8 weights, scaled per channel or per group.

    out[t, v] = sum over k of x[t, k] * codes[v, k] * scale[v, k // G], + bias[v]

    Args:
        x: bf16, fp16 or fp32 [T, K]; T may be 0.
        codes: int8 [V, K], -128 included.
        scale: floating [V] (one a row) or [V, K/G]; its last dimension says what G is.
        bias: floating [V], or None.
        dtype: torch.float32 or torch.float64, for every step.

    Returns:
        [T, V] in `dtype`, not rounded further: error below ((1+u)^(K+2) - 1) * (sum |x * w| + |bias|), with
        u = 2^-24 in fp32 and 2^-53 in fp64. Memory beyond the arguments: about 70 MB, x and the result.

    Raises:
        ValueError: a wrong dtype or shape, by name.

    Source: https://github.com/ROCm/vllm (gfx11 int8 lm_head).
    """
    require(x.ndim == 2, f"x: got shape {tuple(x.shape)}, must be [T, K]")
    (T, K), V = x.shape, codes.shape[0] if codes.ndim else 0
    _check(x, codes, scale, bias, dtype)
    out = torch.empty(T, V, dtype=dtype, device=x.device)
    act = x.to(dtype)
    rows = max(1, _CHUNK_BYTES // max(1, K * dtype.itemsize))
    for v in range(0, V, rows):
        w = codes[v : v + rows].to(dtype)
        if scale.ndim == 2:
            w.unflatten(-1, (scale.shape[1], -1)).mul_(scale[v : v + rows].to(dtype).unsqueeze(-1))
        out[:, v : v + rows] = act @ w.mT
    if scale.ndim == 1:
        out *= scale.to(dtype)  # after the sum, once a logit instead of once a weight
    if bias is not None:
        out += bias.to(dtype)
    return out


def _check(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> None:
    K = x.shape[1]
    require(dtype in (torch.float32, torch.float64), f"dtype: got {dtype}, must be torch.float32 or torch.float64")
    require(codes.dtype == torch.int8, f"codes: got {codes.dtype}, must be torch.int8")
    fits = codes.ndim == 2 and codes.shape[1] == K
    require(fits, f"codes: got shape {tuple(codes.shape)}, must be [V, K] with K = {K}, x's last dimension")
    V = codes.shape[0]
    floating = (("x", x), ("scale", scale), *((("bias", bias),) if bias is not None else ()))
    for name, tensor in floating:
        require(tensor.is_floating_point(), f"{name}: got {tensor.dtype}, must be a floating dtype")
    grouped = scale.ndim == 2 and scale.shape[1] > 0 and K % scale.shape[1] == 0
    fits = scale.shape[:1] == (V,) and (scale.ndim == 1 or grouped)
    require(fits, f"scale: got shape {tuple(scale.shape)}, must be [{V}] or [{V}, K/G] with K/G a divisor of K = {K}")
    if bias is not None:
        require(tuple(bias.shape) == (V,), f"bias: got shape {tuple(bias.shape)}, must be [{V}]")
