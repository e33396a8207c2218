"""Made problems as numbers, before they are packed as a kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

T = torch.Tensor


@dataclass
class Weight:
    """One weight as numbers: codes u [E, N, K], scale s and zero point z [E, N, K/G]; w = (u - z) * s."""

    u: T
    s: T
    z: T

    def copy(self) -> Weight:
        """Return a copy that may be changed."""
        return Weight(self.u.clone(), self.s.clone(), self.z.clone())


@dataclass
class Layer:
    """One made problem of moe_w4a16, or of a single routed GEMM as its first half: what may be varied, as numbers."""

    x: T
    ids: T
    router: T
    w13: Weight
    w2: Weight
    strided: bool = False

    def but(self, **changes: Any) -> Layer:
        """Return a copy with some parts replaced."""
        return replace(self, **changes)
