"""Int4Weight and Int8Weight: one quantized weight matrix, or one per expert, as a kernel receives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch

from ..errors import require
from .dequantize import SCALE_DTYPES, dequantize_into
from .layouts import (
    SCALES_K_FIRST,
    ZERO_PACKINGS_OF,
    Packing,
    pack_codes,
    pack_zeros,
    packing_of,
    unpack_codes,
    unpack_zeros,
)
from .sizes import WeightSizes

W = TypeVar("W", bound="Int4Weight")


@dataclass(frozen=True, eq=False)
class Int4Weight(WeightSizes):
    """Packed int4 codes with their scales and zero points: w[..., n, k] = (u - z) * s.

    Args:
        packed: words in `layout`'s shape (see layouts.PACKINGS), any leading dimensions, any strides.
        scale: bf16, fp16 or fp32, logically [..., N, K/G] in every layout; for SCALES_K_FIRST a transposed view of
            contiguous [..., K/G, N] storage, which is what their kernels read.
        zero: None for the symmetric zero point 8, else the words of `zero_layout` (see layouts.ZERO_PACKINGS;
            `unpacked` is uint8 [..., N, K/G]).
        layout: one of LAYOUTS, whose codes are of 4 bits.
        group_size: columns that share a scale; the last group is short where it does not divide K. -1 is one group over
            all of K.
        zero_layout: one of ZERO_LAYOUTS; without meaning when zero is None.
        group_of: int32 [..., K], the group of each column (act-order, a file's g_idx); None: k // group_size.
        bias: bf16, fp16 or fp32 [..., N], added to every product with this matrix; None: nothing is.

    Raises:
        ValueError: an unknown layout, or a dtype, shape or device that does not fit `packed`. No data is read.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    layout: str
    group_size: int
    zero_layout: str = "unpacked"
    group_of: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    bits: ClassVar[int] = 4  # of a code: all that an Int8Weight is otherwise

    def __post_init__(self) -> None:
        packing, packed, scale, zero = self.packing, self.packed, self.scale, self.zero
        form = None if self.zero_layout == "unpacked" else packing_of("zero_layout", self.zero_layout, self.bits)
        _check_container("packed", packed, packing.dtype)
        require(packed.ndim >= 2, f"packed: got shape {tuple(packed.shape)}, must have at least two dimensions")
        *lead, N, K = self.shape
        require(K > 0, f"packed: got shape {tuple(packed.shape)}, must hold at least one column")
        whole = self.group_size == -1 or 0 < self.group_size <= K
        require(whole, f"group_size: got {self.group_size}, must be -1 or 1 to K = {K}")
        require(scale.dtype in SCALE_DTYPES, f"scale: got {scale.dtype}, must be {', '.join(map(str, SCALE_DTYPES))}")
        _check_fits("scale", scale, (*lead, N, -(-K // self.G)), packed)
        if self.group_of is not None:
            _check_fits("group_of", self.group_of, (*lead, K), packed)
            require(self.group_of.dtype == torch.int32, f"group_of: got {self.group_of.dtype}, must be torch.int32")
        if self.bias is not None:
            _check_fits("bias", self.bias, (*lead, N), packed)
            floats = ", ".join(map(str, SCALE_DTYPES))
            require(self.bias.dtype in SCALE_DTYPES, f"bias: got {self.bias.dtype}, must be {floats}")
        if zero is None:
            return
        shapes = tuple(scale.shape)
        fitting = [name for name in zero_layouts_that_fit(zero, shapes, self.bits) if name != self.zero_layout]
        hint = f"; it fits zero_layout {' or '.join(map(repr, fitting))}" if fitting else ""
        if form is None:
            require(zero.dtype == torch.uint8, f"zero: got {zero.dtype}, must be torch.uint8 for 'unpacked'{hint}")
            _check_fits("zero", zero, tuple(scale.shape), packed, hint)
            return
        _check_container("zero", zero, form.dtype, hint)
        per_word = len(form.shifts)
        require(N % per_word == 0, f"zero_layout: {self.zero_layout!r} needs N a multiple of {per_word}, got N = {N}")
        _check_fits("zero", zero, form.packed_shape(tuple(scale.shape)), packed, hint)

    @classmethod
    def from_codes(
        cls: type[W],
        codes: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None = None,
        *,
        layout: str,
        zero_layout: str = "unpacked",
        group_size: int = 0,
        group_of: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> W:
        """Pack codes uint8 [..., N, K], scale [..., N, K/G] and zero uint8 [..., N, K/G] as `layout` stores them.

        group_size: 0: K over the number of groups, which must then divide K.
        """
        packed = pack_codes(codes, layout, cls.bits)
        K, groups = codes.shape[-1], max(scale.shape[-1], 1)
        require(group_size > 0 or K % groups == 0, f"scale: last dimension is {groups}, must divide K = {K}")
        scale = scale.mT.contiguous().mT if layout in SCALES_K_FIRST else scale.contiguous()
        packed_zero = None if zero is None else pack_zeros(zero, zero_layout, cls.bits)
        return cls(packed, scale, packed_zero, layout, group_size or K // groups, zero_layout, group_of, bias)

    @property
    def packing(self) -> Packing:
        """How the layout keeps codes of this width."""
        return packing_of("layout", self.layout, self.bits)

    @property
    def middle(self) -> int:
        """The zero point of a symmetric weight: 8, or 128."""
        return 1 << (self.bits - 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape (..., N, K)."""
        return self.packing.logical_shape(tuple(self.packed.shape))

    @property
    def G(self) -> int:
        """Columns that share a scale, with -1 resolved to K."""
        return self.K if self.group_size == -1 else self.group_size

    @property
    def regular(self) -> bool:
        """Whether column k is of group k // G, and every group is whole."""
        return self.group_of is None and self.K % self.G == 0

    def columns(self) -> torch.Tensor:
        """The group of each column, int64 [..., K], or [K] where it is k // G."""
        return torch.arange(self.K, device=self.device) // self.G if self.group_of is None else self.group_of.long()

    def spread(self, of_groups: torch.Tensor) -> torch.Tensor:
        """Say of each column [..., N, K] what [..., N, groups] says of its group."""
        if self.regular:
            return of_groups.repeat_interleave(self.G, -1)
        columns = self.columns()
        if columns.ndim == 1:
            return of_groups[..., columns]
        return of_groups.gather(-1, columns[..., None, :].expand(*of_groups.shape[:-1], self.K))

    def codes(self) -> torch.Tensor:
        """The codes, uint8 [..., N, K]."""
        return unpack_codes(self.packed, self.layout, self.bits)

    def zeros(self) -> torch.Tensor | None:
        """The zero points, uint8 [..., N, K/G], or None where every zero point is the middle."""
        return None if self.zero is None else unpack_zeros(self.zero, self.zero_layout, self.bits)

    def expert(self: W, e: int) -> W:
        """Expert e's weight, a view without the E dimension; e in 0..E-1 (a -1 is an ignored expert, not the last)."""
        return self._at((self.check_expert(e),))

    def experts(self: W, chosen: Sequence[int]) -> W:
        """The weights of some experts, one after another: views where they follow each other, else copies."""
        first, last = min(chosen), max(chosen)
        run = list(chosen) == list(range(first, last + 1))
        index = slice(first, last + 1) if run else torch.tensor(list(chosen), device=self.packed.device)
        return self._at(index)

    def to(self: W, device: torch.device | str) -> W:
        """The same weight on another device, with its strides; itself when it is there already."""
        target = torch.device(device)
        if target.type == self.packed.device.type and target.index in (None, self.packed.device.index):
            return self
        zero = None if self.zero is None else _move(self.zero, device)
        packed, scale = _move(self.packed, device), _move(self.scale, device)
        of, bias = (None if part is None else part.to(device) for part in (self.group_of, self.bias))
        return type(self)(packed, scale, zero, self.layout, self.group_size, self.zero_layout, of, bias)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weights [..., N, K] in fp32 or fp64, as `dequantize_int4`; on a CPU what its cache holds at once."""
        require(dtype in (torch.float32, torch.float64), f"dtype: got {dtype}, must be torch.float32 or torch.float64")
        out = torch.empty(self.shape, dtype=dtype, device=self.packed.device)
        # Whoever asks on a GPU bounds memory there: launches are what takes time.
        if self.device.type != "cpu" or len(self.shape) == 2 or self.at_once() >= self.shape[0]:
            return self._dequantized(out)
        for start in range(0, self.shape[0], self.at_once()):
            part = slice(start, start + self.at_once())
            self._at(part)._dequantized(out[part])
        return out

    def _dequantized(self, out: torch.Tensor) -> torch.Tensor:
        if self.regular:
            return dequantize_into(out, self.codes(), self.scale, self.zeros(), self.middle)
        zeros = self.zeros()
        out.copy_(self.codes()).sub_(self.middle if zeros is None else self.spread(zeros).to(out.dtype))
        return out.mul_(self.spread(self.scale).to(out.dtype))

    @property
    def device(self) -> torch.device:
        """Where the words are."""
        return self.packed.device

    def _at(self: W, index: tuple[int, ...] | slice | torch.Tensor) -> W:
        zero = None if self.zero is None else self.zero[index]
        of, bias = (None if part is None else part[index] for part in (self.group_of, self.bias))
        part = object.__new__(type(self))  # fits as the whole does, which was checked: a layer asks for thousands
        rest = {"zero": zero, "group_of": of, "bias": bias}
        vars(part).update(vars(self), packed=self.packed[index], scale=self.scale[index], **rest)
        return part


@dataclass(frozen=True, eq=False)
class Int8Weight(Int4Weight):
    """Packed int8 codes with their scales and zero points: w[..., n, k] = (u - z) * s, u and z in 0..255.

    Args:
        packed: words in `layout`'s shape, four codes in each, or bytes (see layouts.PACKINGS8).
        scale, group_size, group_of, bias: as of Int4Weight.
        zero: None for the symmetric zero point 128, else the words of `zero_layout` (see layouts.ZERO_PACKINGS8).
        layout: one of LAYOUTS8.
        zero_layout: "unpacked" or one of ZERO_PACKINGS8.

    Raises:
        ValueError: as Int4Weight.
    """

    bits: ClassVar[int] = 8


# The class of a weight whose codes have so many bits.
OF_BITS: dict[int, type[Int4Weight]] = {cls.bits: cls for cls in (Int4Weight, Int8Weight)}


def zero_layouts_that_fit(zero: torch.Tensor, shape: tuple[int, ...], bits: int = 4) -> list[str]:
    """Return the zero-point forms whose container a tensor may be, for zero points of a shape [..., N, K/G]."""
    fits = ["unpacked"] if zero.dtype == torch.uint8 and tuple(zero.shape) == shape else []
    for name, form in ZERO_PACKINGS_OF[bits].items():
        dtypes = (torch.int32,) if form.dtype == torch.int32 else (torch.uint8, torch.int8)
        whole = shape[-2] % len(form.shifts) == 0
        if whole and zero.dtype in dtypes and tuple(zero.shape) == form.packed_shape(shape):
            fits.append(name)
    return fits


def _check_container(name: str, container: torch.Tensor, dtype: torch.dtype, hint: str = "") -> None:
    allowed = (torch.int32,) if dtype == torch.int32 else (torch.uint8, torch.int8)
    must = f"must be {' or '.join(map(str, allowed))}{hint}"
    require(container.dtype in allowed, f"{name}: got {container.dtype}, {must}")


def _check_fits(name: str, tensor: torch.Tensor, shape: tuple[int, ...], packed: torch.Tensor, hint: str = "") -> None:
    if tensor.ndim > 1 and tuple(tensor.mT.shape) == shape:
        hint = hint or "; it fits transposed: pass its .mT"
    require(tuple(tensor.shape) == shape, f"{name}: got shape {tuple(tensor.shape)}, must be {shape}{hint}")
    require(tensor.device == packed.device, f"{name}: got device {tensor.device}, must be packed's {packed.device}")


def _move(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy with the strides kept: Tensor.to would close the gaps of padded rows."""
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return tensor.to(device)  # an expanded view has no memory of its own to copy into
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device).copy_(tensor)
