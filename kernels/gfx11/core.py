"""The compiled core: built once a machine by the C++ compiler that is here, called through ctypes.

The core holds a formula for each instruction (source/*.h) and the loop over waves (source/machine.cpp). A kernel's code
is decoded once into records, so nothing is compiled for a kernel.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from moeracle.files import write_atomically
from moeracle.kernels.toolchain.compilers import ToolchainError, cache_folder, host_cxx

from .program import RECORD

SOURCES = Path(__file__).resolve().parent / "source"
# No contraction and no fast math: each operation rounds as it is written. Sums wrap.
FLAGS = (
    "-std=c++17", "-O1", "-ftree-vectorize", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-fno-strict-aliasing", "-fwrapv", "-fno-exceptions", "-fno-rtti", "-fvisibility=default",
)  # fmt: skip


class Region(ctypes.Structure):
    """Region of source/state.h."""

    _fields_ = (("bytes", ctypes.c_void_p), ("size", ctypes.c_uint64), ("writable", ctypes.c_int64))


class Fault(ctypes.Structure):
    """Fault of source/state.h."""

    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("kind", "at", "wave", "lane", "address", "size", "other", "other_at")
    )


class Launch(ctypes.Structure):
    """Launch of source/state.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("program", "counts", "regions", "groups", "user")),
        *((name, ctypes.c_int64) for name in ("user_count", "group_count", "region_count", "instruction_count")),
        ("grid", ctypes.c_int64 * 3),
        ("block", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("lds", "scratch", "vgprs", "first_system")),
        ("wants_id", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("entry", "budget", "seed", "order", "fill", "checks", "image_base")),
        ("index_of", ctypes.c_void_p),
        ("index_count", ctypes.c_int64),
        ("unwritten", ctypes.c_void_p),
        ("unwritten_register", ctypes.c_void_p),
        ("done_groups", ctypes.c_int64),
        ("executed", ctypes.c_int64),
        ("fault", Fault),
    )


PLANTED: tuple[str, ...] = ()  # flags by which a test plants a wrong formula


def core() -> Any:
    """Return the core, built if need be.

    Raises:
        ToolchainError: no C++ compiler (what to install), or the first error that it printed.
    """
    return _core(PLANTED)


@cache
def _core(planted: tuple[str, ...]) -> Any:
    found = ctypes.CDLL(str(_built(planted)))
    found.moeracle_gfx_name.restype = ctypes.c_char_p
    found.moeracle_gfx_size.restype = ctypes.c_int64
    for what, ours in enumerate((RECORD.itemsize, ctypes.sizeof(Launch), ctypes.sizeof(Region))):
        assert found.moeracle_gfx_size(what) == ours, f"struct {what} of source/state.h and core.py differ"
    return found


@cache
def formulas() -> dict[str, int]:
    """Return the number of each formula of the core, by name."""
    names: dict[str, int] = {}
    number = 0
    while (name := core().moeracle_gfx_name(number)) is not None:
        names[name.decode()] = number
        number += 1
    return names


def _built(planted: tuple[str, ...]) -> Path:
    compiler = host_cxx()
    flags = [*FLAGS, *_machine_flags(), *planted]
    done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    clang = "clang" in done.stdout.lower() or "ziglang" in compiler
    flags += ["-nostdlib++", "-fno-sanitize=undefined"] if clang else []
    digest = hashlib.sha256("\0".join((done.stdout, *flags)).encode())
    for file in sorted(SOURCES.iterdir()):
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    wanted = cache_folder() / f"gfx11-core-{digest.hexdigest()[:20]}.so"
    if not wanted.is_file():
        with tempfile.TemporaryDirectory(prefix="moeracle-gfx11-") as folder:
            made = Path(folder) / "core.so"
            words = [*compiler, *flags, str(SOURCES / "machine.cpp"), "-o", str(made), "-lm"]
            built = subprocess.run(words, capture_output=True, text=True, check=False)
            if built.returncode:
                lines = [line.strip() for line in built.stderr.splitlines() if line.strip()] or ["no message"]
                raise ToolchainError(f"{Path(compiler[0]).name}: {next((x for x in lines if 'error' in x), lines[0])}")
            wanted.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(wanted, made.read_bytes())
    return wanted


@cache
def _machine_flags() -> tuple[str, ...]:
    """Use the CPU's vectors and fused multiply-add where it has them; the bits are the same without."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ()
    if platform.machine() != "x86_64":
        return ()
    return tuple(f"-m{name}" for name in ("avx2", "fma") if name in words)
