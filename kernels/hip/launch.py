"""Starting a HIP kernel on torch tensors, wherever they are: emulated on the CPU, or on an NVIDIA or AMD GPU.

    gemv = hip_kernel("int4_gemv.hip", "int4_gemv", YTILE=2, UNRL=4)
    gemv.launch((blocks, 1, 1), (128, 1, 1), x, w.packed, w.scale, out, K, N, shared=16384)

Arguments are tensors (a pointer to their first element), int (32 bits), float (fp32) and Long (64 bits).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from moeracle.kernels.gfx11 import run as machine
from moeracle.kernels.hip import build
from moeracle.kernels.hip.faults import Fault, KernelFault, describe
from moeracle.ref.errors import require, unknown

WAVE, MOST_THREADS, MOST_SHARED = 32, 1024, 64 << 10
MOST_STEPS = 1 << 31  # loads and stores of one thread between two meetings: beyond it, it hangs
Long = ctypes.c_int64
Dim = Sequence[int]
_backward: ContextVar[bool] = ContextVar("backward", default=False)


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


@dataclass(frozen=True)
class HipKernel:
    """One kernel of one .hip file with its macros; built at its first launch on each device.

    Args:
        source: the .hip file.
        name: the kernel's function, as in MOERACLE_EXPORT(name).
        defines: its macros.
    """

    source: Path
    name: str
    defines: build.Defines = ()

    def launch(
        self, grid: Dim, block: Dim, *args: Any, shared: int = 0, backward: bool = False, steps: int = MOST_STEPS
    ) -> Traffic | None:
        """Run the kernel on its arguments' device and, on the CPU, check every access.

        Args:
            grid: blocks in x, y, z; nothing is launched where one is 0.
            block: threads in x, y, z: a multiple of 32, at most 1024.
            args: tensors of one device, int, float or Long, in the kernel's order.
            shared: bytes of its SHARED_DYNAMIC array.
            backward: CPU only: blocks, waves and lanes run in descending order; a kernel without races cannot tell.
                `with in_order(backward=True)` does so for every launch.
            steps: CPU only: loads and stores of a thread between two meetings beyond which it counts as hanging.
        Returns:
            The Traffic on the CPU; None on a GPU, where the launch is asynchronous on torch's current stream.
        Raises:
            KernelFault: CPU only: an illegal access, a meeting that not every thread reached, a hang.
            ToolchainError: no compiler (what to install), or it refuses the source.
            ValueError: a bad size or argument, or tensors of several devices.
        """
        grid, block = _size("grid", grid), _size("block", block)
        threads = block[0] * block[1] * block[2]
        require(
            threads % WAVE == 0 and 0 < threads <= MOST_THREADS,
            f"block: got {block}, must hold a multiple of {WAVE} threads, {MOST_THREADS} at most",
        )
        require(0 <= shared <= MOST_SHARED, f"shared: got {shared} bytes, must be 0..{MOST_SHARED}")
        device = _device(args)
        if 0 in grid:
            return None
        arch = machine.chosen.get()
        if device.type == "cpu" and arch:
            spans = {i: _span(a) for i, a in enumerate(args) if isinstance(a, torch.Tensor)}
            machine.run_machine_code(
                self.source,
                self.name,
                self.defines,
                grid,
                block,
                args,
                shared=shared,
                spans=spans,
                arch=arch,
            )
            return None
        if device.type == "cpu":
            return self._emulate(grid, block, args, shared, backward or _backward.get(), steps)
        from moeracle.kernels.hip.driver import launch_on_gpu

        launch_on_gpu(self, device, grid, block, [_number(a, i) for i, a in enumerate(args)], shared)
        return None

    def signature(self) -> str:
        """Return the kernel's parameters: r and w for pointers (const or not), i, u, l, f for numbers."""
        return _library(self.source, self.name, self.defines)[2]

    def _emulate(
        self, grid: Dim, block: Dim, args: tuple[Any, ...], shared: int, backward: bool, steps: int
    ) -> Traffic:
        path, run, signature = _library(self.source, self.name, self.defines)
        require(
            len(args) == len(signature),
            f"{self.name}: got {len(args)} arguments, must be {len(signature)} ({signature})",
        )
        values, buffers = [], []
        for i, (argument, letter) in enumerate(zip(args, signature, strict=True)):
            value = _number(argument, i)
            wanted = {ctypes.c_void_p: "rw", ctypes.c_int32: "iu", ctypes.c_float: "f", Long: "l"}[type(value)]
            require(
                letter in wanted, f"{self.name}: argument {i} is {type(argument).__name__}, the kernel has {letter!r}"
            )
            values.append(value)
            if isinstance(argument, torch.Tensor):
                buffers.append(_Buffer(argument.data_ptr(), _span(argument), i, letter == "w"))
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
            raise MemoryError(f"{self.name}: no memory for {MOST_THREADS} fibers")
        if fault.kind:
            raise KernelFault(describe(fault, path, self.name))
        return Traffic(
            fault.global_read_bytes,
            fault.global_write_bytes,
            fault.shared_accesses,
            fault.exchanges,
            fault.barriers,
        )


@contextmanager
def in_order(backward: bool) -> Iterator[None]:
    """Emulate every launch inside in ascending or descending order of blocks, waves and lanes."""
    token = _backward.set(backward)
    try:
        yield
    finally:
        _backward.reset(token)


def hip_kernel(source: str | Path, name: str, **defines: object) -> HipKernel:
    """Name a kernel; nothing is compiled before its first launch.

    Args:
        source: the .hip file, or its name in kernels/.
        name: the function that the file exports.
        defines: its macros; True and False become 1 and 0.
    Raises:
        ValueError: no such source.
    """
    plain = {key: int(value) if isinstance(value, bool) else value for key, value in defines.items()}
    return HipKernel(build.find_source(source), name, build.key(plain))


@cache
def _library(source: Path, name: str, defines: build.Defines) -> tuple[Path, Any, str]:
    path = build.build_host(source, dict(defines))
    library = ctypes.CDLL(str(path))
    try:
        run, signature = library[f"moeracle_launch_{name}"], library[f"moeracle_signature_{name}"]
    except AttributeError:
        names = re.findall(r"^MOERACLE_EXPORT\((\w+)\)", source.read_text(), re.MULTILINE)
        raise unknown("kernel", name, names) from None
    signature.restype = ctypes.c_char_p
    return path, run, signature().decode()


def _size(name: str, given: Dim) -> tuple[int, int, int]:
    x, y, z = (*given, 1, 1)[:3] if 0 < len(given) <= 3 else (-1, 1, 1)
    require(min(x, y, z) >= 0, f"{name}: got {tuple(given)}, must be one to three sizes, none negative")
    return x, y, z


def _device(args: tuple[Any, ...]) -> torch.device:
    devices = {a.device for a in args if isinstance(a, torch.Tensor)}
    require(len(devices) == 1, f"tensors: on {sorted(map(str, devices)) or 'no device'}, must be on one device")
    return devices.pop()


def _span(t: torch.Tensor) -> int:
    """Return the bytes from a tensor's first element to the end of its last."""
    if not t.numel():
        return 0
    return (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1) * t.element_size()


def _number(argument: Any, i: int) -> Any:
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, Long):
        return argument
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    require(
        isinstance(argument, int), f"argument {i}: got {type(argument).__name__}, must be a tensor, int, float or Long"
    )
    require(-(2**31) <= argument < 2**32, f"argument {i}: got {argument}, must fit in 32 bits (or be a Long)")
    return ctypes.c_int32(argument)
