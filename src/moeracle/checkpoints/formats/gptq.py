"""GPTQ, and AutoRound in GPTQ's packing: codes along K, zero points along N, group_of[k] = g_idx[k].

qweight int32 [ceil(K*bits/32), N]   qzeros int32 [groups, ceil(N*bits/32)]   scales [groups, N]   g_idx int32 [K]
"""

from __future__ import annotations

import torch

from moeracle.ref.weights.dense_bits import unpack_bits, words_for
from moeracle.ref.weights.stored import StoredWeight, unpack_v1_zeros

from ..files import TensorFiles
from ..linear import Linear, Sizes

SCALES = ("F16", "BF16", "F32")


class GptqLinear(Linear):
    """A linear in GPTQ's packing."""

    format = "gptq"
    scale_part = "scales"

    @classmethod
    def recognise(cls, files: TensorFiles, parts: dict[str, str]) -> bool:
        if not {"qweight", "scales"} <= parts.keys():
            return False
        qweight, scales = files.shape(parts["qweight"]), files.shape(parts["scales"])
        # AWQ's words lie along N; GPTQ's rows are as long as the scales'.
        return "g_idx" in parts or len(qweight) != 2 or len(scales) != 2 or qweight[1] == scales[1]

    @property
    def label(self) -> str:
        return f"gptq {self.declared.zeros or 'v1'}" + (", act-order" if self.acts_in_order else "")

    @property
    def zero_form(self) -> str:
        if "qzeros" not in self.parts:
            return ""
        return "z - 1, along N" if self.declared.zeros != "v2" else "z, along N"

    @property
    def acts_in_order(self) -> bool:
        """Whether g_idx is there and is not k // group_size."""
        return self.order() is not None

    def order(self) -> torch.Tensor | None:
        """Return g_idx as int64 [K] where it differs from k // group_size, else None."""
        if "g_idx" not in self.parts:
            return None
        g_idx = self.read("g_idx").to(torch.int64)
        plain = torch.arange(self.sizes.K) // self.sizes.group_size
        return None if torch.equal(g_idx, plain) else g_idx

    def measure(self) -> Sizes:
        rows, N = self.matrix("qweight")
        groups, columns = self.matrix("scales")
        self.check("scales", columns == N, f"has {columns} columns, must be {N}, as many as qweight's")
        bits = self._bits(rows, N)
        K = (
            self.shape("g_idx")[0]
            if len(self.shape("g_idx") if "g_idx" in self.parts else ()) == 1
            else rows * 32 // bits
        )
        self.expect("qweight", (words_for(K, bits), N), "I32")
        self.expect("scales", (groups, N), *SCALES)
        if "qzeros" in self.parts:
            self.expect("qzeros", (groups, words_for(N, bits)), "I32")
        if "g_idx" in self.parts:
            self.expect("g_idx", (K,), "I32", "I64")
        return Sizes(N, K, groups, self.group_size(K, groups), bits)

    def _bits(self, rows: int, N: int) -> int:
        """Return bits a code: by the width of qzeros, the length of g_idx, or the config."""
        stated = self.declared.of(self.module).bits or self.declared.spec.bits or 4
        fits = lambda bits: (
            ("qzeros" not in self.parts or self.shape("qzeros")[-1] == words_for(N, bits))
            and ("g_idx" not in self.parts or rows == words_for(self.shape("g_idx")[0], bits))
        )
        return next((bits for bits in (stated, 4, 8, 2, 3, 5, 6, 7) if 1 <= bits <= 8 and fits(bits)), 4)

    def stored(self, expert: int | None = None) -> StoredWeight:
        sizes = self.sizes
        codes = unpack_bits(self.read("qweight").mT, sizes.bits, sizes.K)
        order = self.order()
        if order is not None:
            inside = 0 <= int(order.min()) <= int(order.max()) < sizes.groups
            held = f"{int(order.min())}..{int(order.max())}"
            self.check("g_idx", inside, f"holds {held}, must be 0..{sizes.groups - 1}")
        return StoredWeight(codes, self.read("scales").mT, self.zeros(), None, order, sizes.bits, sizes.group_size)

    def zeros(self, expert: int | None = None) -> torch.Tensor | None:
        if "qzeros" not in self.parts:
            return None
        words, sizes = self.read("qzeros"), self.sizes
        if self.declared.zeros == "v2":
            return unpack_bits(words, sizes.bits, sizes.N).to(torch.int16).mT
        reading = self.reading if 32 % sizes.bits == 0 else "modulo"  # where codes straddle words no loader carries
        return unpack_v1_zeros(words, reading, sizes.N, sizes.bits).mT

    def stored_zeros(self, expert: int | None = None) -> torch.Tensor | None:
        return unpack_bits(self.read("qzeros"), self.sizes.bits, self.sizes.N) if "qzeros" in self.parts else None
