"""AWQ gemm, and AutoRound in AWQ's packing: codes and zero points along N, in the order 0 2 4 6 1 3 5 7.

qweight int32 [K, N/8]   qzeros int32 [groups, N/8]   scales [groups, N]
"""

from __future__ import annotations

import torch

from moeracle.ref.weights.layouts import unpack_int4, unpack_zeros
from moeracle.ref.weights.stored import StoredWeight

from ..files import TensorFiles
from ..linear import Linear, Sizes
from .gptq import SCALES


class AwqLinear(Linear):
    """A linear in AWQ's packing."""

    format = "awq"
    scale_part = "scales"

    @classmethod
    def recognise(cls, files: TensorFiles, parts: dict[str, str]) -> bool:
        return {"qweight", "scales"} <= parts.keys()

    @property
    def zero_form(self) -> str:
        return "z, along N, interleaved" if "qzeros" in self.parts else ""

    def measure(self) -> Sizes:
        K, words = self.matrix("qweight")
        groups, N = self.matrix("scales")
        wrong = f"has shape {[K, words]} beside scales {[groups, N]}, fits neither GPTQ nor AWQ"
        self.check("qweight", 8 * words == N, wrong)
        self.expect("qweight", (K, words), "I32")
        self.expect("scales", (groups, N), *SCALES)
        if "qzeros" in self.parts:
            self.expect("qzeros", (groups, words), "I32")
        return Sizes(N, K, groups, self.group_size(K, groups), 4)

    def stored(self, expert: int | None = None) -> StoredWeight:
        codes, scale = unpack_int4(self.read("qweight"), "awq"), self.read("scales").mT
        return StoredWeight(codes, scale, self.zeros(), group_size=self.sizes.group_size)

    def zeros(self, expert: int | None = None) -> torch.Tensor | None:
        stored = self.stored_zeros()
        return None if stored is None else stored.to(torch.int16)

    def stored_zeros(self, expert: int | None = None) -> torch.Tensor | None:
        return unpack_zeros(self.read("qzeros"), "awq") if "qzeros" in self.parts else None
