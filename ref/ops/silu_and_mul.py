"""silu(gate) * up, the activation between the two GEMMs."""

from __future__ import annotations

import torch

from ..errors import require


def silu_and_mul(h: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Apply silu to the gate half and multiply by the up half.

    a[r, i] = silu(h[r, i]) * h[r, I + i],  silu(g) = g / (1 + exp(-g))

    silu(+-0) is 0 of the same sign, silu(-inf) is -0 here (the limit), silu(+inf) is +inf.

    Args:
        h: [R, 2I], gate columns first.
        dtype: what to compute and return in, torch.float32 or torch.float64.
    Returns:
        [R, I] in `dtype`; within (8 + 1.2|g|sigma(-g)) * 2^-23 relative in fp32.
    Raises:
        ValueError: h is not two-dimensional with an even number of columns.
    Source: docs/formats.md section 4; docs/numerics.md.
    """
    require(h.ndim == 2 and h.shape[1] % 2 == 0, f"h: got shape {tuple(h.shape)}, must be [R, 2I]")
    gate, up = h.to(dtype).chunk(2, dim=1)
    return silu(gate) * up


def silu(gate: torch.Tensor) -> torch.Tensor:
    """Return gate / (1 + exp(-gate)) in gate's dtype; the limit -0 at -inf."""
    # gate * sigmoid(gate) is inf * 0 at -inf; below -800 the quotient is -0 in fp64 too.
    return torch.where(gate < -800, torch.full_like(gate, -0.0), gate * torch.sigmoid(gate))
