"""Starting a HIP kernel on torch tensors, wherever they are: emulated on the CPU, or on an NVIDIA or AMD GPU.

    gemv = hip_kernel("int4_gemv.hip", "int4_gemv", YTILE=2, UNRL=4)
    gemv.launch((blocks, 1, 1), (128, 1, 1), x, w.packed, w.scale, out, K, N, shared=16384)

Arguments are tensors (a pointer to their first element), int (32 bits), float (fp32) and Long (64 bits).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moeracle.kernels.hip.runtime import build, machine
from moeracle.kernels.hip.runtime.arguments import Long as Long
from moeracle.kernels.hip.runtime.arguments import number, span
from moeracle.kernels.hip.runtime.emulate import Dim, Traffic, emulate, library
from moeracle.ref.errors import require

WAVE, MOST_THREADS, MOST_SHARED = 32, 1024, 64 << 10
MOST_STEPS = 1 << 31  # loads and stores of one thread between two meetings: beyond it, it hangs
_backward: ContextVar[bool] = ContextVar("backward", default=False)


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
            spans = {i: span(a) for i, a in enumerate(args) if isinstance(a, torch.Tensor)}
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
            named = (self.source, self.name, self.defines)
            backward = backward or _backward.get()
            return emulate(named, grid, block, args, shared=shared, backward=backward, steps=steps)
        from moeracle.kernels.hip.runtime.driver import launch_on_gpu

        values = [number(argument, i) for i, argument in enumerate(args)]
        launch_on_gpu(self.source, self.name, self.defines, device, grid, block, values, shared)
        return None

    def signature(self) -> str:
        """Return the kernel's parameters: r and w for pointers (const or not), i, u, l, f for numbers."""
        return library(self.source, self.name, self.defines)[2]


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


def _size(name: str, given: Dim) -> tuple[int, int, int]:
    x, y, z = (*given, 1, 1)[:3] if 0 < len(given) <= 3 else (-1, 1, 1)
    require(min(x, y, z) >= 0, f"{name}: got {tuple(given)}, must be one to three sizes, none negative")
    return x, y, z


def _device(args: tuple[Any, ...]) -> torch.device:
    devices = {a.device for a in args if isinstance(a, torch.Tensor)}
    require(len(devices) == 1, f"tensors: on {sorted(map(str, devices)) or 'no device'}, must be on one device")
    return devices.pop()
