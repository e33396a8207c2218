"""Turning one .hip file and its macros into something that runs: on the host, on NVIDIA or on AMD, once per digest.

    host   g++ or clang++: the kernel instrumented, the runtime not, linked to a shared object
    cuda   nvcc -x cu -cubin -fmad=false
    gfx    toolchain.compile_gfx → .hsaco

The digest covers the source, every header beside it, the macros, the flags and the compiler's version, but no folder:
a cache may be carried to another machine. A build is written under a temporary name in the user's cache folder and
renamed, so processes may build at once and none sees half a file.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from moeracle.files import write_atomically
from moeracle.kernels.toolchain.compilers import SOURCES, ToolchainError, compile_gfx, gfx_compiler, host_cxx, nvcc
from moeracle.kernels.toolchain.compilers import cache_folder as cache_folder

Defines = tuple[tuple[str, object], ...]
HEADERS = ("*.h", "host_runtime.cpp")
# Contraction off: a*b+c has two roundings in each backend. Not vectorized: an access is reported as the source has it.
HOST_FLAGS = (
    "-std=c++17",
    "-O2",
    "-g1",  # lines, of inlined functions too, and nothing of variables: a fifth less to compile
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-tree-vectorize",
    "-fno-exceptions",
    "-fno-rtti",
)
KERNEL_FLAGS = ("-fsanitize=thread", "-Wall", "-Wno-unknown-pragmas", "-Werror=uninitialized", "-Werror=return-type")
CLANG_FLAGS = ("-mllvm", "-tsan-instrument-read-before-write=1", "-fno-sanitize=undefined", "-Wno-unused-function")
CUDA_FLAGS = ("-x", "cu", "-std=c++17", "-O3", "-fmad=false", "-cubin")


def find_source(source: str | Path) -> Path:
    """Return the path of a .hip file: as given, or a name in kernels/hip/source/.

    Raises:
        ValueError: there is no such file; the kernels that exist are named.
    """
    for path in (Path(source), SOURCES / source):
        if path.is_file():
            return path.resolve()
    names = ", ".join(sorted(p.name for p in SOURCES.glob("*.hip"))) or "none yet"
    raise ValueError(f"source: got {str(source)!r}, must be a .hip file; kernels/hip/source/ holds {names}")


def build_host(source: str | Path, defines: Mapping[str, object] | None = None) -> Path:
    """Build the emulation of one .hip file for this machine's CPU.

    Args:
        source: the file, or its name in kernels/hip/source/.
        defines: macros, {"NAME": value}; None for no value.
    Returns:
        A shared object that exports moeracle_launch_NAME and moeracle_signature_NAME for each MOERACLE_EXPORT.
    Raises:
        ToolchainError: no C++ compiler (what to install), or the first error that it printed.
        ValueError: no such source.
    """
    path, compiler = find_source(source), host_cxx()
    flags = (*HOST_FLAGS, *_machine_flags(), *(CLANG_FLAGS if _is_clang(compiler) else ()))
    link = ("-nostdlib++",) if _is_clang(compiler) else ()  # zig would build a C++ library first: a minute
    macros = _define_flags(defines)
    wanted = _cached(path, (version(compiler), *flags, *KERNEL_FLAGS, *macros), "so")
    if wanted.is_file():
        return wanted
    words = [*_include(path), *macros]
    runtime = _runtime(compiler, flags, [word for word in macros if word.startswith("-DMOERACLE_")])
    with tempfile.TemporaryDirectory(prefix="moeracle-host-") as folder:
        kernel, linked = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        _compile(compiler, [*flags, *KERNEL_FLAGS, *words, "-x", "c++", "-c", str(path), "-o", str(kernel)], path)
        _compile(compiler, ["-shared", str(kernel), str(runtime), "-o", str(linked), *link, "-lm"], path)
        return _put(linked, wanted)


def _runtime(compiler: tuple[str, ...], flags: tuple[str, ...], macros: list[str]) -> Path:
    """Build the emulation's runtime, without the instrumentation that calls it."""
    path = SOURCES / "host_runtime.cpp"
    wanted = _cached(path, (version(compiler), *flags, *macros), "o")
    if wanted.is_file():
        return wanted
    with tempfile.TemporaryDirectory(prefix="moeracle-host-") as folder:
        made = Path(folder) / "runtime.o"
        _compile(compiler, [*flags, *macros, f"-I{SOURCES}", "-c", str(path), "-o", str(made)], path)
        return _put(made, wanted)


def build_cuda(source: str | Path, defines: Mapping[str, object] | None = None, arch: str = "sm_90") -> Path:
    """Build one .hip file for an NVIDIA GPU through the port header.

    Args:
        source, defines: as in build_host.
        arch: e.g. "sm_90".
    Returns:
        A cubin for cuModuleLoadData.
    Raises:
        ToolchainError: no nvcc (what to install), or the first error that it printed.
    """
    path, compiler = find_source(source), nvcc()
    words = [*CUDA_FLAGS, f"-arch={arch}", *_define_flags(defines)]
    wanted = _cached(path, (version(compiler), *words), "cubin")
    if wanted.is_file():
        return wanted
    with tempfile.TemporaryDirectory(prefix="moeracle-cuda-") as folder:
        made = Path(folder) / "kernel.cubin"
        _compile(compiler, [*words, *_include(path), "-o", str(made), str(path)], path)
        return _put(made, wanted)


def build_gfx(source: str | Path, defines: Mapping[str, object] | None = None, arch: str = "gfx1151") -> Path:
    """Build one .hip file for an AMD GPU, with ROCm's compiler or any other that knows the architecture.

    Returns:
        A .hsaco for hipModuleLoadData, its assembly text (.s) beside it.
    Raises:
        ToolchainError: no compiler for `arch` (what to install), or the first error that it printed.
    """
    path, compiler = find_source(source), gfx_compiler(arch)
    wanted = _cached(path, (compiler.name, version(compiler.command), arch, *_define_flags(defines)), "hsaco")
    if not wanted.is_file():
        wanted.parent.mkdir(parents=True, exist_ok=True)
        compile_gfx(path, arch, wanted, defines or {})
    return wanted


def key(defines: Mapping[str, object] | None) -> Defines:
    """Return macros as a hashable value."""
    return tuple(sorted((defines or {}).items()))


@cache
def version(compiler: tuple[str, ...]) -> str:
    """Return the line by which a compiler names itself."""
    done = _run([*compiler, "--version"])
    return done.stdout.strip() or done.stderr.strip()


def _is_clang(compiler: tuple[str, ...]) -> bool:
    return "clang" in version(compiler).lower() or "ziglang" in compiler


@cache
def _machine_flags() -> tuple[str, ...]:
    """Use the CPU's fused multiply-add where it has one; without it the C library computes the same bits slowly."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return ()
    return ("-mfma",) if platform.machine() == "x86_64" and "fma" in flags else ()


def _include(path: Path) -> list[str]:
    return [f"-I{folder}" for folder in dict.fromkeys((str(path.parent), str(SOURCES)))]


def _define_flags(defines: Mapping[str, object] | None) -> list[str]:
    return [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in key(defines)]


def _cached(path: Path, words: tuple[str, ...], ending: str) -> Path:
    digest = hashlib.sha256("\0".join(words).encode())
    headers = [p for pattern in HEADERS for p in sorted(SOURCES.glob(pattern))]
    beside = sorted(path.parent.glob("*.h")) if path.parent != SOURCES else []
    for file in (path, *headers, *beside):
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return cache_folder() / f"{path.stem}-{digest.hexdigest()[:20]}.{ending}"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: error: {error.strerror}")


def _compile(compiler: tuple[str, ...], words: list[str], source: Path) -> None:
    done = _run([*compiler, *words])
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        first = next((line for line in lines if "error:" in line), lines[0] if lines else f"exit {done.returncode}")
        name = " ".join(Path(word).name for word in compiler)
        raise ToolchainError(f"{name}: {first.replace(str(source.parent) + os.sep, '')}")


def _put(made: Path, wanted: Path) -> Path:
    wanted.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(wanted, made.read_bytes())
