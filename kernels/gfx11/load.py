"""Any gfx11 kernel as a function on torch tensors: from a code object of any compiler, or from its HIP source.

gemv = load("gemv.hsaco", kernel="gemv<4, __half>")
gemv.launch((N // 4,), (128,), x, w, scale, out, N, K)
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moeracle.kernels.toolchain.compilers import (
    cache_folder,
    compile_gfx,
    gfx_compiler,
    named_gfx_compiler,
    preprocessed,
)
from moeracle.ref.errors import require, unknown

from .arguments import Span
from .code_object import KernelCode, read_kernel
from .decode import decode
from .elf import GFX11
from .machine import Run, launch
from .program import NO_EFFECT

SHIMS = Path(__file__).resolve().parent / "shims"
SOURCES = (".hip", ".cu", ".cuh", ".cpp", ".cc", ".cxx", ".c", ".h", ".hpp")
ARCHITECTURES = tuple(name for name in GFX11.values() if "-" not in name)


@dataclass(frozen=True)
class Gfx11Kernel:
    """One gfx11 kernel that a CPU executes.

    Args:
        code: what its code object says of it.
    """

    code: KernelCode

    def launch(
        self, grid: Sequence[int] | int, block: Sequence[int] | int, *args: Any, shared: int = 0, checks: bool = True
    ) -> Run:
        """Execute the kernel; tensors are written in place.

        Args:
            grid: workgroups in x, y, z; nothing runs where one is 0.
            block: threads of one in x, y, z, at most 1024.
            args: for each pointer a CPU tensor or None (null), for each value an int, a float, a ctypes value or bytes.
            shared: bytes of dynamic LDS.
            checks: report LDS that nobody has written, and races of waves in LDS.
        Returns:
            What was executed.
        Raises:
            ValueError: sizes or arguments that do not fit, an instruction that is not modelled, an endless kernel.
            IndexError: an access outside every tensor, outside LDS or outside scratch.
            MachineFault: anything else that is undefined on a GPU.
        """
        places, threads = _size("grid", grid), _size("block", block)
        if 0 in places:
            return Run()
        return launch(
            self.code, places, threads, [_plain(a, i) for i, a in enumerate(args)], dynamic_lds=shared, checks=checks
        )


def load(
    path: str | Path, kernel: str | None = None, *, arch: str | None = None, instantiate: str | Iterable[str] = (),
    include: Iterable[str | Path] = (), defines: Mapping[str, object] | Iterable[str] = (), compiler: str | None = None,
    flags: Iterable[str] = (),
) -> Gfx11Kernel:  # fmt: skip
    """Load one kernel, compiling it first where the file is a source.

    Args:
        path: a code object (.hsaco, .co, a bundle), or a HIP source (.hip, .cu, .cpp, .h).
        kernel: its name as the source has it, with template arguments ("gemv<4, __half>"), its symbol, or a part that
            no other has; None where the file holds one.
        arch: what a source is compiled for, one of ARCHITECTURES; None: $MOERACLE_GFX_ARCH, else gfx1151.
        instantiate: templates of a source that it does not instantiate itself, e.g. "gemv<4, __half>".
        include: folders of headers, searched before the shims of hip_runtime.h, hip_fp16.h and hip_bf16.h.
        defines: macros, {"NAME": value} or "NAME=value" texts.
        compiler: "ziglang" or a clang's command; None: the first one here that knows `arch`.
        flags: more options for clang, e.g. "-O2"; those in the environment variable MOERACLE_GFX_FLAGS follow.
    Returns:
        The kernel; its `launch` runs it.
    Raises:
        ValueError: no such file or kernel, another architecture, a format that is not known, an empty kernel.
        ToolchainError: no compiler, or the first error that it printed.
        ImportError: tinygrad, which decodes, is not installed.
    """
    path, arch = Path(path), arch or os.environ.get("MOERACLE_GFX_ARCH") or "gfx1151"
    require(path.is_file(), f"path: got {path}, must be a code object or a HIP source that exists")
    templates = (instantiate,) if isinstance(instantiate, str) else tuple(instantiate)
    if path.suffix.lower() in SOURCES:
        if arch not in ARCHITECTURES:
            raise unknown("arch", arch, ARCHITECTURES)
        built = compiled(path, arch, templates, tuple(include), defines, compiler, tuple(flags))
    else:
        require(not templates, f"instantiate: got {templates[:1]} with a code object, must go with a source")
        built = path
    wanted = kernel if kernel is not None or len(templates) != 1 else templates[0]
    code = read_kernel(built, wanted, "kernel")
    if is_empty(code):
        raise ValueError(
            f"kernel: {code.shown} is empty in {path}: its source has no code for {code.elf.arch} (#if on __gfx…__?)"
        )
    return Gfx11Kernel(code)


def is_empty(code: KernelCode) -> bool:
    """Say whether a kernel does nothing but end."""
    names = {one.name for one in decode(code.text, start=code.symbol.address)}
    return names <= {*NO_EFFECT, "S_ENDPGM"}


def compiled(
    path: Path, arch: str, templates: tuple[str, ...], include: tuple[str | Path, ...],
    defines: Mapping[str, object] | Iterable[str], compiler: str | None, flags: tuple[str, ...],
) -> Path:  # fmt: skip
    """Return the code object of a source, built once for what its preprocessor makes of it."""
    with tempfile.TemporaryDirectory(prefix="moeracle-gfx11-") as folder:
        whole = Path(folder) / f"{path.stem}.hip"
        lines = [f"template __attribute__((global)) decltype({t}) {t};" for t in templates]
        whole.write_text(f'#include "{path.resolve()}"\n' + "\n".join(lines) + "\n")
        macros = dict(defines) if isinstance(defines, Mapping) else tuple(defines)
        folders = (*include, path.resolve().parent, SHIMS)
        more = shlex.split(os.environ.get("MOERACLE_GFX_FLAGS", ""))
        options = ("-gline-tables-only", "-Wno-unused-command-line-argument", *flags, *more)
        used = named_gfx_compiler(compiler, arch) if compiler else gfx_compiler(arch)
        text = preprocessed(used, whole, arch, macros, flags=options, include=folders).replace(str(folder), "")
        digest = hashlib.sha256("\0".join((used.name, arch, *options, text)).encode()).hexdigest()[:20]
        wanted = cache_folder() / f"{path.stem}-{digest}.hsaco"
        if not wanted.is_file():
            wanted.parent.mkdir(parents=True, exist_ok=True)
            compile_gfx(whole, arch, wanted, macros, keep_asm=False, flags=options, include=folders, compiler=compiler)
    return wanted


def _size(name: str, given: Sequence[int] | int) -> tuple[int, int, int]:
    sizes = (given,) if isinstance(given, int) else tuple(given)
    good = 0 < len(sizes) <= 3 and all(isinstance(n, int) and n >= 0 for n in sizes)
    require(good, f"{name}: got {given}, must be one to three sizes, none negative")
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


def _plain(argument: Any, i: int) -> Any:
    if not isinstance(argument, torch.Tensor):
        return (
            argument.value
            if isinstance(argument, ctypes._SimpleCData)
            else argument.item()
            if isinstance(argument, np.generic)
            else argument
        )
    require(argument.device.type == "cpu", f"argument {i}: on {argument.device}, must be on the CPU, which executes it")
    if not argument.numel():
        return Span(0, 0)
    reach = sum((n - 1) * s for n, s in zip(argument.shape, argument.stride(), strict=True)) + 1
    return Span(argument.data_ptr(), reach * argument.element_size(), str(argument.dtype).removeprefix("torch."))
