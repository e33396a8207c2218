"""torchao: unpacked codes (IntxUnpackedToInt8Tensor, Int8Tensor), and Int4Tensor, whose offset is a float.

_weight_qdata int8 [N, K]     _weight_scale [N, groups]   _weight_zero_point int8 [N, groups]       w = (q - z) s
_weight_qdata int8 [N, K/2]   _weight_scale [groups, N]   _weight_zero_point floating [groups, N]   w = q s + z
"""

from __future__ import annotations

import json

import torch

from moeracle.ref.weights.layouts import unpack_int4
from moeracle.ref.weights.stored import StoredWeight

from ..files import TensorFiles
from ..linear import FLOATS, Linear, Sizes
from .gptq import SCALES


class IntxLinear(Linear):
    """A linear with one code a byte."""

    format = "torchao unpacked"

    @classmethod
    def recognise(cls, files: TensorFiles, parts: dict[str, str]) -> bool:
        return {"qdata", "scale"} <= parts.keys()

    @property
    def zero_form(self) -> str:
        return "z, signed byte" if "zero_point" in self.parts else ""

    def measure(self) -> Sizes:
        *lead, N, K = shape = self.shape("qdata")
        self.check("qdata", len(shape) in (2, 3) and 0 not in shape, f"has shape {list(shape)}, must be [N, K]")
        scale = self.shape("scale")
        groups = scale[-1] if len(scale) == len(shape) else 1
        right = scale in ((*lead, N), (*lead, N, groups)) and groups > 0
        self.check("scale", right, f"has shape {list(scale)}, must be {[*lead, N]} and groups")
        self.expect("qdata", shape, "I8")
        self.expect("scale", scale, *SCALES)
        if "zero_point" in self.parts:
            self.expect("zero_point", scale, "I8")
        return Sizes(N, K, groups, self.group_size(K, groups), self._bits(), *lead)

    def _bits(self) -> int:
        """Return bits a code: the file's metadata hold the dtype of each weight, the config that of all."""
        named = {f"int{bits}": bits for bits in range(1, 9)}.get(self._said("target_dtype"))
        return named or self.declared.of(self.module).bits or 8

    @property
    def weight_dtype(self) -> torch.dtype | None:
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
        return dtypes.get(self._said("dtype"))

    def _said(self, key: str) -> str:
        """Return what the file's metadata say of this weight, "" where they say nothing."""
        name = f"{self.module}.weight"
        try:
            if name in self.files.metadata:
                return str(json.loads(self.files.metadata[name])["_data"][key]["_data"])
            # executorch's older form: one text for all weights
            return str(json.loads(self.files.metadata["quantization"])[name][key]).removeprefix("torch.")
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""

    def stored(self, expert: int | None = None) -> StoredWeight:
        sizes, middle = self.sizes, 1 << (self.sizes.bits - 1)
        codes = self.read("qdata", expert).to(torch.int16) + middle
        inside = 0 <= int(codes.min()) <= int(codes.max()) < 2 * middle
        self.check("qdata", inside, f"holds codes outside {-middle}..{middle - 1}, the range of int{sizes.bits}")
        scale = self.read("scale", expert).view(sizes.N, -1)
        return StoredWeight(
            codes.to(torch.uint8), scale, self.zeros(expert), bits=sizes.bits, group_size=sizes.group_size
        )

    def zeros(self, expert: int | None = None) -> torch.Tensor | None:
        if "zero_point" not in self.parts:
            return None
        middle = 1 << (self.sizes.bits - 1)
        return self.read("zero_point", expert).to(torch.int16).view(self.sizes.N, -1) + middle


class Int4TensorLinear(Linear):
    """A linear of Int4WeightOnlyConfig: two's complement nibbles, and an offset in place of a zero point."""

    format = "torchao Int4Tensor"

    @classmethod
    def recognise(cls, files: TensorFiles, parts: dict[str, str]) -> bool:
        return {"qdata", "scale", "zero_point"} <= parts.keys() and files.dtype(parts["zero_point"]) in FLOATS

    @property
    def zero_form(self) -> str:
        return "float offset"

    def measure(self) -> Sizes:
        *lead, N, pairs = shape = self.shape("qdata")
        self.check("qdata", len(shape) in (2, 3) and 0 not in shape, f"has shape {list(shape)}, must be [N, K/2]")
        scale = self.shape("scale")
        self.check("scale", len(scale) == len(shape), f"has shape {list(scale)}, must be [groups, {N}]")
        groups = scale[-2]
        self.expect("qdata", shape, "I8", "U8")
        for part in ("scale", "zero_point"):
            self.expect(part, (*lead, groups, N), *SCALES)
        return Sizes(N, 2 * pairs, groups, self.group_size(2 * pairs, groups), 4, *lead)

    def stored(self, expert: int | None = None) -> StoredWeight:
        codes = unpack_int4(self.read("qdata", expert), "nibble_pairs") ^ 8  # q & 15 to q + 8
        scale, offset = self.read("scale", expert).mT, self.read("zero_point", expert).mT
        return StoredWeight(codes, scale, None, offset, group_size=self.sizes.group_size)

    def zeros(self, expert: int | None = None) -> torch.Tensor | None:
        return None  # the middle; the float is an offset
