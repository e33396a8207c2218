"""What a launch did that is undefined on a GPU, in one line: instruction, lane, wave, workgroup and source line."""

from __future__ import annotations

from typing import Any

from .arguments import FIRST, Span
from .code_object import BASE, REGION_BITS, KernelCode
from .core import Fault

(DONE, ENDLESS, OUTSIDE, LDS_OUTSIDE, LDS_UNINITIALIZED, LDS_RACE, SCRATCH_OUTSIDE, MISALIGNED, BAD_JUMP, READ_ONLY,
 WMMA_LANES, STATE, UNMODELLED, TRAP) = range(14)  # source/state.h  # fmt: skip
SEVERAL, ATOMIC = 127, 128  # source/state.h: WAVES, ATOMIC
FAR = 1 << 35


class MachineFault(RuntimeError):  # noqa: N818 - a fault is what it is called everywhere here
    """A kernel's machine code did something that is undefined on a GPU; one line."""


def raised(text: str, fault: Fault) -> Exception:
    """Return the exception for a fault."""
    if fault.kind in (OUTSIDE, LDS_OUTSIDE, SCRATCH_OUTSIDE, READ_ONLY):
        return IndexError(text)
    return ValueError(text) if fault.kind in (ENDLESS, UNMODELLED, STATE) else MachineFault(text)


def describe(
    fault: Fault,
    kernel: KernelCode,
    loaded: Any,
    group: tuple[int, ...],
    bounds: list[tuple[int, int]],
    args: list[Any],
) -> str:
    """Return the line that says what happened.

    Args:
        fault: as the core left it.
        kernel, loaded: what ran.
        group: the workgroup's number.
        bounds, args: the buffers and arguments of the launch.
    """
    origin = loaded.program.origin
    one = origin[fault.at] if fault.at < len(origin) else None
    line = loaded.line_of(one.offset) if one else ""
    where = f"workgroup {group} of {kernel.shown}" + (f", at {line}" if line else "")
    if fault.kind == UNMODELLED:
        return f"{one or 'the end of the code'}: this instruction is not modelled; {where}"
    if fault.kind == ENDLESS:
        return f"kernel: still at {one} after the budget of a wave's instructions; it does not end; {where}"
    if fault.kind == TRAP:
        return f"{one}: wave {fault.wave} stopped itself (assert or __builtin_trap); {where}"
    if fault.kind == STATE:
        return f"{one}: operand {fault.address} is not modelled; {where}"
    who = f"{one}: lane {fault.lane} of wave {fault.wave}"
    return f"{who}: {_what(fault, loaded, bounds, args)}; {where}"


def _what(fault: Fault, loaded: Any, bounds: list[tuple[int, int]], args: list[Any]) -> str:
    size, address = f"{fault.size} bytes", fault.address & (1 << 64) - 1
    if fault.kind in (OUTSIDE, READ_ONLY):
        place = _nearest(address, bounds, args)
        why = "may not be written" if fault.kind == READ_ONLY else "lie outside every buffer"
        return f"{size} at {address:#x} {why}{place}"
    if fault.kind == LDS_OUTSIDE:
        return f"{size} at LDS offset {address} lie outside the workgroup's LDS"
    if fault.kind == SCRATCH_OUTSIDE:
        return f"{size} at scratch offset {address} lie outside the lane's scratch"
    if fault.kind == LDS_UNINITIALIZED:
        return f"uninitialized LDS: {size} at offset {address}, which nobody has written yet"
    if fault.kind == LDS_RACE:
        other = loaded.program.origin[fault.other_at]
        number, did = abs(fault.other), "written" if fault.other > 0 else "read"
        by = f"wave {number % ATOMIC - 1}" if number % ATOMIC != SEVERAL else "several waves"
        at = loaded.line_of(other.offset)
        by += f" at {other}" + (f" ({at})" if at else "")
        return f"race in LDS: {size} at offset {address}, {did} by {by} with no barrier between"
    if fault.kind == MISALIGNED:
        return f"atomic of {size} at {address:#x}, which is no multiple of {fault.size}"
    if fault.kind == BAD_JUMP:
        return f"jump to {address:#x}, where no instruction starts"
    return f"v{fault.address} of a WMMA source differs between lanes {fault.lane - 16} and {fault.lane}, which is wrong"


def _nearest(address: int, bounds: list[tuple[int, int]], args: list[Any]) -> str:
    region, offset = (address - BASE) >> REGION_BITS, (address - BASE) & (1 << REGION_BITS) - 1
    if offset > FAR:
        region, offset = region + 1, offset - (1 << REGION_BITS)
    region -= FIRST
    if not 0 <= region < len(bounds):
        return " (a null or wild pointer)"
    start, end = bounds[region]
    at = start + offset
    near = [
        (i, s)
        for i, s in enumerate(args)
        if isinstance(s, Span) and s.size and start <= s.address and s.address + s.size <= end
    ]
    place, span = min(near, key=lambda pair: max(pair[1].address - at, at - pair[1].address - pair[1].size))
    if offset < 0:
        return f" ({span.address - at} before the start of argument {place}, {span.size} bytes)"
    return f" (byte {at - span.address} of argument {place}, {span.size} bytes)"
