"""How a launch begins: arguments in memory, registers as the hardware hands them to the first instruction.

Source: https://llvm.org/docs/AMDGPUUsage.html, initial kernel execution state.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .code_object import USER_SGPRS, KernelCode
from .memory import Memory
from .registers import EXEC, LANES, Registers

Array = NDArray[Any]


@dataclass(frozen=True)
class Span:
    """Bytes of this process's memory that a pointer argument stands for."""

    address: int
    size: int

    @staticmethod
    def of(array: Array) -> Span:
        """Return a contiguous array's bytes."""
        if not array.flags.c_contiguous:
            raise ValueError("args: an array is not contiguous; give a contiguous one")
        return Span(array.ctypes.data, array.nbytes)


@dataclass(frozen=True)
class Pointer:
    """A place in one of the regions."""

    region: int
    offset: int


def merged(args: list[Any]) -> tuple[list[Array], list[Any]]:
    """Return the regions that the spans cover, overlapping ones joined, and the arguments with Pointers for Spans."""
    bounds: list[list[int]] = []
    for span in sorted((a for a in args if isinstance(a, Span)), key=lambda s: (s.address, s.size)):
        if bounds and span.address < bounds[-1][1]:
            bounds[-1][1] = max(bounds[-1][1], span.address + span.size)
        else:
            bounds.append([span.address, span.address + span.size])
    regions = [np.ctypeslib.as_array((ctypes.c_uint8 * (end - start)).from_address(start)) for start, end in bounds]

    def place(span: Span) -> Pointer:
        inside = (i for i, (a, b) in enumerate(bounds) if a <= span.address and span.address + span.size <= b)
        region = next(inside)
        return Pointer(region, span.address - bounds[region][0])

    return regions, [place(a) if isinstance(a, Span) else a for a in args]


def first_registers(
    kernel: KernelCode, memory: Memory, batch: list[tuple[int, int, int]], grid: Sequence[int], block: Sequence[int],
    args: Sequence[Any], per_group: int, dynamic_lds: int,
) -> Registers:  # fmt: skip
    regs = Registers(len(batch) * per_group, max(kernel.vgprs, 8))
    memory.group_of = np.repeat(np.arange(len(batch)), per_group)
    count = len(memory.starts)
    packet = struct.pack("<HHHHHHIII", 0, 0, *block, 0, *(g * b for g, b in zip(grid, block, strict=True)))
    memory.contents(count - 1)[: len(packet)] = np.frombuffer(packet, np.uint8)
    _fill_arguments(kernel, memory, grid, block, args, dynamic_lds)
    at = 0
    sizes = dict(USER_SGPRS)
    for what in kernel.user_sgprs:
        value = {"kernarg_segment_ptr": memory.address(count - 2), "dispatch_ptr": memory.address(count - 1)}.get(
            what, 0
        )
        for i in range(sizes[what]):
            regs.scalar[at + i] = value >> 32 * i & 0xFFFFFFFF
        at += sizes[what]
    at = kernel.first_system_sgpr
    for axis in range(3):
        if kernel.workgroup_ids[axis]:
            regs.scalar[at] = np.repeat(np.array([b[axis] for b in batch], np.uint32), per_group)
            at += 1
    thread = np.arange(per_group * LANES)
    x, y, z = thread % block[0], thread // block[0] % block[1], thread // (block[0] * block[1])
    packed = (x | y << 10 | z << 20).astype(np.uint32).reshape(per_group, LANES)
    regs.vector[0] = np.tile(packed, (len(batch), 1))
    live = (thread < np.prod(block)).reshape(per_group, LANES)
    regs.set_mask(EXEC, slice(None), np.tile(live, (len(batch), 1)))
    return regs


def _fill_arguments(
    kernel: KernelCode, memory: Memory, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], dynamic_lds: int
) -> None:
    hidden = {
        **{f"hidden_block_count_{a}": g for a, g in zip("xyz", grid, strict=True)},
        **{f"hidden_group_size_{a}": b for a, b in zip("xyz", block, strict=True)},
        **{f"hidden_remainder_{a}": 0 for a in "xyz"}, **{f"hidden_global_offset_{a}": 0 for a in "xyz"},
        "hidden_grid_dims": 1 + (grid[1] > 1 or block[1] > 1) + (grid[2] > 1 or block[2] > 1),
        "hidden_dynamic_lds_size": dynamic_lds,
    }  # fmt: skip
    segment = memory.contents(len(memory.starts) - 2)
    values = iter(args)
    for argument in kernel.arguments:
        if argument.kind.startswith("hidden_"):
            data = int(hidden.get(argument.kind, 0)).to_bytes(argument.size, "little")
        else:
            value = next(values)
            if isinstance(value, Pointer):
                value = memory.address(value.region) + value.offset
            if isinstance(value, float):
                data = struct.pack("<f", value)
            else:
                data = (int(value or 0) & (1 << 8 * argument.size) - 1).to_bytes(argument.size, "little")
        segment[argument.offset : argument.offset + argument.size] = np.frombuffer(data, np.uint8)
