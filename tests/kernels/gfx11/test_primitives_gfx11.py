"""Real gfx11 encodings: each primitive compiled for gfx11, its machine code run, held against the CPU emulation's bits.

The emulation's primitives are held against numpy by tests/kernels/hip; here clang chooses the instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from moeracle.kernels.gfx11 import core
from moeracle.kernels.hip.runtime.launch import Long, hip_kernel
from moeracle.kernels.hip.runtime.machine import machine_code

SOURCE = Path(__file__).parent.parent / "hip" / "primitives.hip"
ARCHS = ("gfx1151", "gfx1100")
pytestmark = pytest.mark.usefixtures("toolchain")


def both(
    name: str, grid: Sequence[int], block: Sequence[int], args: Sequence[object], arch: str, shared: int = 0
) -> list[str]:
    """Launch a primitive in emulation and as machine code; require equal bits; return which instructions ran."""
    one = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    two = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    kernel = hip_kernel(SOURCE, name)
    kernel.launch(grid, block, *one, shared=shared)
    with machine_code(arch) as runs:
        kernel.launch(grid, block, *two, shared=shared)
    for a, b in zip(one, two, strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), f"{name}: {(a != b).sum()} of {a.numel()} differ"
    return sorted(runs[0].executed)


def words(seed: int, count: int) -> torch.Tensor:
    bits = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    return torch.from_numpy(bits.view(np.int32))


def finite(seed: int, count: int) -> torch.Tensor:
    """Return the bits of fp32 of every exponent, without NaN, whose payloads are not modelled."""
    bits = words(seed, count)
    return torch.where(torch.isnan(bits.view(torch.float32)), torch.tensor(1), bits).int()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["bf16_quiet", "bf16_finite", "bf16_truncate", "fp16_narrow"])
def test_narrowing(name: str, arch: str) -> None:
    x = torch.cat([finite(1, 1000), torch.tensor([0x7F800000, -8388608, 0, -(2**31), 0x7F7FFFFF]).int()])
    both(name, (4,), (256,), [x, torch.zeros(len(x), dtype=torch.int16), len(x)], arch)


@pytest.mark.parametrize("name", ["bf16_widen", "fp16_widen"])
def test_widening_every_value(name: str) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    nan = torch.isnan(x.view(torch.bfloat16 if name.startswith("bf") else torch.float16).float())
    x[nan] = 1
    both(name, (256,), (256,), [x, torch.zeros(len(x), dtype=torch.int32), len(x)], "gfx1151")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["fused", "unfused", "dot_bf16", "dot_fp16", "fp16_pair_sub", "fp16_pair_fma"])
def test_arithmetic(name: str, arch: str) -> None:
    keep = 0x3FFF3FFF  # small exponents for pairs: no infinities, so no NaN
    a, b, c = finite(2, 1024), finite(3, 1024), finite(4, 1024)
    if "dot" in name or "pair" in name:
        a, b, c = a & keep, b & keep, c & keep
    both(name, (4,), (256,), [a, b, c, torch.zeros(1024, dtype=torch.int32), 1024], arch)


@pytest.mark.parametrize("arch", ARCHS)
def test_lanes(arch: str) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(5))
    executed = both("lanes", (1,), (64,), [x.view(torch.int32), torch.zeros(18 * 64, dtype=torch.int32), 5], arch)
    assert {"V_PERMLANEX16_B32", "DS_BPERMUTE_B32"} <= set(executed)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["wmma_bf16", "wmma_fp16"])
def test_matrix_fragments(name: str, arch: str) -> None:
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float16
    g = torch.Generator().manual_seed(6)
    a, b = (torch.randn(256, generator=g).to(dtype).view(torch.int16) for _ in range(2))
    c = torch.randn(256, generator=g).view(torch.int32)
    executed = both(name, (1,), (32,), [a, b, c, torch.zeros(256, dtype=torch.int32)], arch)
    assert f"V_WMMA_F32_16X16X16_{'BF16' if dtype is torch.bfloat16 else 'F16'}" in executed


def test_wide_and_places_and_numbers() -> None:
    both("wide", (1,), (64,), [words(7, 448), torch.zeros(448, dtype=torch.int32)], "gfx1151")
    both("places", (2, 3, 2), (8, 4, 2), [torch.zeros(12 * 64 * 6, dtype=torch.int32), 6], "gfx1151", shared=256)
    both("numbers", (1,), (32,), [-7, 2**31 + 5, 1.5, Long(9 << 32), torch.zeros(4, dtype=torch.int32)], "gfx1151")


def test_atomics() -> None:
    args = [torch.zeros(1, dtype=torch.int32) for _ in range(5)]
    x = torch.arange(192, dtype=torch.float32)  # whole numbers: their sum does not depend on the order
    args[1] = args[1].float()
    both("atomics", (3,), (64,), [*args, x], "gfx1151")


def test_a_wrong_lane_pattern_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "PLANTED", ("-DMOERACLE_PLANT", "-O0"))  # a DPP shift turned the other way
    with pytest.raises(AssertionError, match="lanes: "):
        test_lanes("gfx1151")
