"""The corrected interpreter against torch, and the uncorrected one failing, each in a process of its own."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from moeracle.kernels.triton.interpreter import enable as interpreter
from moeracle.kernels.triton.triton_import import tl, triton

interpreted = pytest.mark.skipif(not interpreter.is_interpreting(), reason="kernels run on the GPU here")
# Only whole numbers and no kernel of ours: what an uncorrected interpreter makes of bf16.
UNCORRECTED = """
import torch
from moeracle.kernels.triton.interpreter import enable as interpreter, check
subnormal = torch.arange(1, 128, dtype=torch.int16).view(torch.bfloat16).float()
ties = torch.tensor([0x3F808001, 0x3F818000], dtype=torch.int32).view(torch.float32)
print(interpreter.is_interpreting(), interpreter.is_corrected(), interpreter.bf16_is_correct())
parts = lambda: (check.casts_agree(subnormal), check.casts_agree(ties), check._dot_agrees())
print(*parts())
interpreter.correct()
interpreter.correct()
print(interpreter.is_corrected(), interpreter.bf16_is_correct())
print(*parts())
"""


@pytest.fixture
def run(beside_torch):
    """(code, **environment) -> how it ended in a process that has imported neither triton nor moeracle."""
    return lambda code, **environment: beside_torch(f"import os\nos.environ.update({environment!r})\n{code}")


def test_uncorrected_fails_and_corrected_agrees(run):
    done = run(UNCORRECTED, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True False False", "False False False", "True True", "True True True"]


def test_importing_a_kernel_without_a_gpu_switches_the_correction_on(run):
    code = "import moeracle.kernels.triton.silu_and_mul; "
    code += "from moeracle.kernels.triton.interpreter import enable as i; "
    done = run(code + "print(i.is_interpreting(), i.is_corrected(), i.bf16_is_correct())")
    assert done.stdout == "True True True\n", done.stderr


def test_an_interpreter_the_user_chose_is_corrected_too(run):
    code = "import triton; import moeracle.kernels.triton.silu_and_mul; "
    code += "from moeracle.kernels.triton.interpreter import enable as i; "
    assert run(code + "print(i.is_corrected())", TRITON_INTERPRET="true").stdout == "True\n"


def test_triton_imported_too_early_is_an_error(run):
    done = run("import triton; import moeracle.kernels.triton.silu_and_mul")
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1].startswith("RuntimeError: triton: was imported without TRITON_INTERPRET=1")
    )


def test_zero_means_compile_only(run):
    code = "import moeracle.kernels.triton.silu_and_mul as s; print(type(s.silu_and_mul_kernel).__name__)"
    assert run(code, TRITON_INTERPRET="0").stdout == "JITFunction\n"


def test_the_registry_imports_neither_triton_nor_kernels(run):
    code = (
        "import sys; from moeracle.kernels import registry; print('triton' in sys.modules, len(registry.REGISTRY) > 9)"
    )
    assert run(code).stdout == "False True\n"


@interpreted
def test_every_bf16_widens_and_comes_back():
    from moeracle.kernels.triton.interpreter import check as interpreter_check

    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    assert interpreter_check.casts_agree(every.to(torch.float32))


@interpreted
def test_fp32_narrows_as_in_torch():
    from moeracle.kernels.triton.interpreter import check as interpreter_check

    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = any_bits & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    beside = ties + rng.choice(np.array([1, 0xFFFFFFFF], np.uint32), ties.size)
    subnormal = any_bits & np.uint32(0x807FFFFF)
    for bits in (any_bits, ties, beside, subnormal):
        assert interpreter_check.casts_agree(torch.from_numpy(bits.view(np.int32)).view(torch.float32))


@triton.jit
def elementwise_kernel(a_ptr, b_ptr, c_ptr, out_ptr, flag_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b, c = tl.load(a_ptr + i), tl.load(b_ptr + i), tl.load(c_ptr + i)
    tl.store(out_ptr + i, a + b)
    tl.store(out_ptr + BLOCK + i, a - b)
    tl.store(out_ptr + 2 * BLOCK + i, a * b)
    tl.store(out_ptr + 3 * BLOCK + i, a / b)
    tl.store(out_ptr + 4 * BLOCK + i, tl.fma(a, b, c))
    tl.store(out_ptr + 5 * BLOCK + i, tl.minimum(a, b))
    tl.store(out_ptr + 6 * BLOCK + i, tl.abs(a) * 0.5)
    tl.store(flag_ptr + i, a < b)
    tl.store(flag_ptr + BLOCK + i, a == b)
    tl.store(flag_ptr + 2 * BLOCK + i, a >= b)


def nearest_bf16(exact: Fraction) -> float:
    """Round to nearest even by comparing the three bf16 around a guess."""
    guess = torch.tensor(float(exact)).to(torch.bfloat16).view(torch.int16)
    around = (guess + torch.tensor([-1, 0, 1], dtype=torch.int16)).view(torch.bfloat16)
    odd = around.view(torch.int16) & 1
    return min(zip(around.tolist(), odd.tolist(), strict=True), key=lambda v: (abs(Fraction(v[0]) - exact), v[1]))[0]


@interpreted
def test_bf16_arithmetic_is_rounded_once():
    n = 4096
    bits = np.random.default_rng(1).integers(0x3000, 0x5000, (3, n), dtype=np.int64)
    signs = np.random.default_rng(2).integers(0, 2, (3, n)) << 15
    a, b, c = torch.from_numpy((bits | signs).astype(np.uint16).view(np.int16)).view(torch.bfloat16)
    b[:100] = a[:100]
    out, flags = torch.empty(7, n, dtype=torch.bfloat16), torch.empty(3, n, dtype=torch.int8)
    elementwise_kernel[(1,)](a, b, c, out, flags, n)
    fused = [nearest_bf16(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in torch.stack([a, b, c], 1).tolist()]
    want = [a + b, a - b, a * b, a / b, torch.tensor(fused).to(torch.bfloat16), torch.minimum(a, b), a.abs() * 0.5]
    for row, (got, expected) in enumerate(zip(out, want, strict=True)):
        assert torch.equal(got, expected), row
    assert torch.equal(flags.bool(), torch.stack([a < b, a == b, a >= b]))


@interpreted
def test_fma_breaks_no_tie_that_is_none():
    from moeracle.kernels.triton.interpreter.bf16 import fma_bf16, fp32_to_bf16

    # 1.5 * (1 + 2**-7) = 1.51171875 lies halfway between two bf16; 2**-100 decides upwards, -2**-100 downwards.
    bits = lambda *values: fp32_to_bf16(np.array(values, np.float32))
    x, y, tiny = bits(1.5, 1.5), bits(1 + 2.0**-7, 1 + 2.0**-7), bits(2.0**-100, -(2.0**-100))
    assert fma_bf16(x, y, tiny).tolist() == bits(1.515625, 1.5078125).tolist()


@triton.jit
def reduce_kernel(x_ptr, out_ptr, at_ptr, M: tl.constexpr, N: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :])
    m = tl.arange(0, M)
    tl.store(out_ptr + m, tl.sum(x, axis=1))
    tl.store(out_ptr + M + m, tl.max(x, axis=1))
    tl.store(out_ptr + 2 * M + m, tl.min(x, axis=1))
    tl.store(at_ptr + m, tl.argmax(x, axis=1))
    tl.store(x_ptr + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], tl.cumsum(x, axis=1))


@interpreted
def test_bf16_reductions():
    x = torch.randint(-6, 7, (8, 16), generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    before, out, at = x.clone(), torch.empty(3, 8, dtype=torch.bfloat16), torch.empty(8, dtype=torch.int32)
    reduce_kernel[(1,)](x, out, at, 8, 16)
    assert torch.equal(out, torch.stack([before.sum(1), before.amax(1), before.amin(1)]))
    assert torch.equal(before.gather(1, at.long()[:, None])[:, 0], before.amax(1))
    assert torch.equal(x, before.double().cumsum(1).to(torch.bfloat16))


@triton.jit
def gemm_kernel(a_ptr, b_ptr, c_ptr, K, BLOCK: tl.constexpr):
    i, k = tl.arange(0, 16), tl.arange(0, BLOCK)
    acc = tl.zeros((16, 16), dtype=tl.float32)
    for k0 in range(0, K, BLOCK):  # a bound known at run time only: triton 3.6 with numpy 2.4 fails on it uncorrected
        a = tl.load(a_ptr + i[:, None] * K + k0 + k[None, :])
        acc = tl.dot(a, tl.load(b_ptr + (k0 + k)[:, None] * 16 + i[None, :]), acc)
    tl.store(c_ptr + i[:, None] * 16 + i[None, :], acc)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gemm(dtype):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(16, 512, generator=g).to(dtype), torch.randn(512, 16, generator=g).to(dtype)
    c = torch.empty(16, 16)
    gemm_kernel[(1,)](a, b, c, 512, 64)
    assert (c - a.double() @ b.double()).abs().max() < 1e-6 * (a.double().abs() @ b.double().abs()).max()


@triton.jit
def atomic_kernel(x_ptr):
    tl.atomic_add(x_ptr + tl.arange(0, 16), tl.full((16,), 1.0, tl.bfloat16))


@interpreted
def test_what_has_no_correction_is_refused():
    with pytest.raises(Exception, match="an atomic of bf16"):
        atomic_kernel[(1,)](torch.zeros(16, dtype=torch.bfloat16))


@interpreted
def test_what_is_remembered_is_what_triton_finds():
    from triton.runtime import interpreter as ti

    blocks = [tl.block_type(tl.bfloat16, [16, 32]), tl.block_type(tl.int8, [16, 32]), tl.block_type(tl.int8, [32, 16])]
    for _ in range(2):  # found, and remembered
        again = [tl.block_type(b.element_ty, b.shape) for b in blocks]
        assert again == blocks
        assert len(set(map(str, again))) == len(blocks)
        assert [[a == b for b in blocks] for a in again] == [
            [True, False, False],
            [False, True, False],
            [False, False, True],
        ]
        assert [(b.numel, [int(n) for n in b.shape], b.element_ty) for b in again] == [
            (512, [16, 32], tl.bfloat16),
            (512, [16, 32], tl.int8),
            (512, [32, 16], tl.int8),
        ]
        tensors = [tl.tensor(handle, block) for handle, block in enumerate([*again, tl.int8])]
        assert [t.handle for t in tensors] == [0, 1, 2, 3]
        assert [t.type for t in tensors] == [*again, tl.int8]
        assert [t.dtype for t in tensors] == [tl.bfloat16, tl.int8, tl.int8, tl.int8]
        assert [[n.value for n in t.shape] for t in tensors] == [[16, 32], [16, 32], [32, 16], []]
        assert [t.numel.value for t in tensors] == [512, 512, 512, 1]
        of_pointers = tl.block_type(tl.pointer_type(tl.int8), [16])
        dtypes = [tl.bfloat16, tl.int8, tl.float32, tl.pointer_type(tl.float32), of_pointers, *blocks]
        want = [np.uint16, np.int8, np.float32, np.uint64, np.uint64, np.uint16, np.int8, np.int8]
        assert [ti._get_np_dtype(dtype) for dtype in dtypes] == want
        for shape, kind in (([3], ValueError), ([2.0], TypeError), ([], TypeError)):
            with pytest.raises(kind):
                tl.block_type(tl.int8, shape)
        unwrapped = tl.core._unwrap_if_constexpr
        assert [unwrapped(o) for o in (3, "a", None, tl.int8)] == [3, "a", None, tl.int8]
        assert list(map(type, unwrapped([tl.constexpr(4), tl.constexpr(2.0)]))) == [int, float]
