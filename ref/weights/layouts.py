"""Packings of int4 and int8 codes: which bits of which word hold the code of row n, column k.

Every layout and every zero-point form is one `Packing`: of how many bits a code is, along which axis codes share a
word, in which order, and which axis is stored first. The definition is one line, `word = OR of code[r] << shifts[r]`,
spelled out by `pack_plain` and `unpack_plain`. The fast path works on whole words: two codes in an int16 fold into a
byte with one shift and one or, and the interleaved order is the same fold at distance 12 followed by a swap of the two
middle bytes. Tests hold one to the other.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from ..errors import require, unknown

# Words are read through byte and int16 views, so the least significant byte must come first in memory.
assert sys.byteorder == "little", "moeracle.ref.weights.layouts reads words through little-endian views"

SEQUENTIAL = (0, 4, 8, 12, 16, 20, 24, 28)
INTERLEAVED = (0, 16, 4, 20, 8, 24, 12, 28)  # (word >> 4j) & 0x000F000F is the pair (code 2j, code 2j+1)
PAIR = (0, 4)
BYTES = (0, 8, 16, 24)
ALONE = (0,)
_CHUNK = 1 << 20  # codes handled at once: the temporaries (2 MB) stay in cache, and memory stays flat for whole layers
_CHUNK_ON_A_GPU = 1 << 27  # there, launches are what takes time


@dataclass(frozen=True)
class Packing:
    """Where a container keeps the nibbles of a logical [..., N, K] array of codes (zero points: K/G for K)."""

    along: str  # "K" when consecutive columns share a word, "N" when consecutive rows do
    transposed: bool  # the packed axis is stored before the other one
    shifts: tuple[int, ...]  # bit position of the r-th code in its word; four or eight make an int32, two or one a byte
    signed: bool = False  # u less the middle, 8 or 128, is stored in two's complement, not u
    bits: int = 4  # of a code

    @property
    def bits_a_code(self) -> int:
        """Bits of the container for each code: as many as it has, or 8 where a byte holds one."""
        return 8 if len(self.shifts) == 1 else self.bits

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric weight."""
        return 1 << (self.bits - 1)

    @property
    def dtype(self) -> torch.dtype:
        """The container's: int32 words or uint8 bytes."""
        return torch.int32 if len(self.shifts) >= 4 else torch.uint8

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The container's shape for codes of logical `shape` [..., N, K]."""
        *lead, N, K = shape
        outer, inner = (N, K) if self.along == "K" else (K, N)
        words = inner // len(self.shifts)
        return (*lead, words, outer) if self.transposed else (*lead, outer, words)

    def logical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The codes' shape [..., N, K] for a container of `shape`."""
        *lead, outer, words = shape
        if self.transposed:
            outer, words = words, outer
        inner = words * len(self.shifts)
        return (*lead, outer, inner) if self.along == "K" else (*lead, inner, outer)


PACKINGS = {
    "exllama": Packing("K", False, INTERLEAVED),  # int32 [N, K/8]
    "gptq": Packing("K", True, SEQUENTIAL),  # int32 [K/8, N]
    "awq": Packing("N", False, INTERLEAVED),  # int32 [K, N/8]
    "compressed_tensors": Packing("K", False, SEQUENTIAL),  # int32 [N, K/8]
    "nibble_pairs": Packing("K", False, PAIR),  # uint8 [N, K/2]
    "exllama_k": Packing("K", True, INTERLEAVED),  # int32 [K/8, N]: what gptq_shuffle makes of `gptq`
    "sequential_n": Packing("N", False, SEQUENTIAL),  # int32 [K, N/8], not AWQ's order
    "twos_complement": Packing("K", False, INTERLEAVED, signed=True),  # int32 [N, K/8]
    "int8": Packing("K", False, ALONE, signed=True),  # int8 [N, K]: one code a byte
}
SCALES_K_FIRST = ("gptq", "awq", "exllama_k", "sequential_n")  # layouts whose kernels read contiguous [K/G, N]
ZERO_PACKINGS = {
    "gptq_v1": Packing("N", False, SEQUENTIAL),  # int32 [K/G, N/8], holding z-1
    "gptq_v2": Packing("N", False, SEQUENTIAL),  # int32 [K/G, N/8]
    "awq": Packing("N", False, INTERLEAVED),  # int32 [K/G, N/8]
    "compressed_tensors": Packing("N", True, SEQUENTIAL),  # int32 [N/8, K/G], not interleaved
    "rdna": Packing("N", True, SEQUENTIAL),  # int32 [N/8, K/G]: row n at bits 4*(n%8)
    "nibble_pairs": Packing("N", True, PAIR),  # uint8 [N/2, K/G], low nibble = even n
}
PACKINGS8 = {
    "gptq": Packing("K", True, BYTES, bits=8),  # int32 [K/4, N]
    "compressed_tensors": Packing("K", False, BYTES, bits=8),  # int32 [N, K/4]
    "bytes": Packing("K", False, ALONE, bits=8),  # uint8 [N, K], holding u
    "int8": Packing("K", False, ALONE, signed=True, bits=8),  # int8 [N, K], holding u - 128
}
ZERO_PACKINGS8 = {
    "gptq_v1": Packing("N", False, BYTES, bits=8),  # int32 [K/G, N/4], holding z-1
    "gptq_v2": Packing("N", False, BYTES, bits=8),  # int32 [K/G, N/4]
    "compressed_tensors": Packing("N", True, BYTES, bits=8),  # int32 [N/4, K/G]
}
LAYOUTS, LAYOUTS8 = tuple(PACKINGS), tuple(PACKINGS8)
ZERO_LAYOUTS = ("unpacked", *ZERO_PACKINGS)
PACKINGS_OF = {4: PACKINGS, 8: PACKINGS8}  # by the bits of a code
ZERO_PACKINGS_OF = {4: ZERO_PACKINGS, 8: ZERO_PACKINGS8}


def pack_int4(codes: torch.Tensor, layout: str) -> torch.Tensor:
    """Pack int4 codes into the words of a layout.

    word = OR over r of code[r] << shifts[r], for each run of 8 (2, 1) codes along K (N for `awq`, `sequential_n`)

    Args:
        codes: uint8 [..., N, K], each in 0..15, any strides. K (N for `awq` and `sequential_n`) a multiple of 8; of 2
            for `nibble_pairs`; any for `int8`.
        layout: one of LAYOUTS.

    Returns:
        Contiguous int32 words (uint8 for `nibble_pairs` and `int8`) in the shape that PACKINGS gives for codes.shape;
        exact.

    Raises:
        ValueError: unknown layout; codes not uint8, not 0..15, or not a whole number of words.

    Source: https://github.com/vllm-project/vllm (gptq, awq, compressed-tensors), https://github.com/pytorch/executorch.
    """
    return pack_codes(codes, layout, 4)


def unpack_int4(packed: torch.Tensor, layout: str) -> torch.Tensor:
    """Read the int4 codes out of a layout's words: the inverse of `pack_int4`.

    code[r] = (word >> shifts[r]) & 15

    Args:
        packed: int32 words in the layout's shape (uint8 or int8 bytes for `nibble_pairs` and `int8`), any strides.
        layout: one of LAYOUTS.

    Returns:
        Contiguous uint8 [..., N, K], each in 0..15; exact.

    Raises:
        ValueError: unknown layout; packed of another dtype or with fewer than two dimensions.

    Source: docs/formats.md section 1.
    """
    return unpack_codes(packed, layout, 4)


def pack_codes(codes: torch.Tensor, layout: str, bits: int) -> torch.Tensor:
    """Pack codes of 4 or 8 bits into the words of a layout: `pack_int4`, of either width.

    Args:
        codes: uint8 [..., N, K], each below 2^bits, any strides; a whole number of words along the packed axis.
        layout: one of LAYOUTS, for 8 bits one of LAYOUTS8.
        bits: 4 or 8.

    Returns:
        Contiguous words in the shape that PACKINGS_OF[bits] gives for codes.shape; exact.

    Raises:
        ValueError: as `pack_int4`.

    Source: docs/formats.md section 1.
    """
    return _pack(codes, "codes", packing_of("layout", layout, bits), layout)


def unpack_codes(packed: torch.Tensor, layout: str, bits: int) -> torch.Tensor:
    """Read the codes of 4 or 8 bits out of a layout's words: the inverse of `pack_codes`.

    Args:
        packed: int32 words in the layout's shape, or uint8 or int8 bytes, any strides.
        layout: one of LAYOUTS, for 8 bits one of LAYOUTS8.
        bits: 4 or 8.

    Returns:
        Contiguous uint8 [..., N, K]; exact.

    Raises:
        ValueError: as `unpack_int4`.

    Source: docs/formats.md section 1.
    """
    return _unpack(packed, "layout", packing_of("layout", layout, bits), layout)


def pack_zeros(zero: torch.Tensor, zero_layout: str, bits: int = 4) -> torch.Tensor:
    """Pack zero points into the words of a zero-point form.

    `gptq_v1` stores z-1 mod 2^bits, so z = 0 wraps to a stored 15 (255); every other form stores z.

    Args:
        zero: uint8 [..., N, K/G], each below 2^bits, any strides. N a multiple of 8 (of 4 for 8 bits); of 2 for
            `nibble_pairs`.
        zero_layout: one of ZERO_LAYOUTS; `unpacked` returns `zero` itself.
        bits: of a code, 4 or 8.

    Returns:
        Contiguous int32 words (uint8 for `nibble_pairs`) in the shape that ZERO_PACKINGS_OF[bits] gives for
        zero.shape; exact.

    Raises:
        ValueError: unknown zero_layout; zero not uint8, too large, or N not a whole number of words.

    Source: https://github.com/vllm-project/vllm/pull/38966 (gptq), https://github.com/sgl-project/sglang/pull/39510.
    """
    _check_codes(zero, "zero", bits)
    if zero_layout == "unpacked":
        return zero
    packing = packing_of("zero_layout", zero_layout, bits)
    if zero_layout == "gptq_v1":
        zero = zero.sub(1).bitwise_and_(packing.top)
    return _pack(zero, "zero", packing, zero_layout, "zero_layout")


def unpack_zeros(packed: torch.Tensor, zero_layout: str, bits: int = 4) -> torch.Tensor:
    """Read the zero points out of a zero-point form's words: the inverse of `pack_zeros`.

    `gptq_v1` adds 1 mod 2^bits to every code on its own (adding 1 to packed bytes would carry into the neighbour).

    Args:
        packed: int32 words in the form's shape; uint8 or int8 bytes for `nibble_pairs`; uint8 for `unpacked`.
        zero_layout: one of ZERO_LAYOUTS.
        bits: of a code, 4 or 8.

    Returns:
        uint8 [..., N, K/G], each below 2^bits; exact.

    Raises:
        ValueError: unknown zero_layout; packed of another dtype or with fewer than two dimensions.

    Source: https://github.com/ModelCloud/GPTQModel/issues/2350 (the carry).
    """
    if zero_layout == "unpacked":
        _check_codes(packed, "packed", bits)
        return packed
    packing = packing_of("zero_layout", zero_layout, bits)
    zero = _unpack(packed, "zero_layout", packing, zero_layout)
    return zero.add_(1).bitwise_and_(packing.top) if zero_layout == "gptq_v1" else zero


def pack_plain(codes: torch.Tensor, shifts: tuple[int, ...]) -> torch.Tensor:
    """The definition of packing along the last dimension: int64 words [..., K/8], OR of code[r] << shifts[r]."""
    runs = codes.to(torch.int64).unflatten(-1, (-1, len(shifts)))
    return sum((runs[..., r] << shift for r, shift in enumerate(shifts)), torch.zeros_like(runs[..., 0]))


def unpack_plain(words: torch.Tensor, shifts: tuple[int, ...], top: int = 15) -> torch.Tensor:
    """The definition of unpacking along the last dimension: code[r] = (word >> shifts[r]) & top."""
    # A word's top bit may be its sign: the arithmetic shift fills with ones, and the mask drops them.
    return torch.stack([(words >> shift) & top for shift in shifts], dim=-1).flatten(-2).to(torch.uint8)


def packing_of(what: str, name: str, bits: int) -> Packing:
    """Return how a layout, or a zero-point form, keeps codes of some width.

    Args:
        what: "layout" or "zero_layout".
        name: of one.
        bits: 4 or 8.

    Returns:
        Packing.

    Raises:
        ValueError: an unknown width or name, or one that no code of this width is stored in, with those that are.

    Source: docs/formats.md section 1.
    """
    tables = PACKINGS_OF if what == "layout" else ZERO_PACKINGS_OF
    if name in tables.get(bits, {}):
        return tables[bits][name]
    require(bits in tables, f"bits: got {bits}, must be {' or '.join(map(str, tables))}")
    names = ("unpacked",) if what == "zero_layout" else ()
    other = [width for width, table in tables.items() if name in table]
    if other:
        fitting = ", ".join((*names, *tables[bits]))
        raise ValueError(f"{what}: got {name!r}, which holds codes of {other[0]} bits, must be of {bits}: {fitting}")
    raise unknown(what, name, (*names, *tables[bits]))


def _check_codes(codes: torch.Tensor, name: str, bits: int) -> None:
    require(codes.dtype == torch.uint8, f"{name}: got {codes.dtype}, must be torch.uint8")
    require(codes.ndim >= 2, f"{name}: got shape {tuple(codes.shape)}, must have at least two dimensions")
    if codes.numel():
        largest = int(codes.max())
        require(largest < 1 << bits, f"{name}: largest value is {largest}, must be 0..{(1 << bits) - 1}")


def _pack(codes: torch.Tensor, argument: str, packing: Packing, name: str, what: str = "layout") -> torch.Tensor:
    per_word = len(packing.shifts)
    _check_codes(codes, argument, packing.bits)
    if packing.signed:  # in a nibble or in a byte
        codes = codes.sub(packing.middle) if per_word == 1 else codes.bitwise_xor(packing.middle)
    lines = codes if packing.along == "K" else codes.mT
    *lead, count = lines.shape
    fits = f"must be a multiple of {per_word} for {what} {name!r}"
    require(count % per_word == 0, f"{argument}: {packing.along} is {count}, {fits}")
    flat = _flat(lines)
    out = torch.empty(flat.numel() // per_word, dtype=packing.dtype, device=codes.device)
    for source, target in zip(flat.split(_CHUNK), out.split(_CHUNK // per_word), strict=True):
        target.copy_(_fold(source, packing.shifts))
    words = out.view(*lead, count // per_word)
    return words.mT.contiguous() if packing.transposed else words


def _unpack(packed: torch.Tensor, what: str, packing: Packing, name: str) -> torch.Tensor:
    per_word = len(packing.shifts)
    dtypes = (torch.int32,) if packing.dtype == torch.int32 else (torch.uint8, torch.int8)
    require(packed.dtype in dtypes, f"packed: got {packed.dtype}, must be {dtypes[0]} for {what} {name!r}")
    require(packed.ndim >= 2, f"packed: got shape {tuple(packed.shape)}, must have at least two dimensions")
    words = packed.mT if packing.transposed else packed
    flat = _flat(words)
    out = torch.empty(flat.numel() * per_word, dtype=torch.uint8, device=packed.device)
    chunk = _CHUNK if packed.device.type == "cpu" else _CHUNK_ON_A_GPU
    for source, target in zip(flat.split(chunk // per_word), out.split(chunk), strict=True):
        target.copy_(_unfold(source, packing.shifts))
    if packing.signed:
        out.add_(packing.middle).bitwise_and_(packing.top)
    codes = out.view(*words.shape[:-1], words.shape[-1] * per_word)
    return codes.mT.contiguous() if packing.along == "N" else codes


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in order, as one dimension that may be viewed as another dtype."""
    flat = tensor.reshape(-1)
    # A view as wider words must start on a whole word of the storage, and a lone element may carry any stride.
    usable = flat.storage_offset() * flat.element_size() % 4 == 0 and flat.stride(0) == 1
    return flat if usable else flat.clone(memory_format=torch.contiguous_format)


def _fold(codes: torch.Tensor, shifts: tuple[int, ...]) -> torch.Tensor:
    """pack_plain on flat contiguous codes, by whole words."""
    if shifts == ALONE:
        return codes
    if shifts == BYTES:
        return codes.view(torch.int32)
    if shifts == INTERLEAVED:
        quads = codes.view(torch.int32)  # bytes 0 1 2 3; shifting by 12 drops 2 beside 0 and 3 beside 1
        return _swap_middle_bytes((quads >> 12).bitwise_or_(quads).to(torch.int16).view(torch.int32))
    pairs = codes.view(torch.int16)
    folded = (pairs >> 4).bitwise_or_(pairs).to(torch.uint8)
    return folded if shifts == PAIR else folded.view(torch.int32)


def _unfold(words: torch.Tensor, shifts: tuple[int, ...]) -> torch.Tensor:
    """unpack_plain on flat contiguous words, by whole words."""
    if shifts in (ALONE, BYTES):
        return words.view(torch.uint8)
    if shifts == INTERLEAVED:
        # Masked before the shift: a negative int16 widens to a word full of ones.
        quads = _swap_middle_bytes(words).view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)
        return (quads << 12).bitwise_or_(quads).bitwise_and_(0x0F0F0F0F).view(torch.uint8)
    pairs = words.view(torch.uint8).to(torch.int16)
    return (pairs << 4).bitwise_or_(pairs).bitwise_and_(0x0F0F).view(torch.uint8)


def _swap_middle_bytes(words: torch.Tensor) -> torch.Tensor:
    difference = (words >> 8).bitwise_xor_(words).bitwise_and_(0xFF00)
    return (difference << 8).bitwise_xor_(difference).bitwise_xor_(words)
