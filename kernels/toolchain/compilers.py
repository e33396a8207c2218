"""Finding the compilers that a HIP kernel needs, and turning one .hip file into gfx machine code without a GPU.

    gfx code     $MOERACLE_GFX_CXX (a command, or ziglang), ROCm's clang, clang++ 16 or newer that knows the
                 architecture, PyPI ziglang's clang
    host code    $MOERACLE_CXX or $CXX, g++, c++, clang++, PyPI ziglang
    CUDA code    $MOERACLE_NVCC, nvcc on PATH, in $CUDA_HOME or /usr/local/cuda, or of PyPI nvidia-cuda-nvcc

Nothing is cached outside the caller's own output file. Every failure is one line that says what to install, with pip
alone where that is possible.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moeracle.files import write_atomically

PIP_HIP = "pip install 'moeracle[hip]' (which installs ziglang, 411 MB; no ROCm and no root needed)"
SOURCES = Path(__file__).resolve().parents[1] / "hip" / "source"  # the .hip files and their headers
# No ROCm headers and no device library: the kernels bring the few declarations that they need.
GFX_FLAGS: tuple[str, ...] = (
    "--cuda-device-only",
    "--no-gpu-bundle-output",
    "-nogpulib",
    "-nogpuinc",
    "-fdeclspec",
    "-O3",
)
GFX_FLAGS += ("-fuse-cuid=none",)  # else each compilation names a symbol after a random number
TRIPLE = "amdgcn-amd-amdhsa"
# Versions of LLVM that move v_permlanex16_b32 to where half of its lanes have not written what it reads; taken last.
MOVE_PERMLANEX16 = ("16", "17", "18", "19")


def cache_folder() -> Path:
    """Return where builds are kept: $MOERACLE_CACHE, else moeracle/ in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("MOERACLE_CACHE")
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moeracle"
    return root / "hip"


class ToolchainError(ValueError):
    """A compiler is missing, too old, or refuses the source; the message's first line says which and what to do."""


@dataclass(frozen=True)
class GfxCompiler:
    """A clang that makes AMD machine code.

    Args:
        name: what messages call it, with its version.
        command: how to start clang, e.g. ("clang++-19",).
        linker: how to start lld on an object file, or () to let clang's driver link.
    """

    name: str
    command: tuple[str, ...]
    linker: tuple[str, ...] = ()

    @property
    def links(self) -> bool:
        """Whether it can make a loadable file: a clang installed without lld makes assembly text only."""
        return bool(self.linker) or _has_lld(self.command)


@dataclass(frozen=True)
class CodeObject:
    """What one compilation left: the loadable .hsaco (None where only text was asked for) and its assembly text."""

    path: Path | None
    asm: str
    arch: str
    compiler: str


def _run(command: Iterable[object]) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(words, 127, "", f"{words[0]}: {error.strerror}")


def _named(variable: str) -> tuple[str, ...] | None:
    """Return the command in an environment variable, or None; a command that does not exist is the user's mistake."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    command = tuple(shlex.split(text))
    if shutil.which(command[0]) is None:
        raise ToolchainError(f"{variable}: got {text!r}, must be a command that exists")
    return command


def _zig(tool: str) -> tuple[str, ...] | None:
    return (sys.executable, "-m", "ziglang", tool) if importlib.util.find_spec("ziglang") else None


def _zig_parts() -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return ziglang's clang and lld, whose driver cannot start a linker by itself, where they are installed."""
    zig, lld = _zig("clang"), _zig("ld.lld")
    return [(zig, lld)] if zig and lld else []


def _version(command: tuple[str, ...]) -> str:
    done = _run([*command, "--version"])
    found = re.search(r"version (\d+[\d.]*)", done.stdout)
    return found.group(1) if found else "unknown version"


@cache
def _gfx_processors(command: tuple[str, ...]) -> frozenset[str]:
    """List the AMD processors that a clang can make code for; none where its AMDGPU backend was left out."""
    done = _run([*command, f"--target={TRIPLE}", "-nogpulib", "--print-supported-cpus"])
    return frozenset(re.findall(r"\bgfx[0-9a-f]+\b", done.stdout + done.stderr))


@cache
def _has_lld(command: tuple[str, ...]) -> bool:
    """Say whether a clang's driver finds lld; where it does not, it prints the bare name back."""
    return shutil.which(_run([*command, "-print-prog-name=ld.lld"]).stdout.strip() or "ld.lld") is not None


def _gfx_candidates() -> list[GfxCompiler]:
    ours = [GfxCompiler(f"ziglang's clang {_version(zig)}", zig, lld) for zig, lld in _zig_parts()]
    if os.environ.get("MOERACLE_GFX_CXX", "").strip() == "ziglang":
        return ours
    named = _named("MOERACLE_GFX_CXX")
    if named:
        return [GfxCompiler(f"{' '.join(named)} {_version(named)}", named)]
    rocm: list[tuple[str, ...]] = []
    for root in filter(None, (os.environ.get("ROCM_PATH"), os.environ.get("ROCM_HOME"), "/opt/rocm")):
        rocm += [(str(path),) for path in [Path(root) / "llvm/bin/clang++"] if path.is_file()]
    rocm += _commands("hipcc", "amdclang++")
    others = _commands(*(f"clang++-{v}" for v in range(29, 15, -1)), "clang++")
    first, theirs = (
        [GfxCompiler(f"{Path(c[0]).name} {_version(c)}", c) for c in dict.fromkeys(some)] for some in (rocm, others)
    )
    old = [one for one in theirs if one.name.rpartition(" ")[2].split(".")[0] in MOVE_PERMLANEX16]
    return [*first, *(one for one in theirs if one not in old), *ours, *old]


def _commands(*names: str) -> list[tuple[str, ...]]:
    return [(path,) for path in (shutil.which(name) for name in names) if path]


@cache
def gfx_compiler(arch: str = "gfx1151") -> GfxCompiler:
    """Return the first compiler here that makes code for an AMD architecture, one that can link before one that cannot.

    Args:
        arch: e.g. "gfx1151".
    Raises:
        ToolchainError: none is installed, or those that are know nothing of `arch`; in one line, with what to install.
    """
    if not re.fullmatch(r"gfx[0-9a-f]{3,4}", arch):
        raise ToolchainError(f"arch: got {arch!r}, must be an AMD architecture such as gfx1151")
    candidates = _gfx_candidates()
    if not candidates:
        raise ToolchainError(f"no compiler for {arch} found (looked for hipcc, clang++ >= 17, ziglang): {PIP_HIP}")
    able = [one for one in candidates if arch in _gfx_processors(one.command)]
    if able:
        return next((one for one in able if one.links), able[0])
    old = ", ".join(c.name for c in candidates)
    known = any(_gfx_processors(one.command) for one in candidates)
    why = f"too old for {arch}" if known else "built without AMD GPUs"
    raise ToolchainError(f"{old}: {why}; install clang++ 17 or newer with lld, or {PIP_HIP}")


def named_gfx_compiler(name: str, arch: str) -> GfxCompiler:
    """Return the compiler that a user names.

    Args:
        name: "ziglang", or a clang's command such as "clang++-19".
        arch: what it must make code for.
    Raises:
        ToolchainError: there is no such command, or it knows nothing of `arch`.
    """
    command = _zig("clang") if name == "ziglang" else tuple(shlex.split(name))
    if not command or shutil.which(command[0]) is None:
        raise ToolchainError(f"compiler: got {name!r}, must be a command that exists, or ziglang ({PIP_HIP})")
    if arch not in _gfx_processors(command):
        raise ToolchainError(f"compiler: {name} {_version(command)} makes no code for {arch}")
    linker = _zig("ld.lld") if name == "ziglang" else None
    return GfxCompiler(f"{Path(name).name} {_version(command)}", command, linker or ())


def host_cxx() -> tuple[str, ...]:
    """Return the command of a C++17 compiler for this machine.

    Raises:
        ToolchainError: there is none; in one line, with what to install.
    """
    named = _named("MOERACLE_CXX") or _named("CXX")
    if named:
        return named
    for name in ("g++", "c++", "clang++"):
        path = shutil.which(name)
        if path:
            return (path,)
    zig = _zig("c++")
    if zig:
        return zig
    raise ToolchainError(f"no C++ compiler found (looked for g++, c++, clang++, ziglang): {PIP_HIP}")


def nvcc() -> tuple[str, ...]:
    """Return the command of NVIDIA's compiler; a ToolchainError says what to install."""
    named = _named("MOERACLE_NVCC")
    if named:
        return named
    roots = [Path(root) for root in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if root]
    roots += sorted((Path(p) / "nvidia" / "cu13" for p in sys.path if p), key=str)
    for path in (shutil.which("nvcc"), *(shutil.which("nvcc", path=str(root / "bin")) for root in roots)):
        if path:
            return (path,)
    raise ToolchainError("no nvcc found: pip install nvidia-cuda-nvcc, or CUDA itself, or set MOERACLE_NVCC")


def _define_flags(defines: Mapping[str, object] | Iterable[str]) -> list[str]:
    if isinstance(defines, Mapping):
        return [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in defines.items()]
    return [f"-D{text}" for text in defines]


def compile_gfx(
    source: str | Path,
    arch: str,
    out: str | Path | None = None,
    defines: Mapping[str, object] | Iterable[str] = (),
    keep_asm: bool = True,
    *,
    flags: Iterable[str] = (),
    include: Iterable[str | Path] = (),
    compiler: str | None = None,
) -> CodeObject:
    """Compile one .hip file for an AMD architecture, with no GPU and no ROCm: source → assembly → object → .hsaco.

    Args:
        source: the .hip file; its own folder and kernels/hip/source/ are searched for headers.
        arch: e.g. "gfx1151".
        out: the .hsaco to write (its assembly beside it, with the ending .s, if keep_asm); None: only the text.
        defines: preprocessor macros, {"NAME": value} (None: no value) or "NAME=value" texts.
        keep_asm: write the assembly text beside `out`.
        flags: more options for clang.
        include: folders of headers, searched first.
        compiler: "ziglang", or a clang's command; None: the first one here that knows `arch`.
    Returns:
        A CodeObject; its asm is the machine code as clang prints it, metadata included.
    Raises:
        ToolchainError: no compiler, or the first error line that the compiler printed.
        ValueError: the source does not exist.
    """
    source = Path(source)
    if not source.is_file():
        raise ValueError(f"source: got {source}, must be a .hip file that exists")
    chosen = gfx_compiler(arch) if compiler is None else named_gfx_compiler(compiler, arch)
    folders = [f"-I{folder}" for folder in dict.fromkeys((*include, source.resolve().parent, SOURCES))]
    with tempfile.TemporaryDirectory(prefix="moeracle-gfx-") as folder:
        text, code, linked = (Path(folder) / f"k.{ending}" for ending in ("s", "o", "hsaco"))
        head: list[object] = [*chosen.command, "-x", "hip", f"--offload-arch={arch}", *GFX_FLAGS, *folders]
        head += [*_define_flags(defines), *flags]
        _step(chosen, [*head, "-S", source, "-o", text], source)
        asm = text.read_text()
        if out is None:
            return CodeObject(None, asm, arch, chosen.name)
        target: list[object] = [*chosen.command, "-x", "assembler", f"--target={TRIPLE}", f"-mcpu={arch}", text]
        if chosen.linker:
            _step(chosen, [*target, "-c", "-o", code], source)
            _step(chosen, [*chosen.linker, "-shared", code, "-o", linked], source)
        else:
            _step(chosen, [*target, "-o", linked], source)
        out = Path(out)
        if keep_asm:
            write_atomically(out.with_suffix(".s"), text.read_bytes())
        write_atomically(out, linked.read_bytes())
    return CodeObject(out, asm, arch, chosen.name)


def preprocessed(
    compiler: GfxCompiler, source: Path, arch: str, defines: Mapping[str, object] | Iterable[str], *,
    flags: Iterable[str], include: Iterable[str | Path],
) -> str:  # fmt: skip
    """Return what the preprocessor makes of a source: what its machine code depends on.

    Raises:
        ToolchainError: the first error that it printed.
    """
    folders = [f"-I{folder}" for folder in dict.fromkeys(include)]
    head: list[object] = [*compiler.command, "-x", "hip", f"--offload-arch={arch}", *GFX_FLAGS, *folders]
    done = _run([*head, *_define_flags(defines), *flags, "-E", source])
    if done.returncode:
        raise _refusal(compiler, source, done.stderr, done.returncode)
    return done.stdout


def _step(compiler: GfxCompiler, command: list[object], source: Path) -> None:
    done = _run(command)
    if done.returncode:
        raise _refusal(compiler, source, done.stderr, done.returncode)


def _refusal(compiler: GfxCompiler, source: Path, errors: str, code: int) -> ToolchainError:
    lines = [line for line in errors.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line), lines[0] if lines else f"exit {code}")
    no_linker = "lld" in first and ("invalid linker" in first or "doesn't exist" in first)
    hint = f"; install lld beside it, or {PIP_HIP}" if no_linker else ""
    return ToolchainError(f"{compiler.name}: {source.name}: {first.strip()}{hint}")
