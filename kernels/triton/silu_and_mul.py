"""silu(gate) * up between the two GEMMs, rounded as FUSED_SILU_MUL rounds: D(silu), then times up in D."""

from __future__ import annotations

import torch

from moeracle.kernels.triton.tiles import elements_per_program
from moeracle.kernels.triton.triton_import import tl, triton


@triton.jit
def silu(g):
    """Return g / (1 + exp(-g)) in fp32, accurate also where exp(-g) would overflow (g < -88)."""
    g = tl.where(g < -1000.0, -1000.0, g)  # -inf becomes -0, its limit; NaN stays
    half = tl.exp(-0.5 * tl.abs(g))  # in (0, 1]; exp(-|g|) itself would be subnormal from |g| = 87 on
    small = half * half
    return tl.where(g < 0, (g * half) * half, g) / (1.0 + small)


@triton.jit
def silu_and_mul_kernel(h_ptr, a_ptr, total, I, stride_hm, stride_hn, BLOCK: tl.constexpr):
    """One program: BLOCK consecutive elements of a [R, I]."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    gate_ptrs = h_ptr + (i // I) * stride_hm + (i % I) * stride_hn
    gate = tl.load(gate_ptrs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + I * stride_hn, mask=mask, other=0.0).to(tl.float32)
    D = a_ptr.dtype.element_ty
    # The product of two D values is exact or rounded once in fp32, then once to D: what a multiply in D gives.
    tl.store(a_ptr + i, (silu(gate).to(D).to(tl.float32) * up).to(D), mask=mask)


def silu_and_mul(h: torch.Tensor) -> torch.Tensor:
    """Apply silu to the gate half and multiply by the up half.

    a[r, i] = D(D(silu(h[r, i])) * h[r, I + i])

    Args:
        h: [R, 2I], bf16 or fp16, gate columns first, any strides; R may be 0.
    Returns:
        [R, I] in h's dtype; silu in fp32 within 8 * 2^-23 relative (12 for large negative gates), rounded twice.
    Raises:
        ValueError: h is not [R, 2I], or of another dtype.
    Source: docs/formats.md section 7, FUSED_SILU_MUL.
    """
    if h.ndim != 2 or h.shape[1] % 2:
        raise ValueError(f"h: got shape {tuple(h.shape)}, must be [R, 2I]")
    if h.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"h: got {h.dtype}, must be torch.bfloat16 or torch.float16")
    R, I = h.shape[0], h.shape[1] // 2
    a = torch.empty(R, I, dtype=h.dtype, device=h.device)
    if a.numel():
        block = elements_per_program(a)
        grid = (triton.cdiv(a.numel(), block),)
        silu_and_mul_kernel[grid](h, a, a.numel(), I, *h.stride(), BLOCK=block)
    return a
