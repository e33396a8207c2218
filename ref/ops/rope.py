"""Rotary position embedding, plain and multimodal (M-RoPE).

Pairs of channels of each head turn by an angle that grows with the token's position:

    angle(p, i) = p * base^(-2i/d)                       i = 0..d/2-1, d = rotary_dim <= head_dim
    (a, b) -> (a cos - b sin, b cos + a sin)             neox: channels (i, i + d/2);  gptj: channels (2i, 2i+1)

Channels from d on pass through (partial rotary). M-RoPE gives a token three positions, time, height and width, and each
i takes its angle from one of them. cos and sin are computed in fp64 and rounded once to fp32; public caches form the
angle in fp32, which puts it off by about p * 2^-24 radians: 0.002 at p = 32768.

Sources: RoFormer, arXiv:2104.09864; https://github.com/vllm-project/vllm,
vllm/model_executor/layers/rotary_embedding/mrope.py (both section layouts); /pull/22375.
"""

from __future__ import annotations

import torch

from ..errors import require, unknown

STYLES = ("neox", "gptj")


def cos_sin_cache(
    max_position: int,
    rotary_dim: int,
    base: float = 10000.0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Tabulate cos and sin of every position, cosines in the left half of each row.

        cache[p, i] = cos(p * base^(-2i/d)),  cache[p, d/2 + i] = sin(the same)

    Args:
        max_position: P, at least 1.
        rotary_dim: d, even, at least 2.
        base: positive.
        dtype: torch.float32 or torch.float64.
        device: where to put it; computed on the CPU so that every device gets the same bits.
    Returns:
        [P, d] `dtype`, the fp64 values rounded once. Row 0 is exactly 1 and 0.
    Raises:
        ValueError: an argument out of range.
    Source: RoFormer, arXiv:2104.09864.
    """
    require(max_position >= 1, f"max_position: got {max_position}, must be at least 1")
    require(rotary_dim >= 2 and rotary_dim % 2 == 0, f"rotary_dim: got {rotary_dim}, must be even and at least 2")
    require(base > 0, f"base: got {base}, must be positive")
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / -rotary_dim
    angle = torch.outer(torch.arange(max_position, dtype=torch.float64), torch.pow(float(base), exponent))
    return torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype).to(device)


def pick_cos_sin(cache: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Look up cos and sin by position.

        cos = cache[positions, :d/2],  sin = cache[positions, d/2:]

    Args:
        cache: [P, d] from `cos_sin_cache`.
        positions: integer, any shape, 0..P-1.
    Returns:
        cos, sin: positions' shape + [d/2], the cache's dtype; exact copies.
    Raises:
        ValueError: a position outside the cache, or not integer.
    """
    P, d = cache.shape
    require(positions.dtype in (torch.int32, torch.int64), f"positions: got {positions.dtype}, must be int32 or int64")
    if positions.numel():
        low, high = int(positions.min()), int(positions.max())
        require(low >= 0 and high < P, f"positions: got {low}..{high}, must be 0..{P - 1}, the cache's positions")
    cos, sin = cache[positions.to(torch.int64)].split(d // 2, dim=-1)
    return cos, sin


def section_of_channel(
    half: int, section: tuple[int, int, int] | list[int], *, interleaved: bool = False
) -> torch.Tensor:
    """Say which position (0 time, 1 height, 2 width) turns each channel pair under M-RoPE.

        in sections:   0 … 0 1 … 1 2 … 2                        section[0] zeros, section[1] ones, section[2] twos
        interleaved:   i % 3, while i < 3 * section[i % 3]; 0 elsewhere             0 1 2 0 1 2 … 0 0

    Args:
        half: d/2, the number of pairs.
        section: three counts >= 0 that sum to half. Interleaved: the ones and twos must find their places below half.
        interleaved: the second layout (Qwen3-VL and newer) instead of the first (Qwen2-VL).
    Returns:
        int64 [half], with section[s] channels of each s.
    Raises:
        ValueError: counts that do not fit.
    """
    fits = len(section) == 3 and min(section) >= 0 and sum(section) == half
    require(fits, f"mrope_section: got {list(section)}, must be three counts that sum to rotary_dim / 2 = {half}")
    if not interleaved:
        return torch.repeat_interleave(torch.tensor(section))
    channel = torch.arange(half)
    axis = channel % 3
    owner = torch.where(channel < 3 * torch.tensor(section)[axis], axis, 0)
    placed = [int((owner == s).sum()) for s in range(3)]
    require(
        placed == list(section), f"mrope_section: got {list(section)}, must be interleavable in {half}, not {placed}"
    )
    return owner


def mrope_cos_sin(
    cache: torch.Tensor,
    positions: torch.Tensor,
    section: tuple[int, int, int] | list[int],
    *,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Look up cos and sin under M-RoPE: channel pair i of token t uses positions[section_of_channel(i), t].

    Args:
        cache: [P, d] from `cos_sin_cache`.
        positions: integer [3, T], rows time, height, width, each 0..P-1.
        section, interleaved: as `section_of_channel`, for d/2 pairs.
    Returns:
        cos, sin [T, d/2], the cache's dtype; exact copies.
    Raises:
        ValueError: positions of another shape or outside the cache; counts that do not fit.
    Source: https://github.com/vllm-project/vllm, vllm/model_executor/layers/rotary_embedding/mrope.py
    """
    require(
        positions.ndim == 2 and positions.shape[0] == 3,
        f"positions: got shape {tuple(positions.shape)}, must be [3, T] for M-RoPE",
    )
    half = cache.shape[1] // 2
    owner = section_of_channel(half, section, interleaved=interleaved).to(cache.device)
    cos, sin = pick_cos_sin(cache, positions)
    index = owner.expand(1, positions.shape[1], half)
    return cos.gather(0, index)[0], sin.gather(0, index)[0]


def apply_rotary(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    *,
    style: str = "neox",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Rotate the first d channels of every head.

        (a, b) -> (a cos - b sin, b cos + a sin)

    Args:
        x: [T, heads * head_dim], bf16, fp16, fp32 or fp64.
        cos, sin: [T, d/2], d <= head_dim.
        head_dim: divides x's columns.
        style: "neox" pairs channel i with i + d/2, "gptj" 2i with 2i+1.
        dtype: what to compute and return in, torch.float32 or torch.float64.
    Returns:
        [T, heads * head_dim] `dtype`, not yet cast to x's dtype; within 3 * 2^-24 * (|a| + |b|) in fp32. Channels from
        d on are exact.
    Raises:
        ValueError: another style, or shapes that do not fit.
    Source: RoFormer, arXiv:2104.09864.
    """
    require(x.ndim == 2, f"x: got shape {tuple(x.shape)}, must be [T, heads * head_dim]")
    T, columns = x.shape
    if style not in STYLES:
        raise unknown("style", style, STYLES)
    require(head_dim >= 1 and columns % head_dim == 0, f"head_dim: got {head_dim}, must divide x's {columns} columns")
    half = cos.shape[-1]
    fits = cos.shape == sin.shape == (T, half) and 2 * half <= head_dim
    require(fits, f"cos, sin: got shapes {tuple(cos.shape)}, {tuple(sin.shape)}, must be [{T}, d/2], d <= {head_dim}")
    heads = x.to(dtype).reshape(T, columns // head_dim, head_dim)
    turned, passed = heads[..., : 2 * half], heads[..., 2 * half :]
    pairs = turned.unflatten(-1, (2, half) if style == "neox" else (half, 2))
    a, b = pairs.unbind(-2 if style == "neox" else -1)
    cos, sin = cos.to(dtype)[:, None], sin.to(dtype)[:, None]
    pairs = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-2 if style == "neox" else -1)
    return torch.cat([pairs.flatten(-2), passed], dim=-1).reshape(T, columns)


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    cache: torch.Tensor,
    head_dim: int,
    *,
    style: str = "neox",
    mrope_section: tuple[int, int, int] | list[int] | None = None,
    mrope_interleaved: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries and keys by their positions.

        positions [T]: plain;  positions [3, T]: M-RoPE by mrope_section (three equal rows give the plain result)

    Args:
        q: [T, heads * head_dim].
        k: [T, kv_heads * head_dim].
        positions: integer [T] or [3, T], 0..P-1.
        cache: [P, d] from `cos_sin_cache`, d <= head_dim.
        head_dim, style, dtype: as `apply_rotary`.
        mrope_section, mrope_interleaved: as `section_of_channel`; needed for [3, T] positions only.
    Returns:
        q, k rotated, `dtype`, not yet cast; error as `apply_rotary`.
    Raises:
        ValueError: as the functions it uses; [3, T] positions without an mrope_section.
    Source: RoFormer, arXiv:2104.09864.
    """
    require(positions.ndim in (1, 2), f"positions: got shape {tuple(positions.shape)}, must be [T] or [3, T]")
    if positions.ndim == 1:
        cos, sin = pick_cos_sin(cache, positions)
    else:
        if mrope_section is None:
            raise ValueError("mrope_section: got None, must be three counts where positions is [3, T]")
        cos, sin = mrope_cos_sin(cache, positions, mrope_section, interleaved=mrope_interleaved)
    q = apply_rotary(q, cos, sin, head_dim, style=style, dtype=dtype)
    return q, apply_rotary(k, cos, sin, head_dim, style=style, dtype=dtype)
