"""silu(gate) * up, or another activation: what stands between the two GEMMs."""

from __future__ import annotations

import torch

from ..activation import Activation
from ..errors import require


def silu_and_mul(
    h: torch.Tensor, *, activation: Activation | str = "silu", dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Apply silu, or another activation, to the gate half and multiply by the up half.

    a[r, i] = silu(h[r, i]) * h[r, I + i],  silu(g) = g / (1 + exp(-g))

    silu(+-0) is 0 of the same sign, silu(-inf) is -0 here (the limit), silu(+inf) is +inf.

    Args:
        h: [R, 2I], gate columns first.
        activation: its text or the Activation, as a contract's field of that name (activation.py).
        dtype: what to compute and return in, torch.float32 or torch.float64.
    Returns:
        [R, I] in `dtype`; within (8 + 1.2|g|sigma(-g)) * 2^-23 relative in fp32.
    Raises:
        ValueError: h is not two-dimensional with an even number of columns; an unknown activation.
    Source: docs/formats.md section 4; docs/numerics.md.
    """
    require(h.ndim == 2 and h.shape[1] % 2 == 0, f"h: got shape {tuple(h.shape)}, must be [R, 2I]")
    gate, up = h.to(dtype).chunk(2, dim=1)
    return activation_of(activation)(gate, up)


def activation_of(activation: Activation | str) -> Activation:
    """Return an Activation that may be given by its text."""
    return Activation.parse(activation) if isinstance(activation, str) else activation
