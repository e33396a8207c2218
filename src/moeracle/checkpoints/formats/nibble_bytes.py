"""executorch's fused experts: two codes a byte, low nibble first, u = q + 8, no zero points.

experts.w1 int8 [E, 2I, H/2]   experts.w1_scale bf16 [E, 2I, H/G]   experts.w2, w2_scale; gate rows before up rows
"""

from __future__ import annotations

from moeracle.ref.weights.layouts import unpack_int4
from moeracle.ref.weights.stored import StoredWeight

from ..files import TensorFiles
from ..linear import Linear, Sizes
from .gptq import SCALES


class NibbleLinear(Linear):
    """All experts of a projection, two codes a byte."""

    format = "executorch nibble pairs"

    @classmethod
    def recognise(cls, files: TensorFiles, parts: dict[str, str]) -> bool:
        if not {"weight", "scale"} <= parts.keys() or files.dtype(parts["weight"]) not in ("I8", "U8"):
            return False
        return len(files.shape(parts["weight"])) == 3

    def measure(self) -> Sizes:
        shape, scale = self.shape("weight"), self.shape("scale")
        right = len(scale) == 3 and scale[:2] == shape[:2] and 0 not in (*shape, *scale)
        self.check("scale", right, f"has shape {list(scale)}, must be [{shape[0]}, {shape[1]}, groups]")
        E, N, pairs = shape
        self.expect("weight", shape, "I8", "U8")
        self.expect("scale", scale, *SCALES)
        return Sizes(N, 2 * pairs, scale[2], self.group_size(2 * pairs, scale[2]), 4, E)

    def stored(self, expert: int | None = None) -> StoredWeight:
        codes = unpack_int4(self.read("weight", expert), "nibble_pairs")
        return StoredWeight(codes, self.read("scale", expert), group_size=self.sizes.group_size)
