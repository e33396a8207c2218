"""One signed code a byte, q in -128..127: int8 weights of compressed-tensors (int-quantized) and torchao's Int8Tensor.

weight int8 [N, K]   weight_scale [N] or [N, groups]   weight_zero_point int8 [N, groups] or none
"""

from __future__ import annotations

import torch

from moeracle.ref.weights.stored import StoredWeight

from ..files import TensorFiles
from ..linear import Linear, Sizes
from .gptq import SCALES


class Int8Linear(Linear):
    """A linear whose bytes are its codes."""

    format = "int8 bytes"

    @classmethod
    def recognise(cls, files: TensorFiles, parts: dict[str, str]) -> bool:
        return {"weight", "scale"} <= parts.keys() and files.dtype(parts["weight"]) == "I8"

    @property
    def zero_form(self) -> str:
        return "z, signed byte" if "zero_point" in self.parts else ""

    def measure(self) -> Sizes:
        N, K = self.matrix("weight")
        scale = self.shape("scale")
        groups = scale[1] if len(scale) == 2 else 1
        self.check("scale", scale in ((N,), (N, groups)), f"has shape {list(scale)}, must be [{N}] or [{N}, groups]")
        self.expect("weight", (N, K), "I8")
        self.expect("scale", scale, *SCALES)
        if "zero_point" in self.parts:
            self.expect("zero_point", scale, "I8")
        return Sizes(N, K, groups, self.group_size(K, groups), 8)

    def stored(self, expert: int | None = None) -> StoredWeight:
        N = self.sizes.N
        codes = (self.read("weight").to(torch.int16) + 128).to(torch.uint8)
        return StoredWeight(
            codes, self.read("scale").view(N, -1), self.zeros(), bits=8, group_size=self.sizes.group_size
        )

    def zeros(self, expert: int | None = None) -> torch.Tensor | None:
        if "zero_point" not in self.parts:
            return None
        return self.read("zero_point").to(torch.int16).view(self.sizes.N, -1) + 128
