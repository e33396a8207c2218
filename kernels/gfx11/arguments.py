"""A launch's arguments: device buffers, and the bytes of the kernarg segment that the metadata describes."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .code_object import BASE, REGION_BITS, Argument, KernelCode
from .names import spelled

Array = NDArray[Any]
IMAGE, KERNARG, PACKET, FIRST = range(4)  # regions: the code object, arguments, the dispatch packet, the first buffer
SHARED_APERTURE, PRIVATE_APERTURE = 0x00010000, 0x00020000  # source/operands.h
REAL = {"float": "<f", "double": "<d", "_Float16": "<e"}
POINTED = {"float": "float32", "double": "float64", "_Float16": "float16", "__bf16": "bfloat16"}


@dataclass(frozen=True)
class Span:
    """Bytes of this process's memory that a pointer argument stands for; `dtype` is its elements', where known."""

    address: int
    size: int
    dtype: str = ""

    @staticmethod
    def of(array: Array) -> Span:
        """Return a contiguous array's bytes."""
        if not array.flags.c_contiguous:
            raise ValueError("args: an array is not contiguous; give a contiguous one")
        return Span(array.ctypes.data, array.nbytes, str(array.dtype))


def address_of(region: int) -> int:
    """Return the device address of a region's first byte."""
    return BASE + (region << REGION_BITS)


def regions_of(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Return the (start, end) of the buffers that the spans cover, overlapping ones joined."""
    bounds: list[list[int]] = []
    for span in sorted(spans, key=lambda s: (s.address, s.size)):
        if bounds and span.address < bounds[-1][1]:
            bounds[-1][1] = max(bounds[-1][1], span.address + span.size)
        else:
            bounds.append([span.address, span.address + span.size])
    return [(a, b) for a, b in bounds]


def packed(
    kernel: KernelCode, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], bounds: list[tuple[int, int]],
    dynamic_lds: int,
) -> Array:  # fmt: skip
    """Return the kernarg segment of a launch.

    Args:
        kernel: whose metadata says where each argument lies.
        grid, block: workgroups, and threads of one.
        args: a Span or None for each pointer, a number, ctypes value or bytes for each value.
        bounds: from regions_of.
        dynamic_lds: bytes.
    Raises:
        ValueError: too many or too few, or one that does not fit: its place, its type, its size.
    """
    if len(args) != len(kernel.explicit):
        types = ", ".join(a.type or f"{a.size} bytes" for a in kernel.explicit)
        raise ValueError(
            f"args: got {len(args)}, must be the {len(kernel.explicit)} that {kernel.shown} takes ({types})"
        )
    hidden = {
        **{f"hidden_block_count_{a}": g for a, g in zip("xyz", grid, strict=True)},
        **{f"hidden_group_size_{a}": b for a, b in zip("xyz", block, strict=True)},
        "hidden_grid_dims": 1 + (grid[1] > 1 or block[1] > 1) + (grid[2] > 1 or block[2] > 1),
        "hidden_dynamic_lds_size": dynamic_lds, "hidden_private_base": PRIVATE_APERTURE,
        "hidden_shared_base": SHARED_APERTURE,
    }  # fmt: skip
    segment = np.zeros(kernel.kernarg + 64, np.uint8)
    values = iter(enumerate(args))
    for argument in kernel.arguments:
        if argument.kind.startswith("hidden_"):
            data = int(hidden.get(argument.kind, 0)).to_bytes(argument.size, "little")
        else:
            place, value = next(values)
            data = _bytes(argument, value, f"argument {place} of {kernel.shown}", bounds)
        segment[argument.offset : argument.offset + argument.size] = np.frombuffer(data, np.uint8)
    return segment


def _bytes(argument: Argument, value: Any, what: str, bounds: list[tuple[int, int]]) -> bytes:
    takes = f"{argument.type or 'a value'}, {argument.size} bytes"
    if argument.kind in ("global_buffer", "dynamic_shared_pointer"):
        return _pointer(argument, value, what, bounds).to_bytes(8, "little")
    if isinstance(value, Span):
        if argument.size == 8 and not argument.type:
            return _pointer(argument, value, what, bounds).to_bytes(8, "little")
        raise ValueError(f"{what}: got a tensor, must be a value ({takes})")
    if value is None:
        raise ValueError(f"{what}: got None, must be a value ({takes})")
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, (bool, int, float)):
        data = bytes(value)
        if len(data) != argument.size:
            raise ValueError(f"{what}: got {len(data)} bytes, must be {argument.size} ({takes})")
        return data
    kind = spelled(argument.type)
    if kind == "__bf16":
        word = struct.unpack("<I", struct.pack("<f", value))[0]
        return ((word + 0x7FFF + (word >> 16 & 1)) >> 16).to_bytes(2, "little")
    if kind in REAL or (isinstance(value, float) and not kind and argument.size in (4, 8)):
        return struct.pack(REAL.get(kind, "<f" if argument.size == 4 else "<d"), value)
    if isinstance(value, float):
        raise ValueError(f"{what}: got the float {value}, must be {takes}")
    if argument.size > 8:
        raise ValueError(f"{what}: got the int {value}, must be {argument.size} bytes or a ctypes.Structure ({takes})")
    if not -(1 << 8 * argument.size - 1) <= value < 1 << 8 * argument.size:
        raise ValueError(f"{what}: got {value}, must fit into {takes}")
    return (int(value) & (1 << 8 * argument.size) - 1).to_bytes(argument.size, "little")


def _pointer(argument: Argument, value: Any, what: str, bounds: list[tuple[int, int]]) -> int:
    if value is None:
        return 0
    if not isinstance(value, Span):
        raise ValueError(
            f"{what}: got {type(value).__name__}, must be a tensor or None ({argument.type or 'a pointer'})"
        )
    pointed = POINTED.get(re.sub(r"const|__restrict|\*", "", spelled(argument.type)))
    if pointed and value.dtype and "float" in value.dtype and value.dtype != pointed:
        raise ValueError(f"{what}: got {value.dtype}, must be {pointed} ({argument.type})")
    if not value.size:
        return address_of(FIRST + len(bounds))  # an empty tensor: an address that nothing may be read at
    region = next(i for i, (a, b) in enumerate(bounds) if a <= value.address and value.address + value.size <= b)
    return address_of(FIRST + region) + value.address - bounds[region][0]


def words(address: int, count: int) -> list[int]:
    """Return an address as `count` words of 32 bits, as signed ints."""
    return [ctypes.c_int32(address >> 32 * i & 0xFFFFFFFF).value for i in range(count)]
