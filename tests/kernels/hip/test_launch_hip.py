"""Building and starting: what is refused and in which words, what is built anew and what is found again."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from moeracle.kernels.hip.runtime import build
from moeracle.kernels.hip.runtime.launch import Long, hip_kernel
from moeracle.kernels.toolchain import compilers as toolchain

HERE = Path(__file__).parent
OK = """#include "moeracle_hip.h"
extern "C" __global__ void twice(const float* in, float* out) { out[threadIdx.x] = FACTOR * in[threadIdx.x]; }
MOERACLE_EXPORT(twice)
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return f(text) → a new .hip file, with a cache of this test's own."""
    monkeypatch.setenv("MOERACLE_CACHE", str(tmp_path / "cache"))

    def write(text: str = OK) -> Path:
        path = tmp_path / "twice.hip"
        path.write_text(text)
        return path

    return write


def twice(path: Path, factor: object) -> float:
    out = torch.zeros(32)
    hip_kernel(path, "twice", FACTOR=factor).launch((1,), (32,), torch.full((32,), 3.0), out)
    return out[31].item()


def test_macros_and_source_name_a_build(written, tmp_path):
    path = written()
    assert twice(path, 2) == 6
    assert twice(path, 5) == 15
    first = build.build_host(path, {"FACTOR": 2})
    stamp = first.stat().st_mtime_ns
    assert build.build_host(path, {"FACTOR": 2}).stat().st_mtime_ns == stamp  # found, not built again
    assert build.build_host(written(OK.replace("FACTOR *", "1 + FACTOR *")), {"FACTOR": 2}) != first
    assert not list((tmp_path / "cache").rglob(".*.so.*"))  # nothing temporary is left


def test_a_header_beside_the_source_belongs_to_the_digest(written):
    path = written(OK.replace("FACTOR *", "factor() *").replace("extern", '#include "factor.h"\nextern', 1))
    header = path.with_name("factor.h")
    header.write_text("MOERACLE_FN float factor() { return 2; }")
    first = build.build_host(path)
    header.write_text("MOERACLE_FN float factor() { return 3; }")
    assert build.build_host(path) != first


def test_two_processes_may_build_at_once(written, tmp_path):
    path = written()
    code = f"from moeracle.kernels.hip.runtime import build; print(build.build_host({str(path)!r}, {{'FACTOR': 7}}))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = {process.communicate()[0].strip() for process in running}
    assert len(made) == 1
    ctypes.CDLL(made.pop())


def test_no_compiler_says_what_to_install(written, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(toolchain, "_zig", lambda tool: None)
    with pytest.raises(toolchain.ToolchainError, match=r"no C\+\+ compiler found .* pip install"):
        build.build_host(written())
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setattr(toolchain.sys, "path", [])
    if not Path("/usr/local/cuda/bin/nvcc").is_file():
        with pytest.raises(toolchain.ToolchainError, match="no nvcc found: pip install"):
            build.build_cuda(written())


def test_a_compiler_error_is_its_first_line(written):
    with pytest.raises(toolchain.ToolchainError, match=r"^\S+: twice\.hip:2:\d+: error: .*FACTOR"):
        build.build_host(written())
    with pytest.raises(toolchain.ToolchainError, match="uninitialized"):
        build.build_host(written(OK.replace("FACTOR", "x").replace("{ out", "{ float x; out")))


def test_an_unknown_source_or_kernel_is_named(written):
    with pytest.raises(ValueError, match=r"source: got 'int4_gmv\.hip', must be a .hip file; .* holds .*int4_gemv"):
        hip_kernel("int4_gmv.hip", "x")
    with pytest.raises(ValueError, match=r"kernel: got 'twyce', must be one of twice; did you mean 'twice'"):
        hip_kernel(written(), "twyce", FACTOR=1).signature()


@pytest.mark.parametrize(
    ("grid", "block", "options", "message"),
    [
        ((1,), (33,), {}, r"block: got \(33, 1, 1\), must hold a multiple of 32 threads, 1024 at most"),
        ((1,), (32, 33), {}, r"block: got \(32, 33, 1\), must hold"),
        ((1,), (), {}, r"block: got \(\), must be one to three sizes"),
        ((-1,), (32,), {}, r"grid: got \(-1,\), must be one to three sizes, none negative"),
        ((1,), (32,), {"shared": 65537}, r"shared: got 65537 bytes, must be 0..65536"),
    ],
)
def test_a_bad_size_is_refused(primitive, grid, block, options, message):
    with pytest.raises(ValueError, match=message):
        primitive("rcp").launch(grid, block, torch.ones(32), torch.zeros(32), 32, **options)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(32), torch.zeros(32)), r"rcp: got 2 arguments, must be 3 \(rwi\)"),
        ((torch.ones(32), 5, 32), "rcp: argument 1 is int, the kernel has 'w'"),
        ((torch.ones(32), torch.zeros(32), 32.0), "rcp: argument 2 is float, the kernel has 'i'"),
        ((torch.ones(32), torch.zeros(32), "32"), "argument 2: got str, must be a tensor, int, float or Long"),
        ((torch.ones(32), torch.zeros(32), 2**32), "argument 2: got 4294967296, must fit in 32 bits"),
        ((torch.ones(32), torch.zeros(32, device="meta"), 32), r"tensors: on \['cpu', 'meta'\], must be on one device"),
        ((1, 2, 3), "tensors: on no device, must be on one device"),
    ],
)
def test_a_bad_argument_is_refused(primitive, args, message):
    with pytest.raises(ValueError, match=message):
        primitive("rcp").launch((1,), (32,), *args)


def test_every_kind_of_number_arrives(primitive):
    kernel = primitive("numbers")
    assert kernel.signature() == "iuflw"
    out = torch.zeros(4)
    kernel.launch((1,), (32,), -7, 2**31 + 256, 0.1, Long(-5 << 32), out)
    assert out.tolist() == [-7, 2.0**31 + 256, torch.tensor(0.1).item(), -5]


def test_memory_given_both_ways_may_be_written(primitive):
    x = torch.full((32,), 4.0)
    primitive("rcp").launch((1,), (256,), x, x, 32)
    assert (x == 0.25).all()


def test_an_empty_grid_launches_nothing(primitive):
    assert primitive("rcp").launch((0,), (32,), torch.ones(32), torch.zeros(32), 32) is None


def test_another_compiler_gives_the_same_bits(primitive, monkeypatch):
    pytest.importorskip("ziglang", reason="moeracle[hip] is not installed")
    x = torch.randn(3000, generator=torch.Generator().manual_seed(1)) * 9
    out = [torch.zeros(3000) for _ in range(2)]
    primitive("silu").launch((12,), (256,), x, out[0], 3000)
    monkeypatch.setenv("MOERACLE_CXX", f"{sys.executable} -m ziglang c++")
    hip_kernel(HERE / "primitives.hip", "silu", OTHER=1).launch((12,), (256,), x, out[1], 3000)
    assert torch.equal(*out)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    for name in ("MOERACLE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert build.cache_folder() == Path.home() / ".cache/moeracle/hip"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "moeracle/hip"
    monkeypatch.setenv("MOERACLE_CACHE", os.fspath(tmp_path / "own"))
    assert build.cache_folder() == tmp_path / "own/hip"


def test_threads_of_python_may_launch_at_once(primitive):
    kernel, x = primitive("silu"), torch.randn(4096, generator=torch.Generator().manual_seed(2))
    kernel.signature()

    def run(_: int) -> torch.Tensor:
        out = torch.zeros_like(x)
        kernel.launch((16,), (256,), x, out, x.numel())
        return out

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(run, range(16))
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, torch.zeros_like(x))
