"""Variants of the dense HIP GEMV under names of their own, as the registry offers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeracle.kernels.hip.int4_linear import int4_linear

if TYPE_CHECKING:
    import torch

    from moeracle.ref.weights.weight import Int4Weight


def linear(x: torch.Tensor, w: Int4Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Read bf16 codes by truncation, the default."""
    return int4_linear(x, w, bias)


def linear_sub_finite(x: torch.Tensor, w: Int4Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Read bf16 codes by rounding to nearest even without the NaN path: the same bits."""
    return int4_linear(x, w, bias, decode="sub_finite")


def linear_sum(x: torch.Tensor, w: Int4Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Leave codes at 128 + u and correct by (128 + z) * sum(x): other bits, and a contract of their own."""
    return int4_linear(x, w, bias, decode="sum")
