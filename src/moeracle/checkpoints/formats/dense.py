"""What is not quantized, and what is quantized in a way that is only shown: fp8, MXFP4 and anything unknown."""

from __future__ import annotations

import torch

from moeracle.ref.weights.stored import StoredWeight

from ..files import TensorFiles, shown
from ..linear import FLOATS, Linear, Sizes


class DenseLinear(Linear):
    """A matrix, or all experts' in 3D, in bf16, fp16 or fp32; as the file has it, transposed or not."""

    quantized = False

    @classmethod
    def recognise(cls, files: TensorFiles, parts: dict[str, str]) -> bool:
        if "weight" not in parts or files.dtype(parts["weight"]) not in FLOATS:
            return False
        return len(files.shape(parts["weight"])) in (2, 3) and not {"scale", "scale_inv"} & parts.keys()

    @property
    def label(self) -> str:
        return {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}[self.dtype("weight")]

    def measure(self) -> Sizes:
        *lead, N, K = shape = self.shape("weight")
        self.check("weight", 0 not in shape, f"has shape {list(shape)}, must not be empty")
        return Sizes(N, K, 0, 0, FLOATS[self.dtype("weight")].itemsize * 8, *lead)

    def stored(self, expert: int | None = None) -> StoredWeight:
        raise ValueError(
            f"{shown(self.module)}: is {self.label}, not quantized; quantize it first (moeracle.ref.quantize_int4)"
        )

    def dequantize(self, dtype: torch.dtype = torch.float32, expert: int | None = None) -> torch.Tensor:
        return self.weight(expert).to(dtype)

    def weight(self, expert: int | None = None) -> torch.Tensor:
        return self.read("weight", expert)


class ForeignLinear(Linear):
    """Tensors that no format here reads; they are listed, and the reason is given."""

    format = "not read"

    @classmethod
    def recognise(cls, files: TensorFiles, parts: dict[str, str]) -> bool:
        return bool({"weight", "blocks", "packed", "qweight", "qdata"} & parts.keys())

    @property
    def label(self) -> str:
        if "blocks" in self.parts:
            return "mxfp4"
        part = "weight" if "weight" in self.parts else next(iter(self.parts))
        return {"F8_E4M3": "fp8", "F8_E5M2": "fp8"}.get(self.dtype(part), f"{self.dtype(part)}, not read")

    def measure(self) -> Sizes:
        part = next(part for part in ("weight", "blocks", "packed", "qweight", "qdata") if part in self.parts)
        shape = (1, 1, *self.shape(part))
        E, N, K = self.shape(part)[:3] if len(shape) > 4 else shape[-3:]
        return Sizes(N, K, 0, 0, 0, E if len(shape) > 4 else None)

    def stored(self, expert: int | None = None) -> StoredWeight:
        raise ValueError(
            f"{shown(self.module)}: is {self.label}, which has no integer codes with scales; it cannot be judged as "
            "int4"
        )

    def scales(self, expert: int | None = None) -> torch.Tensor | None:
        return None

    def dequantize(self, dtype: torch.dtype = torch.float32, expert: int | None = None) -> torch.Tensor:
        return self.stored(expert).dequantize(dtype)
