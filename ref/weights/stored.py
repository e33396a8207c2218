"""What a checkpoint stores, in one form for all formats: codes, scales, zero points, and which group a column is in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import require, unknown
from .dense_bits import pack_bits, unpack_bits

# How a GPTQ v1 file's qzeros, which hold z-1, are read: `unpack_v1_zeros`.
V1_READINGS = ("modulo", "plain", "byte_carry", "word_carry")


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """One quantized matrix as a file holds it: w[n, k] = (u[n, k] - z[n, g]) * s[n, g] + o[n, g], g = group_of[k].

    Args:
        codes: uint8 [N, K], each below 2^bits.
        scale: bf16, fp16 or fp32 [N, groups].
        zero: int16 [N, groups], 0..2^bits; None: the middle, 2^(bits-1).
        offset: floating [N, groups], added after the product; None: 0.
        group_of: int64 [K], each below groups (act-order); None: k // group_size, so the last may be short.
        bits: of a code, 1..8.
        group_size: columns a group; 0: ceil(K / groups).

    Raises:
        ValueError: a dtype or a shape that does not fit the codes, or a group that is not there.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    group_of: torch.Tensor | None = None
    bits: int = 4
    group_size: int = 0

    def __post_init__(self) -> None:
        codes, scale = self.codes, self.scale
        require(
            codes.dtype == torch.uint8 and codes.ndim == 2,
            f"codes: got {codes.dtype} {tuple(codes.shape)}, must be uint8 [N, K]",
        )
        require(scale.is_floating_point(), f"scale: got {scale.dtype}, must be bf16, fp16 or fp32")
        fits = scale.ndim == 2 and len(scale) == len(codes) and scale.shape[1] > 0
        require(fits, f"scale: got shape {tuple(scale.shape)}, must be [{len(codes)}, groups]")
        for name, tensor in (("zero", self.zero), ("offset", self.offset)):
            same = tensor is None or tensor.shape == scale.shape
            require(
                same,
                f"{name}: got shape {tuple(tensor.shape) if tensor is not None else ()}, must be {tuple(scale.shape)}",
            )
        size = self.group_size or -(-self.K // self.groups)
        require(-(-self.K // size) == self.groups, f"group_size: got {size}, must cut K = {self.K} into {self.groups}")
        object.__setattr__(self, "group_size", size)
        if self.group_of is not None:
            inside = len(self.group_of) == self.K and (
                not self.K or 0 <= int(self.group_of.min()) <= int(self.group_of.max()) < self.groups
            )
            require(inside, f"group_of: must be [{self.K}] with every group below {self.groups}")

    @property
    def N(self) -> int:
        """Output rows."""
        return self.codes.shape[0]

    @property
    def K(self) -> int:
        """Input columns."""
        return self.codes.shape[1]

    @property
    def groups(self) -> int:
        """How many scales a row has."""
        return self.scale.shape[1]

    @property
    def middle(self) -> int:
        """The zero point of a symmetric format."""
        return 1 << (self.bits - 1)

    def columns(self) -> torch.Tensor:
        """Return int64 [K], the group of each column."""
        if self.group_of is not None:
            return self.group_of
        return torch.arange(self.K, device=self.codes.device) // self.group_size

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the weights [N, K], exact for bf16 and fp16 scales without an offset.

        Args:
            dtype: torch.float32 or torch.float64.

        Returns:
            Contiguous [N, K] in `dtype`. A code less its zero point has at most 9 bits, so that its product with an
            fp16 scale is exact in fp32; an offset rounds once more in fp32.

        Raises:
            ValueError: another dtype.

        Source: docs/checkpoints.md.
        """
        require(dtype in (torch.float32, torch.float64), f"dtype: got {dtype}, must be torch.float32 or torch.float64")
        column = self.columns()
        zero = self.middle if self.zero is None else self.zero.to(dtype)[:, column]
        w = (self.codes.to(dtype) - zero) * self.scale.to(dtype)[:, column]
        return w if self.offset is None else w + self.offset.to(dtype)[:, column]


def unpack_v1_zeros(words: torch.Tensor, reading: str, count: int, bits: int = 4) -> torch.Tensor:
    """Read zero points that are stored less one, along the last dimension, as one of the four known loaders does.

    Args:
        words: int32 [..., W] with W = ceil(count * bits / 32), dense (`unpack_bits`).
        reading: of a stored 15 (of 4 bits): "modulo" 0; "plain" 16, added without a mask; "byte_carry" and
            "word_carry" 0, with a carry into the neighbour of the same byte or 32-bit word.
        count: zero points a row.
        bits: of a code.

    Returns:
        int16 [..., count], each in 0..2^bits; exact.

    Raises:
        ValueError: an unknown reading, one with a carry for 3, 5, 6 or 7 bits, or words that do not fit.

    Source: https://github.com/ModelCloud/GPTQModel/issues/2350 (the carry), https://github.com/vllm-project/vllm.
    """
    if reading not in V1_READINGS:
        raise unknown("reading", reading, V1_READINGS)
    require(32 % bits == 0 or "carry" not in reading, f"bits: got {bits}, a carry is only defined for 1, 2, 4 and 8")
    if reading == "word_carry":
        return unpack_bits(_plus_ones(words, bits), bits, count).to(torch.int16)
    if reading == "byte_carry":
        ones = sum(1 << shift for shift in range(0, 8, bits))
        carried = words.clone(memory_format=torch.contiguous_format).view(torch.uint8) + torch.tensor(
            ones, dtype=torch.uint8
        )
        return unpack_bits(carried.view(torch.int32), bits, count).to(torch.int16)
    zero = unpack_bits(words, bits, count).to(torch.int16) + 1
    return zero.remainder_(1 << bits) if reading == "modulo" else zero


def pack_v1_zeros(zero: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """Pack zero points less one into dense words, which each of V1_READINGS reads back.

    Args:
        zero: integers [..., count] in 1..2^bits - 1: a 0 has four readings, 2^bits has none that all share.
        bits: of a code.

    Returns:
        int32 [..., ceil(count * bits / 32)]; exact.

    Raises:
        ValueError: a zero point outside 1..2^bits - 1.

    Source: https://github.com/vllm-project/vllm/pull/38966.
    """
    outside = (zero < 1) | (zero >= 1 << bits)
    require(not bool(outside.any()), f"zero: {int(outside.sum())} of {zero.numel()} are not in 1..{(1 << bits) - 1}")
    return pack_bits((zero - 1).to(torch.uint8), bits)


def _plus_ones(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Add 1 to every code of whole words, as int32 arithmetic does: a code that overflows carries into the next."""
    ones = sum(1 << shift for shift in range(0, 32, bits))
    total = (words.to(torch.int64) + ones) & 0xFFFFFFFF
    return torch.where(total >= 1 << 31, total - (1 << 32), total).to(torch.int32)
