"""What the emulation found wrong, in one line: what, where in the source, which thread of which block."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

# Where an access is written is the kernel's business, also when it goes through one of these.
OURS = ("numbers.h", "lanes.h", "wmma.h", "host_emulation.h")
NONE, OUT_OF_BOUNDS, READ_ONLY, MISALIGNED = range(4)
SHARED_OUT_OF_BOUNDS, SHARED_UNINITIALIZED, SHARED_RACE, SHARED_SIZE = range(4, 8)
DIVERGENT_EXCHANGE, DIVERGENT_BARRIER, HANG = range(8, 11)
FAR = 1 << 40  # bytes from every argument beyond which a distance says nothing


class KernelFault(RuntimeError):  # noqa: N818 - a fault is what it is called everywhere here
    """An emulated kernel did something that is undefined on a GPU; one line that starts with file:line."""


class Fault(ctypes.Structure):
    """moeracle_fault of host_launch.h."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("is_write", ctypes.c_int),
        ("block", ctypes.c_uint * 3),
        ("thread", ctypes.c_uint * 3),
        ("other_thread", ctypes.c_uint * 3),
        ("pc", ctypes.c_ulong),
        ("other_pc", ctypes.c_ulong),
        ("file", ctypes.c_char * 160),
        ("other_file", ctypes.c_char * 160),
        ("line", ctypes.c_int),
        ("other_line", ctypes.c_int),
        ("offset", ctypes.c_long),
        ("bytes", ctypes.c_ulong),
        ("size", ctypes.c_ulong),
        ("argument", ctypes.c_int),
        ("name", ctypes.c_char * 64),
        ("global_read_bytes", ctypes.c_ulong),
        ("global_write_bytes", ctypes.c_ulong),
        ("shared_accesses", ctypes.c_ulong),
        ("exchanges", ctypes.c_ulong),
        ("barriers", ctypes.c_ulong),
    )


def describe(fault: Fault, library: Path, kernel: str) -> str:
    """Return "FILE:LINE: what; thread (x,y,z) of block (x,y,z) of KERNEL".

    Args:
        fault: as the runtime filled it.
        library: the shared object, whose debug information has the line.
        kernel: the kernel's name.
    """
    where = f"{Path(fault.file.decode()).name}:{fault.line}" if fault.file else _line(library, fault.pc)
    return f"{where}: {_what(fault, library)}; thread {_place(fault.thread)} of block {_place(fault.block)} of {kernel}"


def _what(fault: Fault, library: Path) -> str:
    access = f"{'write' if fault.is_write else 'read'} of {fault.bytes} bytes"
    name = fault.name.decode()
    other = _place(fault.other_thread)
    if fault.kind in (OUT_OF_BOUNDS, READ_ONLY):
        place = f"argument {fault.argument} ({fault.size} bytes)"
        if fault.kind == READ_ONLY and fault.argument < 0:
            return f"write of {fault.bytes} bytes to a static variable; kernels keep no state"
        if fault.kind == READ_ONLY:
            return f"write of {fault.bytes} bytes to {place}, which is const"
        if fault.argument < 0 or not -FAR < fault.offset < fault.size + FAR:
            return f"out-of-bounds {access} far from every argument (a null or wild pointer)"
        return f"out-of-bounds {access} at {_offset(fault)} of {place}"
    if fault.kind == MISALIGNED:
        return f"misaligned access of {fault.bytes} bytes, {fault.offset} past a multiple of {fault.bytes}"
    if fault.kind == SHARED_OUT_OF_BOUNDS:
        return f"out-of-bounds {access} at {_offset(fault)} of shared {name} ({fault.size} bytes)"
    if fault.kind == SHARED_UNINITIALIZED:
        return f"uninitialized shared memory: {access} at byte {fault.offset} of {name}, which nobody has written yet"
    if fault.kind == SHARED_RACE:
        did = f"written at {_line(library, fault.other_pc)}" if fault.other_pc else "read"
        by = f"{did} by the wave of thread {other}"
        return f"race in shared memory: {access} at byte {fault.offset} of {name}, {by} with no barrier between"
    if fault.kind == SHARED_SIZE:
        return f"shared memory: {name} makes it {fault.size} bytes, a block has 65536"
    if fault.kind == HANG:
        return "hang: the thread goes on and on without meeting the others"
    kind = "barrier" if fault.kind == DIVERGENT_BARRIER else "cross-lane operation"
    at = f"{Path(fault.other_file.decode()).name}:{fault.other_line}"
    did = "has returned" if fault.other_line < 0 else f"waits at {at}"
    return f"divergent {kind}: {name} waits for thread {other}, which {did}"


def _offset(fault: Fault) -> str:
    if fault.offset < 0:
        return f"{-fault.offset} bytes before the start"
    past = fault.offset - fault.size
    if past >= 0:
        return f"byte {fault.offset}, {past} past the end,"
    return f"byte {fault.offset}, its last {past + fault.bytes} past the end,"


def _place(xyz: ctypes.Array[ctypes.c_uint]) -> str:
    return "({},{},{})".format(*xyz)


def _line(library: Path, pc: int) -> str:
    """Return "file:line" of an instruction, and where the function it was inlined from was called in the .hip file."""
    tool = next(filter(None, map(shutil.which, ("addr2line", "llvm-addr2line", "llvm-symbolizer"))), None)
    if tool is None:
        return f"{library.stem}+{pc:#x} (no line: install binutils for addr2line)"
    done = subprocess.run([tool, "-i", "-e", str(library), hex(pc)], capture_output=True, text=True, check=False)
    pairs = [line.split(" (")[0].strip().split(":")[:2] for line in done.stdout.splitlines() if ":" in line]
    frames = [f"{Path(file).name}:{line}" for file, line in pairs if Path(file).name not in OURS and line.isdigit()]
    if not frames:
        return f"{library.stem}+{pc:#x}"
    outer = next((f for f in reversed(frames) if ".hip:" in f), frames[0])
    return frames[0] if outer.partition(":")[0] == frames[0].partition(":")[0] else f"{frames[0]} (from {outer})"
