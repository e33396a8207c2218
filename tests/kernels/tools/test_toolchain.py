"""The compiler finder: what is found, what is refused, and that every refusal says how to go on."""

from __future__ import annotations

import sys

import pytest

from moeracle.kernels.toolchain import compilers as toolchain
from moeracle.kernels.toolchain.compilers import ToolchainError, compile_gfx, gfx_compiler, host_cxx, nvcc

KERNEL = """
#define __global__ __attribute__((global))
extern "C" __global__ void twice(float* y, const float* x) {
  int i = __builtin_amdgcn_workitem_id_x();
  y[i] = x[i] * FACTOR;
}
"""


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """A machine without any compiler; returns its PATH's only folder."""
    for name in ("MOERACLE_GFX_CXX", "MOERACLE_CXX", "MOERACLE_NVCC", "CXX", "CUDA_HOME", "ROCM_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ROCM_PATH", str(tmp_path / "no-rocm"))
    monkeypatch.setattr(toolchain, "_zig", lambda tool: None)
    monkeypatch.setattr(toolchain, "Path", _no_rocm(toolchain.Path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    gfx_compiler.cache_clear()
    toolchain._gfx_processors.cache_clear()
    toolchain._has_lld.cache_clear()
    yield tmp_path
    gfx_compiler.cache_clear()
    toolchain._gfx_processors.cache_clear()
    toolchain._has_lld.cache_clear()


def _no_rocm(path):
    def make(*parts):
        text = str(path(*parts))
        return path("/nowhere" + text) if text.startswith(("/opt/rocm", "/usr/local/cuda")) else path(text)

    return make


def fake(folder, name, version, processors, lld="ld.lld"):
    script = folder / name
    lines = "\\n".join(processors)
    script.write_text(
        f"#!/bin/sh\ncase \"$*\" in\n*--version*) echo 'clang version {version}';;\n"
        f"*-print-prog-name*) echo {lld};;\n*) printf '{lines}\\n';;\nesac\n"
    )
    script.chmod(0o755)


def test_no_compiler_says_what_pip_installs(nothing):
    with pytest.raises(ToolchainError, match=r"no compiler for gfx1151 found .*pip install 'moeracle\[hip\]'"):
        gfx_compiler("gfx1151")
    with pytest.raises(ToolchainError, match=r"no C\+\+ compiler found .*pip install"):
        host_cxx()
    with pytest.raises(ToolchainError, match="no nvcc found: pip install nvidia-cuda-nvcc"):
        nvcc()


def test_a_compiler_too_old_is_said_so(nothing):
    fake(nothing, "clang++-16", "16.0.6", ["gfx1100", "gfx1103"])
    with pytest.raises(
        ToolchainError, match=r"clang\+\+-16 16.0.6: too old for gfx1151; install clang\+\+ 17 or newer"
    ):
        gfx_compiler("gfx1151")
    assert gfx_compiler("gfx1100").command == (str(nothing / "clang++-16"),)


def test_a_compiler_without_amd_targets_is_said_so(nothing):
    fake(nothing, "clang++", "19.1.0", [])
    with pytest.raises(ToolchainError, match="built without AMD GPUs"):
        gfx_compiler("gfx1151")


def test_the_newest_that_knows_the_architecture_is_taken(nothing):
    fake(nothing, "clang++-16", "16.0.6", ["gfx1100"])
    fake(nothing, "clang++-19", "19.1.7", ["gfx1100", "gfx1151"])
    assert gfx_compiler("gfx1151").name == "clang++-19 19.1.7"


def test_a_compiler_without_a_linker_comes_after_one_that_has_it(nothing):
    fake(nothing, "clang++-19", "19.1.7", ["gfx1151"])
    assert gfx_compiler("gfx1151").name == "clang++-19 19.1.7"  # alone it still makes assembly text
    assert not gfx_compiler("gfx1151").links
    fake(nothing, "clang++-17", "17.0.6", ["gfx1151"], lld=sys.executable)
    gfx_compiler.cache_clear()
    assert gfx_compiler("gfx1151").name == "clang++-17 17.0.6"
    assert gfx_compiler("gfx1151").links


def test_a_missing_linker_is_said_with_what_to_install(nothing):
    fake(nothing, "clang++-19", "19.1.7", ["gfx1151"])
    clang = gfx_compiler("gfx1151")
    missing = 'clang: error: unable to execute command: Executable "ld.lld" doesn\'t exist!'
    said = str(toolchain._refusal(clang, toolchain.Path("k.hip"), missing, 1))
    assert said.endswith(f"{missing}; install lld beside it, or {toolchain.PIP_HIP}")


def test_a_compiler_that_is_wrong_about_lanes_comes_last(nothing, monkeypatch):
    fake(nothing, "clang++-19", "19.1.7", ["gfx1151"])
    fake(nothing, "zig", "22.1.8", ["gfx1151"])
    monkeypatch.setattr(toolchain, "_zig", lambda tool: (str(nothing / "zig"),))
    assert gfx_compiler("gfx1151").name == "ziglang's clang 22.1.8"
    fake(nothing, "clang++", "21.0.0", ["gfx1151"], lld=sys.executable)
    gfx_compiler.cache_clear()
    assert gfx_compiler("gfx1151").name == "clang++ 21.0.0"


def test_a_named_compiler_must_exist(nothing, monkeypatch):
    monkeypatch.setenv("MOERACLE_CXX", "no-such-compiler --fast")
    with pytest.raises(ToolchainError, match="MOERACLE_CXX: got 'no-such-compiler --fast'"):
        host_cxx()


@pytest.mark.parametrize("arch", ["sm_90", "gfx", "gfx1151; rm"])
def test_only_amd_architectures(arch):
    with pytest.raises(ToolchainError, match="must be an AMD architecture"):
        gfx_compiler(arch)


@pytest.fixture
def source(tmp_path):
    try:
        gfx_compiler("gfx1151")
    except ToolchainError as error:
        pytest.skip(str(error))
    path = tmp_path / "twice.hip"
    path.write_text(KERNEL)
    return path


def test_source_becomes_a_code_object_and_its_text(source, tmp_path):
    made = compile_gfx(source, "gfx1151", tmp_path / "twice.hsaco", {"FACTOR": 3})
    assert made.path.read_bytes()[:4] == b"\x7fELF"
    assert (tmp_path / "twice.s").read_text() == made.asm
    assert "global_load_b32" in made.asm
    assert compile_gfx(source, "gfx1151", None, ["FACTOR=3"]).asm == made.asm
    assert sorted(p.name for p in tmp_path.iterdir()) == ["twice.hip", "twice.hsaco", "twice.s"]  # nothing else is left


def test_the_compilers_own_error_is_the_message(source):
    with pytest.raises(ToolchainError, match=r"twice\.hip: .*undeclared identifier 'FACTOR'"):
        compile_gfx(source, "gfx1151")
    with pytest.raises(ValueError, match=r"must be a \.hip file that exists"):
        compile_gfx(source.with_name("no.hip"), "gfx1151")
