"""Group quantizers: int4 for expert weights, int8 for the lm_head, and the lm_head's option string."""

from __future__ import annotations

import re

import torch

from ..errors import require

LM_HEAD_GROUP_SIZES = (-1, 32, 64, 128)
_WEIGHT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_CHUNK = 1 << 22  # weights held in fp32 at once


def quantize_int4(
    w: torch.Tensor, group_size: int, *, symmetric: bool = True, scale_dtype: torch.dtype, bits: int = 4
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Quantize weights to int4 codes, one scale for each group of `group_size` columns.

    symmetric:   s = D(2 amax / 15)        u = clamp(rne(w / s) + 8, 0, 15)
    asymmetric:  s = D((max - min) / 15)   z = clamp(rne(-min / s), 0, 15)   u = clamp(rne(w / s) + z, 0, 15)

    Of 8 bits: 255 for 15 and 128 for 8.

    with max and min widened to include 0, D rounding to scale_dtype, and codes computed from the *rounded* scale, the
    one that a kernel will multiply by. A scale that would be stored as 0 (an all-zero group, or one that underflows D)
    is stored as 1: nothing divides by zero, and every code of the group is its zero point.

    Args:
        w: bf16, fp16, fp32 or fp64 [..., N, K], finite. Computed in fp32 (fp64 for fp64).
        group_size: positive divisor of K, or -1 for one group over K.
        symmetric: zero point 8 for all (True), or one zero point a group.
        scale_dtype: bf16, fp16 or fp32.
        bits: of a code, 4, or 8 for the codes of an Int8Weight.

    Returns:
        codes uint8 [..., N, K], scale [..., N, K/G] in scale_dtype, zero uint8 [..., N, K/G] (None when symmetric).
        |w - (u-z)s| <= s/2 (1 + 2 (2^bits - 1) d + 2^-18) for a scale in D's normal range, d = 2^-8 (bf16), 2^-11
        (fp16), 2^-24.

    Raises:
        ValueError: group_size does not divide K; wrong dtype; a group's scale is not finite in scale_dtype.

    Source: https://arxiv.org/abs/2210.17323 (GPTQ) uses these ranges.
    """
    require(w.ndim >= 2, f"w: got shape {tuple(w.shape)}, must be [..., N, K]")
    require(w.dtype in (*_WEIGHT_DTYPES, torch.float64), f"w: got {w.dtype}, must be bf16, fp16, fp32 or fp64")
    require(scale_dtype in _WEIGHT_DTYPES, f"scale_dtype: got {scale_dtype}, must be bf16, fp16 or fp32")
    G = _resolve_group(group_size, w.shape[-1])
    grouped = w.to(torch.float64 if w.dtype == torch.float64 else torch.float32).unflatten(-1, (-1, G))
    low, high = grouped.amin(-1), grouped.amax(-1)
    width = 2 * torch.maximum(-low, high) if symmetric else high.clamp(min=0) - low.clamp(max=0)
    top = (1 << bits) - 1
    scale = (width / _number(top, width)).to(scale_dtype)
    _check_finite(scale)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    step = scale.to(grouped.dtype)
    if symmetric:
        zero, offset = None, _number(1 << (bits - 1), step)
    else:
        offset = (-low.clamp(max=0) / step).round_().clamp_(0, top).unsqueeze(-1)
        zero = offset.squeeze(-1).to(torch.uint8)
    codes = (grouped / step.unsqueeze(-1)).round_().add_(offset).clamp_(0, top).to(torch.uint8)
    return codes.flatten(-2), scale, zero


def quantize_int8(w: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize lm_head weights to int8 in fp32, per channel or per group.

    s = max(amax, 1e-10) / 127        code = clamp(rne(w / s), -128, 127)

    Args:
        w: bf16, fp16 or fp32 [V, K], finite.
        group_size: positive divisor of K, or -1 for one scale a row.

    Returns:
        codes int8 [V, K], in -127..127 here; scale fp32 [V] (group_size -1) or [V, K/G], never 0.
        |w - code * s| <= s/2 (1 + 2^-16), the two fp32 divisions being rounded.

    Raises:
        ValueError: w not a floating [V, K]; group_size does not divide K; w not finite.

    Source: https://github.com/ROCm/vllm (gfx11 int8 lm_head), which runs it in the weight dtype; see below.
    """
    return _quantize_int8(w, group_size, torch.float32)


def quantize_int8_weight_dtype(w: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize as `quantize_int8`, but with every step rounded to the weight's own dtype, as known kernels' loaders do.

    s = D(max(amax, D(1e-10)) / 127)        code = clamp(rne(D(w / s)), -128, 127)

    Known defects, reproduced: in bf16 about 11 % of codes are off by one and -128 occurs; in fp16 1e-10 underflows, so
    an all-zero group has scale 0 and its quotients are 0/0. Converting that NaN to int8 is undefined; here it is 0.

    Args:
        w: bf16, fp16 or fp32 [V, K], finite.
        group_size: positive divisor of K, or -1 for one scale a row.

    Returns:
        codes int8 [V, K]; scale fp32 [V] or [V, K/G], holding the value rounded to w's dtype.

    Raises:
        ValueError: as `quantize_int8`.

    Source: https://github.com/ROCm/vllm (gfx11 int8 lm_head).
    """
    return _quantize_int8(w, group_size, w.dtype)


def parse_lm_head_option(option: str | None) -> int | None:
    """Read an lm_head quantization option.

    Args:
        option: None or "" for off; "int8" for one scale a row; "int8:gN" for groups of N along K.

    Returns:
        None for off, -1 for one scale a row, else N.

    Raises:
        ValueError: anything else.

    Source: docs/formats.md section 5.
    """
    if option is None or option == "":
        return None
    if option == "int8":
        return -1
    match = re.fullmatch(r"int8:g([1-9][0-9]*)", option) if isinstance(option, str) else None
    if match is None:
        raise ValueError(
            f"option: got {option!r}, must be '' (off), 'int8' (per channel) or 'int8:gN' with N > 0, e.g. 'int8:g128'"
        )
    return int(match[1])


def check_lm_head_shape(group_size: int, K: int) -> str | None:
    """Say why the int8 lm_head kernel cannot take these weights.

    Args:
        group_size: what `parse_lm_head_option` returned, not None.
        K: columns of the weight.

    Returns:
        None when it can, else one line with the reason.

    Source: docs/formats.md section 5.
    """
    if group_size not in LM_HEAD_GROUP_SIZES:
        return f"group_size is {group_size}, must be one of {', '.join(map(str, LM_HEAD_GROUP_SIZES))}"
    if K % 16:
        return f"K is {K}, must be a multiple of 16"
    if group_size > 0 and K % group_size:
        return f"K is {K}, must be a multiple of the group size {group_size}"
    return None


def _quantize_int8(w: torch.Tensor, group_size: int, compute: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    require(w.ndim == 2, f"w: got shape {tuple(w.shape)}, must be [V, K]")
    require(w.dtype in _WEIGHT_DTYPES, f"w: got {w.dtype}, must be bf16, fp16 or fp32")
    V, K = w.shape
    G = _resolve_group(group_size, K)
    codes = torch.empty(V, K, dtype=torch.int8, device=w.device)
    scale = torch.empty(V, K // G, dtype=torch.float32, device=w.device)
    floor = torch.tensor(1e-10, dtype=compute, device=w.device)
    rows = max(1, _CHUNK // K)
    for v in range(0, V, rows):
        block = w[v : v + rows].to(compute).unflatten(-1, (-1, G))
        step = torch.maximum(block.abs().amax(-1), floor) / _number(127, floor)
        _check_finite(step)
        quotient = (block / step.unsqueeze(-1)).nan_to_num_(nan=0.0)
        codes[v : v + rows] = quotient.round_().clamp_(-128, 127).to(torch.int8).flatten(1)
        scale[v : v + rows] = step
    return codes, scale.squeeze(-1) if group_size == -1 else scale


def _resolve_group(group_size: int, K: int) -> int:
    require(K > 0, f"w: K is {K}, must be positive")
    whole = group_size == -1 or (group_size > 0 and K % group_size == 0)
    require(whole, f"group_size: got {group_size}, must be -1 or a positive divisor of K = {K}")
    return K if group_size == -1 else group_size


def _number(value: float, like: torch.Tensor) -> torch.Tensor:
    # A tensor on the device: for a Python number, CUDA multiplies by a rounded reciprocal instead of dividing.
    return torch.full((), value, dtype=like.dtype, device=like.device)


def _check_finite(scale: torch.Tensor) -> None:
    require(
        bool(torch.isfinite(scale).all()),
        f"w: a group's scale is not finite in {scale.dtype}; w must be finite and in its range",
    )
