"""The fifth backend of the .hip files: the compiled gfx11 machine code itself, executed on the CPU.

with machine_code("gfx1151"):
    out = int4_linear(x, w, bias)  # the same Python op; its launch runs the .hsaco
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from moeracle.kernels.gfx11.arguments import Span
from moeracle.kernels.gfx11.code_object import KernelCode, read_kernel
from moeracle.kernels.gfx11.machine import Run, launch
from moeracle.kernels.hip.runtime import build
from moeracle.ref.errors import unknown

ARCHITECTURES = ("gfx1100", "gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153")
chosen: ContextVar[str | None] = ContextVar("gfx11_machine_code", default=None)
runs: list[Run] = []  # what the launches inside the innermost machine_code() executed


@contextmanager
def machine_code(arch: str = "gfx1151") -> Iterator[list[Run]]:
    """Let HIP kernels on CPU tensors run as machine code inside this block; yield the list of what ran.

    Args:
        arch: the architecture to compile for, one of ARCHITECTURES.
    Raises:
        ValueError: another architecture.
    """
    if arch not in ARCHITECTURES:
        raise unknown("arch", arch, ARCHITECTURES)
    token = chosen.set(arch)
    runs.clear()
    try:
        yield runs
    finally:
        chosen.reset(token)


@lru_cache(maxsize=64)
def _code(source: Path, name: str, defines: build.Defines, arch: str) -> KernelCode:
    return read_kernel(build.build_gfx(source, dict(defines), arch), name)


def run_machine_code(
    source: Path, name: str, defines: build.Defines, grid: Sequence[int], block: Sequence[int], args: Sequence[Any],
    *, shared: int, spans: Mapping[int, int], arch: str,
) -> Run:  # fmt: skip
    """Execute one launch of a HIP kernel as machine code.

    Args:
        source, name, defines: which kernel, as HipKernel has them.
        grid, block: sizes in x, y, z.
        args: tensors on the CPU, int, float, ctypes numbers.
        shared: bytes of dynamic LDS.
        spans: bytes that each tensor argument covers, by its place.
        arch: e.g. "gfx1151".
    Returns:
        What was executed.
    Raises:
        ValueError, IndexError, ImportError: as machine.launch.
        ToolchainError: no compiler for `arch`.
    """
    plain = [
        Span(a.data_ptr(), spans[i]) if isinstance(a, torch.Tensor) and spans[i]
        else None if isinstance(a, torch.Tensor)
        else a.value if isinstance(a, ctypes._SimpleCData)
        else a
        for i, a in enumerate(args)
    ]  # fmt: skip
    done = launch(_code(source, name, defines, arch), grid, block, plain, dynamic_lds=shared)
    runs.append(done)
    return done
