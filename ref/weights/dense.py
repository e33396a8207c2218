"""DenseWeight: a weight that somebody has dequantized already, where an Int4Weight stands otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import require
from .dequantize import SCALE_DTYPES
from .sizes import WeightSizes

__all__ = ["DenseWeight"]


@dataclass(frozen=True, eq=False)
class DenseWeight(WeightSizes):
    """Weights w[..., n, k] as they are, in place of codes, scales and zero points.

    Args:
        values: bf16, fp16 or fp32 [N, K] or [E, N, K], any strides.
    Raises:
        ValueError: another dtype or number of dimensions.
    """

    values: torch.Tensor

    def __post_init__(self) -> None:
        dtypes = ", ".join(map(str, SCALE_DTYPES))
        require(self.values.dtype in SCALE_DTYPES, f"values: got {self.values.dtype}, must be one of {dtypes}")
        shape = tuple(self.values.shape)
        require(self.values.ndim in (2, 3), f"values: got shape {shape}, must be [N, K] or [E, N, K]")

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape (..., N, K)."""
        return tuple(self.values.shape)

    @property
    def bias(self) -> None:
        """None: nothing is added to products with these weights."""
        return None

    @property
    def G(self) -> int:
        """Columns that share a scale: all of them, as far as anybody knows."""
        return self.K

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    def experts(self, chosen: Sequence[int]) -> DenseWeight:
        """Return the weights of some experts, one after another."""
        return DenseWeight(self.values[list(chosen)])

    def expert(self, e: int) -> DenseWeight:
        """Return expert e's weight, a view; e in 0..E-1."""
        return DenseWeight(self.values[self.check_expert(e)])

    def to(self, device: torch.device | str) -> DenseWeight:
        """Return the same weight on another device."""
        return DenseWeight(self.values.to(device))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the weights [..., N, K] in fp32 or fp64."""
        return self.values.to(dtype)
