"""The other backends of the same source: it compiles for each, and a GPU's driver is called as it must be."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moeracle.kernels.hip.runtime import build, driver
from moeracle.kernels.hip.runtime.launch import Long, hip_kernel
from moeracle.kernels.toolchain import compilers as toolchain

HERE = Path(__file__).parent


def compiler_or_skip(find, *args):
    try:
        return find(*args)
    except toolchain.ToolchainError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", ["gfx1100", "gfx1151", "gfx1201"])
def test_every_primitive_compiles_for_amd(arch):
    compiler = compiler_or_skip(toolchain.gfx_compiler, arch)
    if not compiler.links:
        pytest.skip(f"{compiler.name}: has no lld, so it makes no file that a GPU could load")
    code = build.build_gfx(HERE / "primitives.hip", {}, arch)
    assert code.read_bytes()[:4] == b"\x7fELF"
    text = code.with_suffix(".s").read_text()
    for instruction in ("v_dot2_f32_bf16", "v_wmma_f32_16x16x16_bf16", "v_permlanex16_b32", "row_shr:8", "ds_bpermute"):
        assert instruction in text, instruction
    assert ("slc dlc" if arch.startswith("gfx11") else "th:TH_LOAD_NT") in text
    assert "v_pk_fma_f16" in text
    assert "scratch_load" not in text
    body = lambda name: text[text.index(f"\n{name}:") :].partition("s_endpgm")[0]
    assert "fma" in body("fused")
    assert "fma" not in body("unfused")  # a*b+c keeps its two roundings


def test_every_primitive_compiles_for_nvidia():
    compiler_or_skip(toolchain.nvcc)
    assert build.build_cuda(HERE / "primitives.hip").read_bytes()[:4] == b"\x7fELF"


class Library:
    """A driver that remembers what it was asked."""

    def __init__(self, status: int = 0) -> None:
        self.calls: list[tuple[str, tuple]] = []
        self.status = status

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, arguments))
            if name == "cuGetErrorString":
                ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_char_p))[0] = b"invalid argument"
                return 0
            return self.status

        return call


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Return f(vendor, status) → a Library in the place of that vendor's driver."""

    def make(vendor: str, status: int = 0) -> Library:
        library = Library(status)
        properties = SimpleNamespace(gcnArchName="gfx1151:sramecc+:xnack-", major=9, minor=0)
        monkeypatch.setattr(torch.version, "hip", "7.0" if vendor == "amd" else None)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=1234))
        monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
        monkeypatch.setattr(driver, "_open", lambda *names: library)
        made = tmp_path / "code"
        made.write_bytes(b"machine code")
        builds = []
        monkeypatch.setattr(build, "build_gfx", lambda *a: builds.append(a) or made)
        monkeypatch.setattr(build, "build_cuda", lambda *a: builds.append(a) or made)
        driver.driver.cache_clear()
        driver._function.cache_clear()
        library.builds = builds
        return library

    yield make
    driver.driver.cache_clear()
    driver._function.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "arch", "names"),
    [
        ("amd", "gfx1151", ["hipModuleLoadData", "hipModuleGetFunction", "hipModuleLaunchKernel"]),
        ("nvidia", "sm_90", ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel"]),
    ],
)
def test_a_driver_is_asked_to_load_find_and_launch(gpu, vendor, arch, names):
    library = gpu(vendor)
    kernel = hip_kernel(HERE / "primitives.hip", "numbers", FACTOR=3)
    values = [ctypes.c_int32(5), Long(1 << 40), ctypes.c_void_p(77)]
    for _ in range(2):  # the second finds the code loaded
        driver.launch_on_gpu(
            kernel.source, kernel.name, kernel.defines, torch.device("cuda", 0), (7, 2, 1), (64, 1, 1), values, 512
        )
    assert [name for name, _ in library.calls] == names + names[2:]
    assert library.builds == [(kernel.source, {"FACTOR": 3}, arch)]
    launch = library.calls[len(names) - 1][1]
    assert [n.value for n in launch[1:8]] == [7, 2, 1, 64, 1, 1, 512]
    assert launch[8].value == 1234
    assert ctypes.cast(launch[9][1], ctypes.POINTER(ctypes.c_int64))[0] == 1 << 40


def test_a_driver_error_carries_its_text(gpu):
    gpu("nvidia", status=1)
    kernel = hip_kernel(HERE / "primitives.hip", "numbers")
    with pytest.raises(RuntimeError, match="cuModuleLoadData: error 1: invalid argument"):
        driver.launch_on_gpu(
            kernel.source, kernel.name, kernel.defines, torch.device("cuda", 0), (1, 1, 1), (32, 1, 1), [], 0
        )


def test_a_fault_in_a_users_kernel_is_told_by_check(tmp_path):
    (tmp_path / "relu.hip").write_text(
        '#include "moeracle_hip.h"\n'
        'extern "C" __global__ void relu(const bf16* h, bf16* out, int I) {\n'
        "  const int t = blockIdx.x, i = threadIdx.x;\n"
        "  out[t * I + i] = h[t * 2 * I + i];\n"  # also where i >= I
        "}\nMOERACLE_EXPORT(relu)\n"
    )
    (tmp_path / "relu.py").write_text(
        "import torch, moeracle\n"
        "from moeracle.kernels.hip.runtime.launch import hip_kernel\n"
        '@moeracle.kernel("silu_and_mul", device="cpu", dtypes=("bf16",))\n'
        "def relu(h):\n"
        "    I = h.shape[1] // 2\n"
        "    out = torch.empty(h.shape[0], I, dtype=h.dtype)\n"
        f"    hip_kernel({str(tmp_path / 'relu.hip')!r}, 'relu').launch((h.shape[0],), (64,), h.contiguous(), out, I)\n"
        "    return out\n"
    )
    command = [sys.executable, "-m", "moeracle", "check", "relu.py", "--case", "silu_and_mul/T3-I40/bf16/-/-/normal/s0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    told = " ".join(done.stdout.split())
    assert "raised KernelFault: relu.hip:4: out-of-bounds write of 2 bytes at byte 240" in told, done.stdout
    assert "thread (40,0,0) of block (2,0,0) of relu" in told
