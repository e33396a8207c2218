"""What the codes themselves say of how they must be read: zero points off by one, and words in another order.

Weights are small and centred, and a quantizer uses its codes fully. So, over the groups of a matrix,
  the mean of code - zero point is near 0, and near 1 or -1 where the zero points are read off by one;
  a group's mean code follows its zero point;
  a group whose scale is large for its rows has codes that lie close together: log |scale| and the log of the codes'
  standard deviation fall together (-0.5 to -0.9 in real files, -0.3 to 0 where rows do not belong to their scales).
The last two tell the order of rows in a word (F08, F09). None of them decides how a file is read; they are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moeracle.ref.weights.stored import StoredWeight

LEAST_GROUPS = 256  # fewer say too little
CLEARLY = 0.25  # by how much a correlation must be better in the other order
OFF_BY_ONE = 0.4  # how near to +-1 the mean must be
# Where row i of eight is found by a reader in AWQ's order if it was stored in sequence, and the other way round.
STORED_IN_SEQUENCE = (0, 2, 4, 6, 1, 3, 5, 7)
STORED_INTERLEAVED = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Evidence:
    """Over some matrices: means and correlations as they are read, and in the other order of rows.

    Args:
        groups: how many were looked at.
        mean: of code - zero point.
        zeros_here, zeros_other: correlation of zero points with mean codes; NaN where zero points do not vary.
        codes_here, codes_other: correlation of log scale with the log of the codes' spread.
    """

    groups: int
    mean: float
    zeros_here: float
    zeros_other: float
    codes_here: float
    codes_other: float

    @property
    def shift(self) -> int:
        """Return 1 if zero points are read one too low, -1 if one too high, 0 if neither shows."""
        sign = 1 if self.mean > 0 else -1
        return sign if self.groups >= LEAST_GROUPS and abs(self.mean - sign) < OFF_BY_ONE else 0

    @property
    def codes_reordered(self) -> bool:
        """Whether the codes fit their scales clearly better in the other order of rows."""
        return self.groups >= LEAST_GROUPS and self.codes_other < self.codes_here - CLEARLY

    @property
    def zeros_reordered(self) -> bool:
        """Whether the zero points fit their codes clearly better in the other order of rows."""
        return self.groups >= LEAST_GROUPS and self.zeros_other > self.zeros_here + CLEARLY


def evidence_of(weights: Sequence[StoredWeight], other: Sequence[int]) -> Evidence | None:
    """Gather the evidence of some matrices; None where none is usable.

    Args:
        weights: with whole groups of at least two columns and rows in eights; others are left out.
        other: where each of eight rows is if it was stored in the other order, one of the two above.
    """
    columns: list[tuple[torch.Tensor, ...]] = []
    total, count = 0.0, 0
    for w in weights:
        if w.N % 8 or w.K % w.groups or w.K // w.groups < 2 or w.group_of is not None:
            continue
        codes = w.codes.double().unflatten(1, (w.groups, -1))
        zero = torch.full(w.scale.shape, float(w.middle)) if w.zero is None else w.zero
        zero, scale, spread = zero.double(), w.scale.double().abs(), codes.std(-1)
        total, count = total + float((codes - zero[..., None]).sum()), count + codes.numel()
        moved = torch.arange(w.N).view(-1, 8)[:, list(other)].flatten()
        used = (scale > 0) & torch.isfinite(scale) & (spread > 0) & (spread[moved] > 0)
        if bool(used.any()):
            columns.append(
                tuple(
                    t[used] for t in (zero, zero[moved], codes.mean(-1), scale.log(), spread.log(), spread[moved].log())
                )
            )
    if not columns or not count:
        return None
    zero, zero_moved, mean, scale, spread, spread_moved = (torch.cat(parts) for parts in zip(*columns, strict=True))
    return Evidence(
        len(zero), total / count, correlation(zero, mean), correlation(zero_moved, mean),
        correlation(scale, spread), correlation(scale, spread_moved),
    )  # fmt: skip


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the correlation of two float64 vectors, NaN where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else float("nan")
