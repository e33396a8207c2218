"""The sizes of a weight, whatever form it has: what follows from its logical shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ..errors import require

__all__ = ["WeightSizes"]


class WeightSizes:
    """N, K and E of a weight that says its logical shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape (..., N, K)."""
        raise NotImplementedError

    @property
    def N(self) -> int:
        """Output rows."""
        return self.shape[-2]

    @property
    def K(self) -> int:
        """Input columns."""
        return self.shape[-1]

    @property
    def E(self) -> int | None:
        """Experts: the first dimension, or None for a single matrix."""
        first, *others = self.shape
        return first if len(others) > 1 else None

    def experts(self, chosen: Sequence[int]) -> WeightSizes:
        """The weights of some experts, one after another."""
        raise NotImplementedError

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weights [..., N, K] in fp32 or fp64."""
        raise NotImplementedError

    def at_once(self) -> int:
        """How many members of the first dimension, at least one, fit into a CPU's cache: a megabyte of fp32."""
        return max(1, (1 << 18) // max(1, math.prod(self.shape[1:])))

    def matrices(self, chosen: Sequence[int], dtype: torch.dtype) -> Callable[[int], torch.Tensor]:
        """Return e -> its weights [N, K], to be asked for each of `chosen` in order; small ones are made together."""
        at_once = self.at_once()
        made: dict[int, torch.Tensor] = {}

        def matrix(e: int) -> torch.Tensor:
            if e not in made:
                first = chosen.index(self.check_expert(e))
                part = chosen[first : first + at_once]
                made.update(zip(part, self.experts(part).dequantize(dtype), strict=True))
            return made.pop(e)

        return matrix

    def check_expert(self, e: int) -> int:
        """Return e if this weight has such an expert; -1 is an ignored expert, not the last.

        Args:
            e: an expert, 0..E-1.
        Returns:
            e as an int.
        Raises:
            ValueError: no expert dimension, or e is outside 0..E-1.
        """
        E = self.E
        if E is None:
            raise ValueError(f"expert: this weight has shape {self.shape}, must have an expert dimension")
        require(0 <= e < E, f"e: got {e}, must be 0..{E - 1}")
        return int(e)
