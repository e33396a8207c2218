"""Running a HIP kernel on the CPU, every access of every thread checked: built by g++, called through ctypes."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from moeracle.kernels.hip.runtime import build
from moeracle.kernels.hip.runtime.arguments import Long, number, span
from moeracle.kernels.hip.runtime.faults import Fault, KernelFault, describe
from moeracle.ref.errors import require, unknown

Dim = Sequence[int]


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_ulong),
        ("bytes", ctypes.c_ulong),
        ("argument", ctypes.c_int),
        ("writable", ctypes.c_int),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_bytes", ctypes.c_uint),
        ("backward", ctypes.c_int),
        ("most_steps", ctypes.c_ulong),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_int),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
    )


@dataclass(frozen=True)
class Traffic:
    """What an emulated launch did: bytes its threads moved, and how often they met.

    Args:
        read_bytes, write_bytes: of global memory, every access of every thread counted.
        shared_accesses: loads and stores of shared memory.
        exchanges: cross-lane operations, one per wave.
        barriers: one per block.
    """

    read_bytes: int
    write_bytes: int
    shared_accesses: int
    exchanges: int
    barriers: int


def emulate(
    kernel: tuple[Path, str, build.Defines],
    grid: Dim,
    block: Dim,
    args: tuple[Any, ...],
    *,
    shared: int,
    backward: bool,
    steps: int,
) -> Traffic:
    """Run a kernel, given as source, name and macros; the other arguments are those of `HipKernel.launch`.

    Raises:
        KernelFault: an illegal access, a meeting that not every thread reached, a hang.
        ValueError: arguments that are not the kernel's.
        MemoryError: none for the fibers.
    """
    source, name, defines = kernel
    path, run, signature = library(source, name, defines)
    require(
        len(args) == len(signature),
        f"{name}: got {len(args)} arguments, must be {len(signature)} ({signature})",
    )
    values, buffers = [], []
    for i, (argument, letter) in enumerate(zip(args, signature, strict=True)):
        value = number(argument, i)
        wanted = {ctypes.c_void_p: "rw", ctypes.c_int32: "iu", ctypes.c_float: "f", Long: "l"}[type(value)]
        require(letter in wanted, f"{name}: argument {i} is {type(argument).__name__}, the kernel has {letter!r}")
        values.append(value)
        if isinstance(argument, torch.Tensor):
            buffers.append(_Buffer(argument.data_ptr(), span(argument), i, letter == "w"))
    buffers.sort(key=lambda b: -b.writable)  # memory given both ways may be written
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    held = (_Buffer * len(buffers))(*buffers)
    launch = _Launch(
        (ctypes.c_uint * 3)(*grid),
        (ctypes.c_uint * 3)(*block),
        shared,
        backward,
        steps,
        held,
        len(buffers),
        pointers,
    )
    fault = Fault()
    if run(ctypes.byref(launch), ctypes.byref(fault)) < 0:
        raise MemoryError(f"{name}: no memory for its fibers")
    if fault.kind:
        raise KernelFault(describe(fault, path, name))
    return Traffic(
        fault.global_read_bytes,
        fault.global_write_bytes,
        fault.shared_accesses,
        fault.exchanges,
        fault.barriers,
    )


@cache
def library(source: Path, name: str, defines: build.Defines) -> tuple[Path, Any, str]:
    """Return a kernel's emulation, built if need be: its file, its entry, and its parameters' letters.

    Raises:
        ValueError: the source exports no such kernel.
    """
    path = build.build_host(source, dict(defines))
    built = ctypes.CDLL(str(path))
    try:
        run, signature = built[f"moeracle_launch_{name}"], built[f"moeracle_signature_{name}"]
    except AttributeError:
        names = re.findall(r"^MOERACLE_EXPORT\((\w+)\)", source.read_text(), re.MULTILINE)
        raise unknown("kernel", name, names) from None
    signature.restype = ctypes.c_char_p
    return path, run, signature().decode()
