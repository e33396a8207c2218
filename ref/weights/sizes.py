"""The sizes of a weight, whatever form it has: what follows from its logical shape."""

from __future__ import annotations

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
        return self.shape[0] if len(self.shape) > 2 else None

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
