"""moeracle.gfx11.load: kernels of the corpus by name, on tensors, in every order; what they may not do is named."""

from __future__ import annotations

import json
import math
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moeracle.cli import main
from moeracle.gfx11 import Gfx11Kernel, MachineFault, in_order, load
from moeracle.kernels.gfx11 import machine
from moeracle.kernels.gfx11.load import compiled

pytestmark = pytest.mark.usefixtures("toolchain")
CORPUS = Path(__file__).parent / "corpus.hip"
TEMPLATES = (
    "gemv_int4<__half, 4>", "gemv_int4<__hip_bfloat16, 2>", "split_k_swaps<__half>", "split_k_swaps<__hip_bfloat16>",
)  # fmt: skip
ORDERS = (("forward", 0), ("backward", 0), ("shuffled", 1), ("shuffled", 2))


def kernel(name: str) -> Gfx11Kernel:
    return load(CORPUS, name, instantiate=TEMPLATES)


@pytest.fixture(scope="module")
def built(toolchain: None) -> Path:
    return compiled(CORPUS, "gfx1151", TEMPLATES, (), (), None, ())


def line_of(mark: str) -> str:
    lines = CORPUS.read_text().splitlines()
    return f"corpus.hip:{next(i for i, line in enumerate(lines, 1) if line.endswith(f'// LINE {mark}'))}"


def bits(seed: int, count: int) -> torch.Tensor:
    words = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    return torch.from_numpy(words.view(np.float32))


def gemv(name: str, dtype: torch.dtype, waves: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an int4 GEMV's output and fp64's, with groups of 32."""
    g = torch.Generator().manual_seed(3)
    N, K = 8, 2048
    x, codes = torch.randn(K, generator=g).to(dtype), torch.randint(0, 16, (N, K), generator=g)
    scale = (torch.rand(N, K // 32, generator=g) + 0.5).to(dtype)
    packed = (codes.view(N, K // 8, 8) << 4 * torch.arange(8)).sum(-1)
    out = torch.zeros(N, dtype=dtype)
    words = packed.to(torch.uint32).view(torch.int32)
    kernel(name).launch(N, 32 * waves, x, words, scale, out, N, K, 32)
    exact = ((codes - 8).double() * scale.double().repeat_interleave(32, 1)) @ x.double()
    return out, exact


@pytest.mark.parametrize(
    ("name", "dtype", "waves"), [(TEMPLATES[0], torch.float16, 4), (TEMPLATES[1], torch.bfloat16, 2)]
)
def test_a_gemv_is_right_and_has_the_same_bits_in_every_order(name: str, dtype: torch.dtype, waves: int) -> None:
    outs = []
    for way, seed in ORDERS:
        with in_order(way, seed, fill=seed + 1):
            out, exact = gemv(name, dtype, waves)
        outs.append(out)
    assert torch.allclose(outs[0].double(), exact, rtol=2**-7, atol=1e-2)
    assert len(outs) == 4
    assert all(torch.equal(outs[0], out) for out in outs)


def split(name: str, way: str, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a column sum whose K is split over 16 workgroups."""
    g = torch.Generator().manual_seed(5)
    N, K = 8, 4096
    x, w, out = torch.randn(K, generator=g), torch.randn(N, K, generator=g), torch.zeros(N, dtype=dtype)
    with in_order(way, seed):
        if name == "split_k_tickets":
            parts, tickets = torch.zeros(N, 16), torch.zeros(N, dtype=torch.int32)
            kernel(name).launch((N, 16), 32, x, w, parts, tickets, out, N, K)
        else:
            kernel(name).launch((N // 4, 16), 32, x.to(dtype), w.to(dtype), out, N, K)
    return out


def test_the_order_of_workgroups_shows_where_sums_depend_on_it() -> None:
    tickets = [split("split_k_tickets", way, seed, torch.float32) for way, seed in ORDERS]
    assert all(torch.equal(tickets[0], out) for out in tickets[1:])
    for name, dtype in ((TEMPLATES[2], torch.float16), (TEMPLATES[3], torch.bfloat16)):
        swaps = [split(name, way, seed, dtype) for way, seed in ORDERS]
        assert torch.equal(swaps[2], split(name, *ORDERS[2], dtype)), "a shuffle is the same for the same seed"
        assert any(not torch.equal(swaps[0], out) for out in swaps[1:]), name


def test_arithmetic_of_several_instructions() -> None:
    a, b, n = bits(1, 4000), bits(2, 4000), 4000
    quotient, wide, whole = torch.zeros(n), torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)
    run = kernel("arithmetic").launch(16, 256, a, b, quotient, wide, whole, n)
    assert {"V_DIV_SCALE_F32", "V_DIV_FMAS_F32", "V_DIV_FIXUP_F64"} <= set(run.executed)
    assert torch.equal(quotient.nan_to_num(9), (a / b).nan_to_num(9))
    assert torch.equal(wide.nan_to_num(9), (a.double() / b.double() + a.double().abs()).nan_to_num(9))
    x, y = (t.view(torch.int32).tolist() for t in (a, b))
    want = []
    for p, d in zip(x, (v | 1 for v in y), strict=True):
        p64 = (p * 0x123456789ABCDEF + 2**63) % 2**64 - 2**63
        q = abs(p64) // abs(d)
        want.append(((-q if (p64 < 0) != (d < 0) else q) + int(math.fmod(p, d)) + 2**63) % 2**64 - 2**63)
    assert whole.tolist() == want


def test_scratch_calls_dot4_and_a_matrix_tile() -> None:
    g = torch.Generator().manual_seed(7)
    given = torch.randint(-1000, 1000, (64, 32), generator=g, dtype=torch.int32)
    out = torch.zeros_like(given)
    sorting = kernel("scratch_sort")
    assert sorting.code.scratch >= 800
    sorting.launch(1, 64, given, out, 32)
    assert torch.equal(out, given.sort(1).values)
    x, y = torch.ones(32), torch.zeros(32)
    assert kernel("calls").launch(1, 32, x, y).executed["S_SWAPPC_B64"] > 0
    assert y.tolist() == [5.5] * 32
    a, b, d = torch.randn(16, 64, generator=g).half(), torch.randn(16, 64, generator=g).half(), torch.zeros(16, 16)
    kernel("wmma_tile").launch(1, 32, a, b, d, 64)
    assert torch.allclose(d.double(), a.double() @ b.double().T, atol=1e-4)
    codes = torch.randint(0, 16, (2, 1024), generator=g)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    exponents = torch.randint(125, 130, (2, 32), generator=g, dtype=torch.uint8)
    whole = torch.randint(-127, 128, (1024,), generator=g, dtype=torch.int8)
    packed = (codes.view(2, 128, 8) << 4 * torch.arange(8)).sum(-1).to(torch.uint32).view(torch.int32)
    got = torch.zeros(2, 32)
    run = kernel("mxfp4_dot4").launch(2, 32, packed, exponents, whole.view(torch.int32), got, 1024)
    assert run.executed["V_DOT4_I32_IU8"] > 0
    signs = torch.where(codes >= 8, -1.0, 1.0)
    scale = torch.pow(2.0, exponents.double() - 127).repeat_interleave(32, 1)
    exact = (signs * values[codes & 7] * scale * whole).sum(1)
    assert got.double().sum(1).tolist() == exact.tolist()


@pytest.mark.parametrize(
    ("name", "kind", "what", "mark"),
    [
        ("reads_unwritten_lds", MachineFault, "uninitialized LDS: 4 bytes at offset 64", "unwritten"),
        ("races", MachineFault, r"race in LDS: .* wave \d at .* with no barrier between", "race"),
        ("past_the_end", IndexError, r"4 bytes at 0x\w+ lie outside every buffer \(byte 160 of argument 0", "past"),
    ],
)
def test_what_a_gpu_leaves_undefined_is_named_with_its_line(name: str, kind: Any, what: str, mark: str) -> None:
    args = [torch.zeros(40), 40] if mark == "past" else [torch.zeros(64)]
    with pytest.raises(kind, match=f"{what}.*of {name}, at {line_of(mark)}"):
        kernel(name).launch(1, 64, *args)


def test_an_unwritten_register_is_named_and_changes_the_bits() -> None:
    first, second = torch.zeros(64), torch.zeros(64)
    run = kernel("unwritten_register").launch(1, 64, first)
    assert run.unwritten == [f"v77 at {line_of('register')} (v_mov_b32)"]
    assert not first.any(), "a register beyond those that the kernel says it uses holds what was in memory"
    with in_order("forward", fill=1):
        kernel("unwritten_register").launch(1, 64, second)
    assert not torch.equal(first.view(torch.int32), second.view(torch.int32))


def test_truncated_partial_sums_are_far_from_the_sum() -> None:
    x, out = torch.full((1, 320), 0.3), torch.zeros(1, 32)
    kernel("sums_truncated").launch(1, 32, x, out, 320)
    assert abs(float(out[0, 0]) - 6.0) > 0.9  # 3.0 + int(3.0 - an ulp)


def test_names_and_empty_kernels(built: Path) -> None:
    assert load(built, "gemv_int4<__half, 4>").code.name == load(built, "void gemv_int4<__half, 4>(__half const*, "
        "unsigned int const*, __half const*, __half*, int, int, int)").code.name  # fmt: skip
    assert load(built, "gemv_int4<half,4>").code.shown == "gemv_int4<__half, 4>"
    assert load(built, "gemv_int4<__hip_bfloat16>").code.shown == "gemv_int4<__hip_bfloat16, 2>"  # as with a default
    with pytest.raises(ValueError, match=r"'gemv_int4', which several are: .*<__hip_bfloat16, 2>.*<__half, 4>"):
        load(built, "gemv_int4")
    with pytest.raises(ValueError, match=r"kernel: got 'nothing', must be one of .*wmma_tile\("):
        load(built, "nothing")
    with pytest.raises(ValueError, match=r"kernel: got none, must be one of"):
        load(built)
    with pytest.raises(ValueError, match=r"kernel: empty_here is empty in .*no code for gfx1151"):
        load(built, "empty_here")


MISTAKES = [
    ([torch.zeros(8)], "args: got 1, must be the 2 that past_the_end takes \\(float\\*, int\\)"),
    ([torch.zeros(8), 1.5], "argument 1 of past_the_end: got the float 1.5, must be int, 4 bytes"),
    ([torch.zeros(8), 2**40], "argument 1 of past_the_end: got 1099511627776, must fit into int, 4 bytes"),
    ([torch.zeros(8), None], "argument 1 of past_the_end: got None, must be a value"),
    ([torch.zeros(8), b"abc"], "argument 1 of past_the_end: got 3 bytes, must be 4"),
    ([torch.zeros(8), torch.zeros(1)], "argument 1 of past_the_end: got a tensor, must be a value"),
    ([3, 1], "argument 0 of past_the_end: got int, must be a tensor or None \\(float\\*\\)"),
    ([torch.zeros(8).half(), 1], "argument 0 of past_the_end: got float16, must be float32 \\(float\\*\\)"),
    ([torch.zeros(8, device="meta"), 1], "argument 0: on meta, must be on the CPU"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_arguments_that_do_not_fit(args: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel("past_the_end").launch(1, 8, *args)


def test_sizes_that_do_not_fit_and_a_kernel_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    past = kernel("past_the_end")
    for grid, block, shared, message in (
        ((1, 1, 1, 1), 8, 0, "grid: got"), (1, 2048, 0, "block: got"), (1, 8, 1 << 20, "shared: past_the_end needs"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            past.launch(grid, block, torch.zeros(9), 1, shared=shared)
    assert past.launch(0, 8, torch.zeros(9), 1).waves == 0
    monkeypatch.setattr(machine, "LONGEST", 100_000)
    with pytest.raises(ValueError, match=r"does not end; workgroup .* of never_ends, at corpus.hip:"):
        kernel("never_ends").launch(1, 32, torch.zeros(1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"order: got 'sideways'"), in_order("sideways"):
        pass


def changed(path: Path, folder: Path, offset: int, value: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    out = folder / "changed.hsaco"
    out.write_bytes(data)
    return out


def test_files_that_are_no_gfx11_code_object(built: Path, tmp_path: Path) -> None:
    for offset, value, message in (
        (
            48,
            struct.pack("<I", 0x4E),
            "is compiled for gfx1201, must be for gfx11 .*gfx12, gfx10 and CDNA are not covered",
        ),
        (48, struct.pack("<I", 0x3F), "is compiled for gfx90a"),
        (8, b"\x09", "has ABI version 9, must be a code object of version 3, 4, 5 or 6"),
        (18, b"\x3e\x00", "must be an AMD GPU code object"),
        (40, struct.pack("<Q", 1 << 40), "is damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            load(changed(built, tmp_path, offset, value), "calls")
    for content, message in (
        (built.read_bytes()[:2000], "is damaged|no such|must be"), (b"CCOB" + bytes(60), "is a compressed bundle"),
        (b"__CLANG_OFFLOAD_BUNDLE__" + struct.pack("<QQQQ", 1, 0, 0, 4) + b"host", "must hold a part for gfx11"),
    ):  # fmt: skip
        path = tmp_path / "other.hsaco"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(path, "calls")
    with pytest.raises(ValueError, match=r"path: got .*absent"):
        load(tmp_path / "absent.hsaco")


def test_a_bundle_is_opened(built: Path, tmp_path: Path) -> None:
    target, data = b"hipv4-amdgcn-amd-amdhsa--gfx1151", built.read_bytes()
    head = b"__CLANG_OFFLOAD_BUNDLE__" + struct.pack("<QQQQ", 1, 4096, len(data), len(target)) + target
    path = tmp_path / "bundle.co"
    path.write_bytes(head.ljust(4096, b"\0") + data)
    assert load(path, "calls").code.shown == "calls"


STANDARD = """
#include <hip/hip_runtime.h>
#include <algorithm>
#include <cassert>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
template <class T> __global__ void k(T* x, std::uint32_t n) {
  T y;
  memcpy(&y, x + n, sizeof y);
  if constexpr (std::is_same_v<std::remove_cv_t<const T>, float>) y = std::max(y, T(3)) + std::sqrt(y) + std::abs(-y);
  std::swap(x[0], x[1]);
  x[2] = std::min(std::numeric_limits<T>::max(), FLT_MAX), x[3] = std::move(y);
}
"""


def test_standard_headers_are_there(tmp_path: Path) -> None:
    source, x = tmp_path / "standard.hip", torch.tensor([1.0, 2, 0, 0, 4])
    source.write_text(STANDARD)
    load(source, instantiate="k<float>").launch(1, 1, x, 4)
    assert x.tolist() == [2, 1, torch.finfo(torch.float32).max, 4 + 2 + 4, 4]


def test_more_scratch_than_a_lane_has_is_one_line() -> None:
    greedy = Gfx11Kernel(replace(kernel("past_the_end").code, scratch=2 << 20))
    with pytest.raises(ValueError, match=r"kernel: past_the_end uses 2,097,152 bytes of scratch a lane, at most 1,048"):
        greedy.launch(1, 8, torch.zeros(9), 1)


def test_source_mistakes_are_one_line(tmp_path: Path) -> None:
    source = tmp_path / "bad.hip"
    shutil.copy(CORPUS, source)
    for options, message in (
        ({"instantiate": "gemv_int5<float>"}, "use of undeclared identifier 'gemv_int5'"),
        ({"arch": "gfx90a"}, "arch: got 'gfx90a', must be one of"),
        ({"compiler": "no-such-clang"}, "compiler: got 'no-such"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as error:
            load(source, "calls", **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


def test_scan_lists_every_kernel(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "scan.json"
    assert main(["kernels", "scan", str(built), "--json", str(written)]) == 1, "a kernel is empty"
    said = capsys.readouterr().out
    assert "gfx1151, code object version 6" in said
    assert "cannot run: empty: no code for this architecture" in said
    assert "hidden arguments: block_count_x" in said
    found = {k["name"]: k for k in json.loads(written.read_text())["kernels"]}
    assert {"gemv_int4<__half, 4>", "gemv_int4<__hip_bfloat16, 2>", "calls"} <= set(found)
    assert all(not k["missing"] for k in found.values())
    assert found["scratch_sort"]["scratch"] >= 800
    assert main(["kernels", "scan", str(CORPUS)]) == 2
    assert "must be an AMD GPU code object" in capsys.readouterr().err


def test_a_second_launch_runs_in_another_order() -> None:
    g = torch.Generator().manual_seed(6)
    x, w = torch.randn(4096, generator=g).half(), torch.randn(8, 4096, generator=g).half()
    outs = [torch.zeros(8, dtype=torch.float16) for _ in range(3)]
    with in_order("varied"):
        for out in outs:
            kernel(TEMPLATES[2]).launch((2, 16), 32, x, w, out, 8, 4096)
    assert not torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[1], outs[2])
