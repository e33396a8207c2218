"""Int4Weight: one quantized weight matrix, or one per expert, as a kernel receives it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import require, unknown
from .dequantize import SCALE_DTYPES, dequantize_into
from .layouts import (
    LAYOUTS,
    PACKINGS,
    SCALES_K_FIRST,
    ZERO_LAYOUTS,
    ZERO_PACKINGS,
    pack_int4,
    pack_zeros,
    unpack_int4,
    unpack_zeros,
)
from .sizes import WeightSizes


@dataclass(frozen=True, eq=False)
class Int4Weight(WeightSizes):
    """Packed int4 codes with their scales and zero points: w[..., n, k] = (u - z) * s.

    Args:
        packed: words in `layout`'s shape (see layouts.PACKINGS), any leading dimensions, any strides.
        scale: bf16, fp16 or fp32, logically [..., N, K/G] in every layout; for SCALES_K_FIRST a transposed view of
            contiguous [..., K/G, N] storage, which is what their kernels read.
        zero: None for the symmetric zero point 8, else the words of `zero_layout` (see layouts.ZERO_PACKINGS;
            `unpacked` is uint8 [..., N, K/G]).
        layout: one of LAYOUTS.
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

    def __post_init__(self) -> None:
        if self.layout not in PACKINGS:
            raise unknown("layout", self.layout, LAYOUTS)
        if self.zero_layout not in ZERO_LAYOUTS:
            raise unknown("zero_layout", self.zero_layout, ZERO_LAYOUTS)
        packing, packed, scale, zero = PACKINGS[self.layout], self.packed, self.scale, self.zero
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
        fitting = [form for form in zero_layouts_that_fit(zero, tuple(scale.shape)) if form != self.zero_layout]
        hint = f"; it fits zero_layout {' or '.join(map(repr, fitting))}" if fitting else ""
        if self.zero_layout == "unpacked":
            require(zero.dtype == torch.uint8, f"zero: got {zero.dtype}, must be torch.uint8 for 'unpacked'{hint}")
            _check_fits("zero", zero, tuple(scale.shape), packed, hint)
            return
        form = ZERO_PACKINGS[self.zero_layout]
        _check_container("zero", zero, form.dtype, hint)
        per_word = len(form.shifts)
        require(N % per_word == 0, f"zero_layout: {self.zero_layout!r} needs N a multiple of {per_word}, got N = {N}")
        _check_fits("zero", zero, form.packed_shape(tuple(scale.shape)), packed, hint)

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None = None,
        *,
        layout: str,
        zero_layout: str = "unpacked",
        group_size: int = 0,
        group_of: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> Int4Weight:
        """Pack codes uint8 [..., N, K], scale [..., N, K/G] and zero uint8 [..., N, K/G] as `layout` stores them.

        group_size: 0: K over the number of groups, which must then divide K.
        """
        packed = pack_int4(codes, layout)
        K, groups = codes.shape[-1], max(scale.shape[-1], 1)
        require(group_size > 0 or K % groups == 0, f"scale: last dimension is {groups}, must divide K = {K}")
        scale = scale.mT.contiguous().mT if layout in SCALES_K_FIRST else scale.contiguous()
        packed_zero = None if zero is None else pack_zeros(zero, zero_layout)
        return cls(packed, scale, packed_zero, layout, group_size or K // groups, zero_layout, group_of, bias)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape (..., N, K)."""
        return PACKINGS[self.layout].logical_shape(tuple(self.packed.shape))

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
        return unpack_int4(self.packed, self.layout)

    def zeros(self) -> torch.Tensor | None:
        """The zero points, uint8 [..., N, K/G], or None where every zero point is 8."""
        return None if self.zero is None else unpack_zeros(self.zero, self.zero_layout)

    def expert(self, e: int) -> Int4Weight:
        """Expert e's weight, a view without the E dimension; e in 0..E-1 (a -1 is an ignored expert, not the last)."""
        return self._at((self.check_expert(e),))

    def experts(self, chosen: Sequence[int]) -> Int4Weight:
        """The weights of some experts, one after another: views where they follow each other, else copies."""
        first, last = min(chosen), max(chosen)
        run = list(chosen) == list(range(first, last + 1))
        index = slice(first, last + 1) if run else torch.tensor(list(chosen), device=self.packed.device)
        return self._at(index)

    def to(self, device: torch.device | str) -> Int4Weight:
        """The same weight on another device, with its strides; itself when it is there already."""
        target = torch.device(device)
        if target.type == self.packed.device.type and target.index in (None, self.packed.device.index):
            return self
        zero = None if self.zero is None else _move(self.zero, device)
        packed, scale = _move(self.packed, device), _move(self.scale, device)
        of, bias = (None if part is None else part.to(device) for part in (self.group_of, self.bias))
        return Int4Weight(packed, scale, zero, self.layout, self.group_size, self.zero_layout, of, bias)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weights [..., N, K] in fp32 or fp64, as `dequantize_int4`; on a CPU one matrix at a time."""
        require(dtype in (torch.float32, torch.float64), f"dtype: got {dtype}, must be torch.float32 or torch.float64")
        out = torch.empty(self.shape, dtype=dtype, device=self.packed.device)
        if self.device.type != "cpu":  # whoever asks bounds memory there: launches are what takes time
            return self._dequantized(out)
        for index in itertools.product(*map(range, self.shape[:-2])):
            self._at(index)._dequantized(out[index])
        return out

    def _dequantized(self, out: torch.Tensor) -> torch.Tensor:
        if self.regular:
            return dequantize_into(out, self.codes(), self.scale, self.zeros())
        zeros = self.zeros()
        out.copy_(self.codes()).sub_(8 if zeros is None else self.spread(zeros).to(out.dtype))
        return out.mul_(self.spread(self.scale).to(out.dtype))

    @property
    def device(self) -> torch.device:
        """Where the words are."""
        return self.packed.device

    def _at(self, index: tuple[int, ...] | slice | torch.Tensor) -> Int4Weight:
        zero = None if self.zero is None else self.zero[index]
        of, bias = (None if part is None else part[index] for part in (self.group_of, self.bias))
        part = object.__new__(Int4Weight)  # fits as the whole does, which was checked: a layer asks for thousands
        rest = {"zero": zero, "group_of": of, "bias": bias}
        vars(part).update(vars(self), packed=self.packed[index], scale=self.scale[index], **rest)
        return part


def zero_layouts_that_fit(zero: torch.Tensor, shape: tuple[int, ...]) -> list[str]:
    """Return the zero-point forms whose container a tensor may be, for zero points of a shape [..., N, K/G]."""
    fits = ["unpacked"] if zero.dtype == torch.uint8 and tuple(zero.shape) == shape else []
    for name, form in ZERO_PACKINGS.items():
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
