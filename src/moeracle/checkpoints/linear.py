"""Linear: one matrix of a checkpoint, or all experts' in 3D, quantized in some format; its data are read when asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from moeracle.ref.errors import require
from moeracle.ref.weights.stored import StoredWeight

from .config import Declared
from .files import TensorFiles, shown
from .names import Place, place_of

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a linear, from its tensors' headers.

    Args:
        N, K: rows out, columns in.
        groups: scales a row; 0 for a matrix that is not quantized.
        group_size: columns a group, of which the last may have fewer; 0 likewise.
        bits: of a code; of an element where it is not quantized.
        experts: of a 3D tensor, else None.
    """

    N: int
    K: int
    groups: int
    group_size: int
    bits: int
    experts: int | None = None


class Linear:
    """One linear of a checkpoint.

    Args:
        files: where its tensors are.
        module: its name, without the part's.
        parts: part ("qweight", "scale", …) to the tensor's name.
        declared: the config.
        reading: how zero points of GPTQ v1 are read, one of V1_READINGS.
    """

    format: ClassVar[str] = ""
    quantized: ClassVar[bool] = True
    scale_part: ClassVar[str] = "scale"

    def __init__(
        self, files: TensorFiles, module: str, parts: dict[str, str], declared: Declared, reading: str = "modulo"
    ) -> None:
        self.files, self.module, self.parts, self.declared, self.reading = files, module, parts, declared, reading

    @classmethod
    def recognise(cls, files: TensorFiles, parts: dict[str, str]) -> bool:
        """Say whether these parts are this format's."""
        raise NotImplementedError

    @cached_property
    def place(self) -> Place:
        """Where it stands in the model."""
        return place_of(self.module)

    @cached_property
    def sizes(self) -> Sizes:
        """Its sizes, after checking that all of its tensors fit them.

        Raises:
            ValueError: a tensor of another shape or dtype than the format has.
        """
        return self.measure()

    @property
    def label(self) -> str:
        """The format as a report names it."""
        return self.format

    @property
    def zero_form(self) -> str:
        """How zero points are stored, in a few words; "" where there are none."""
        return ""

    @property
    def weight_dtype(self) -> torch.dtype | None:
        """The dtype that the format's own code rounds weights to; None: the scales'."""
        return None

    def measure(self) -> Sizes:
        """Work out `sizes`."""
        raise NotImplementedError

    def stored(self, expert: int | None = None) -> StoredWeight:
        """Read the codes, scales and zero points.

        Args:
            expert: which, of a 3D tensor.
        Raises:
            ValueError: the tensors do not fit, or this format's weights are no integers with scales.
        """
        raise NotImplementedError

    def scales(self, expert: int | None = None) -> torch.Tensor | None:
        """Read the scales alone, [N, groups] in any order, for statistics; None where there are none."""
        return self.read(self.scale_part, expert) if self.scale_part in self.parts else None

    def stored_zeros(self, expert: int | None = None) -> torch.Tensor | None:
        """Read the codes that qzeros hold, not yet zero points, in any order; None where there are none."""
        return None

    def zeros(self, expert: int | None = None) -> torch.Tensor | None:
        """Read the zero points alone, int16 [N, groups]; None: all are the middle."""
        return None

    def dequantize(self, dtype: torch.dtype = torch.float32, expert: int | None = None) -> torch.Tensor:
        """Return the weights [N, K], exact before the format's own rounding."""
        return self.stored(expert).dequantize(dtype)

    def weight(self, expert: int | None = None) -> torch.Tensor:
        """Return the weights [N, K] as the format's own code gives them: rounded once to its dtype."""
        stored = self.stored(expert)
        wide = torch.float64 if stored.offset is not None or stored.scale.dtype == torch.float32 else torch.float32
        return stored.dequantize(wide).to(self.weight_dtype or stored.scale.dtype)

    # ---- For the formats ----

    def read(self, part: str, expert: int | None = None) -> torch.Tensor:
        """Read one part, of one expert where the tensor holds all."""
        if self.sizes.experts is not None:
            require(
                expert is not None and 0 <= expert < self.sizes.experts,
                f"{shown(self.module)}: expert {expert} is not there, must be 0..{self.sizes.experts - 1}",
            )
        return self.files.read(self.parts[part], expert if self.sizes.experts is not None else None)

    def shape(self, part: str) -> tuple[int, ...]:
        """Return a part's shape."""
        return self.files.shape(self.parts[part])

    def dtype(self, part: str) -> str:
        """Return a part's dtype, as safetensors calls it."""
        return self.files.dtype(self.parts[part])

    def expect(self, part: str, shape: tuple[int, ...], *dtypes: str) -> None:
        """Raise ValueError unless a part has this shape and one of these dtypes."""
        name = shown(self.parts[part])
        got, kind = self.shape(part), self.dtype(part)
        require(got == shape, f"{name}: has shape {list(got)}, must be {list(shape)} as {self.format}")
        require(kind in dtypes, f"{name}: is {kind}, must be {' or '.join(dtypes)} as {self.format}")

    def check(self, part: str, right: bool, wrong: str) -> None:
        """Raise ValueError, which names a part's tensor and says what is wrong with it, unless it is right."""
        require(right, f"{shown(self.parts[part])}: {wrong}")

    def matrix(self, part: str) -> tuple[int, ...]:
        """Return a part's shape, which must be a matrix that is not empty."""
        shape = self.shape(part)
        right = len(shape) == 2 and 0 not in shape
        self.check(part, right, f"has shape {list(shape)}, must be a matrix as {self.format}")
        return shape

    def group_size(self, K: int, groups: int) -> int:
        """Return columns a group: the config's where the tensors agree with it, or what cuts K into so many groups."""
        stated = self.declared.of(self.module).group_size
        stated = K if stated == -1 else stated
        size = stated if stated and -(-K // stated) == groups else -(-K // groups)
        fits = -(-K // size) == groups
        require(fits, f"{shown(self.module)}: has {groups} groups a row for K = {K}, which no group size gives")
        return size
