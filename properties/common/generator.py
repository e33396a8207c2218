"""Random numbers that are the same bits everywhere: named streams of a counter-based generator, and integer arithmetic.

Philox's raw words are fixed by its definition; what numpy or torch make of them (normal(), randperm()) is not. So only
raw words are taken, and everything else is integer arithmetic or an fp32/fp64 operation that IEEE 754 rounds one way:
no logarithm, no sine. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Bits = NDArray[Any]  # uint16 or uint32 patterns of floats
_FNV_OFFSET, _FNV_PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def stream_key(name: str) -> int:
    """Return the 64-bit FNV-1a hash of a stream's name."""
    key = _FNV_OFFSET
    for byte in name.encode():
        key = ((key ^ byte) * _FNV_PRIME) & _MASK
    return key


class Stream:
    """One named sequence of random words. Two names never share words, so a new stream moves no old one.

    Args:
        seed: 0..2^64-1, the case's.
        name: e.g. "w13.codes".
    """

    def __init__(self, seed: int, name: str) -> None:
        self._philox = np.random.Philox(key=np.array([seed, stream_key(name)], dtype=np.uint64))

    def raw(self, count: int) -> NDArray[np.uint64]:
        """Return the next `count` 64-bit words."""
        return self._philox.random_raw(count)

    def bits(self, shape: tuple[int, ...], width: int) -> NDArray[Any]:
        """Return the next unsigned words of `width` 8, 16 or 32 bits, in `shape`; whole 64-bit words are used up."""
        count = math.prod(shape)
        words = self.raw(-(-count * width // 64))
        little = words.astype("<u8", copy=False).view(f"<u{width // 8}")
        return little[:count].reshape(shape)

    def below(self, shape: tuple[int, ...], bound: int) -> NDArray[np.int64]:
        """Return integers 0..bound-1, bound at most 2^31; off uniform by less than bound/2^32."""
        return ((self.bits(shape, 32).astype(np.uint64) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """Return a permutation of 0..count-1."""
        return np.argsort(self.raw(count), kind="stable")

    def normal(self, shape: tuple[int, ...], fine: bool = False) -> NDArray[np.float32]:
        """Return bell-shaped fp32 values: mean 0, variance 4/3, within ±4, exact multiples of 2^-15.

        The sum of four uniform 16-bit integers (Irwin-Hall), times 2^-15.

        Args:
            shape: of the result.
            fine: round multiples of 2^-23 to fp32 instead, so that equal values are rare.
        """
        words = self.raw(math.prod(shape))
        pairs = words & np.uint64(0x0000FFFF0000FFFF)
        pairs += (words >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
        total = ((pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))).astype(np.int64).reshape(shape)
        total -= 2 * 0xFFFF
        if not fine:
            return total.astype(np.float32) * np.float32(2.0**-15)
        total = (total << 8) + self.bits(shape, 8)
        return (total.astype(np.float64) * 2.0**-23).astype(np.float32)


@dataclass(frozen=True)
class Format:
    """A float format's bit fields: `mantissa` stored bits, exponent `bias`, the unsigned type of its patterns."""

    mantissa: int
    bias: int
    uint: type
    torch_dtype: torch.dtype

    @property
    def width(self) -> int:
        """Bits of a pattern."""
        return 8 * np.dtype(self.uint).itemsize

    @property
    def sign(self) -> int:
        """The sign bit's pattern."""
        return 1 << (self.width - 1)

    @property
    def lowest(self) -> int:
        """Exponent of the smallest normal number."""
        return 1 - self.bias


FORMATS = {
    "bf16": Format(7, 127, np.uint16, torch.bfloat16),
    "fp16": Format(10, 15, np.uint16, torch.float16),
    "fp32": Format(23, 127, np.uint32, torch.float32),
}


def round_bits(values: NDArray[np.float32], fmt: Format) -> Bits:
    """Return finite fp32 values rounded once, to nearest even, as the format's bit patterns."""
    if fmt.mantissa == 23:
        return values.view(np.uint32)
    if fmt.mantissa == 10:
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + odd + np.uint32(0x7FFF)) >> np.uint32(16)).astype(np.uint16)


def power_bits(exponents: NDArray[Any] | int, fmt: Format) -> Bits:
    """Return the bit patterns of 2^exponent, for exponents of normal numbers."""
    return ((np.asarray(exponents) + fmt.bias) << fmt.mantissa).astype(fmt.uint)


def integer_bits(values: NDArray[np.int64], exponent: int, fmt: Format) -> Bits:
    """Return the bit patterns of values * 2^exponent, which must be representable."""
    scaled = values.astype(np.float32) * np.float32(2.0**exponent)
    return round_bits(scaled, fmt)


def to_tensor(bits: Bits, fmt: Format) -> torch.Tensor:
    """Return a tensor of the format's dtype with these bit patterns, sharing memory where it can."""
    signed = np.int16 if fmt.width == 16 else np.int32
    return torch.from_numpy(np.require(bits, requirements=["C", "W"]).view(signed)).view(fmt.torch_dtype)
