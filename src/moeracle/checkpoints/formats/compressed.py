"""compressed-tensors, pack-quantized: codes q + 2^(bits-1), dense along K; zero points the same, along N.

weight_packed int32 [N, ceil(K*bits/32)]   weight_scale [N, groups]   weight_zero_point int32 [ceil(N*bits/32), groups]
weight_shape int64 [2] = (N, K)   weight_g_idx int32 [K]; three dimensions, one matrix for each expert, come first
"""

from __future__ import annotations

import torch

from moeracle.ref.errors import require
from moeracle.ref.weights.dense_bits import unpack_bits, words_for
from moeracle.ref.weights.stored import StoredWeight

from ..files import TensorFiles, shown
from ..linear import Linear, Sizes
from .gptq import SCALES


class CompressedLinear(Linear):
    """A linear that compressed-tensors packed."""

    format = "compressed-tensors"

    @classmethod
    def recognise(cls, files: TensorFiles, parts: dict[str, str]) -> bool:
        return {"packed", "scale"} <= parts.keys() and files.dtype(parts["packed"]) == "I32"

    @property
    def label(self) -> str:
        kind = "asym" if "zero_point" in self.parts else "sym"
        return f"{self.format} {kind}" + (", act-order" if self._order() is not None else "")

    @property
    def zero_form(self) -> str:
        return f"z + {1 << (self.sizes.bits - 1)}, along N" if "zero_point" in self.parts else ""

    def measure(self) -> Sizes:
        packed, scale = self.shape("packed"), self.shape("scale")
        right = len(packed) in (2, 3) and len(scale) == len(packed) and 0 not in (*packed, *scale)
        wrong = f"has shape {list(packed)} beside a scale {list(scale)}, must be [N, words] and [N, groups]"
        self.check("packed", right, wrong)
        *lead, N, words = packed
        groups = scale[-1]
        K, bits = self._columns(N, words)
        self.expect("packed", (*lead, N, words_for(K, bits)), "I32")
        self.expect("scale", (*lead, N, groups), *SCALES)
        if "zero_point" in self.parts:
            self.expect("zero_point", (*lead, words_for(N, bits), groups), "I32")
        if "g_idx" in self.parts:
            self.expect("g_idx", (K,), "I32")
        return Sizes(N, K, groups, self.group_size(K, groups), bits, *lead)

    def _columns(self, N: int, words: int) -> tuple[int, int]:
        """Return K, which weight_shape holds, and bits a code, which the config holds; or what fits."""
        stated = self.declared.of(self.module).bits or self.declared.spec.bits or 4
        if "shape" not in self.parts:
            return words * 32 // stated, stated
        name = shown(self.parts["shape"])
        require(
            self.shape("shape") in ((2,), (3,)) and self.dtype("shape") in ("I64", "I32"), f"{name}: must be int64 [2]"
        )
        rows, K = self.files.read(self.parts["shape"]).tolist()[-2:]
        require(
            rows == N and 0 < K <= words * 32,
            f"{name}: says {[rows, K]}, must be [{N}, K] with K codes in {words} words",
        )
        return K, next(
            (b for b in (stated, 4, 8, 2, 3, 5, 6, 7, 1) if 1 <= b <= 8 and words_for(K, b) == words), stated
        )

    def _order(self) -> torch.Tensor | None:
        if "g_idx" not in self.parts:
            return None
        g_idx = self.files.read(self.parts["g_idx"]).to(torch.int64)
        if bool((g_idx == -1).all()):  # a placeholder that says nothing
            return None
        return None if torch.equal(g_idx, torch.arange(len(g_idx)) // self.sizes.group_size) else g_idx

    def stored(self, expert: int | None = None) -> StoredWeight:
        sizes = self.sizes
        codes = unpack_bits(self.read("packed", expert), sizes.bits, sizes.K)
        return StoredWeight(
            codes, self.read("scale", expert), self.zeros(expert), None, self._order(), sizes.bits, sizes.group_size
        )

    def zeros(self, expert: int | None = None) -> torch.Tensor | None:
        stored = self.stored_zeros(expert)
        return None if stored is None else stored.to(torch.int16).mT

    def stored_zeros(self, expert: int | None = None) -> torch.Tensor | None:
        if "zero_point" not in self.parts:
            return None
        return unpack_bits(self.read("zero_point", expert).mT, self.sizes.bits, self.sizes.N)
