"""A self-test of bf16 in Triton: the same operations by a kernel and by torch, compared bit for bit.

`interpreter.bf16_is_correct()` runs it before a CPU run of bf16 kernels is believed. It imports triton as it finds it,
so that it can also say that an uncorrected interpreter is wrong.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 2048
# fp32 bit patterns: zeros, one, ties to even both ways, just off a tie, overflow to inf, subnormals of bf16, inf, NaN.
SPECIAL: tuple[int, ...] = (
    0x0,
    0x80000000,
    0x3F800000,
    0x3F808000,
    0x3F818000,
    0x3F808001,
    0x3F807FFF,
    0x7F7F8000,
    0x7F7F7FFF,
    0x1,
)
SPECIAL += (0x8000, 0x8001, 0x18000, 0x7FFFFF, 0x807F8000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xC0490FDB)


@triton.jit
def cast_kernel(x_ptr, narrow_ptr, wide_ptr, n, BLOCK: tl.constexpr):
    """narrow = bf16(x fp32); wide = fp32(narrow)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    narrow = tl.load(x_ptr + i, mask=i < n, other=0.0).to(tl.bfloat16)
    tl.store(narrow_ptr + i, narrow, mask=i < n)
    tl.store(wide_ptr + i, narrow.to(tl.float32), mask=i < n)


@triton.jit
def arithmetic_kernel(a_ptr, b_ptr, out_ptr, sum_ptr, BLOCK: tl.constexpr):
    """out[0..5] = a+b, a-b, a*b, max(a,b), a if a<b else b, -a in bf16; sum = sum(a), max(a)."""
    i = tl.arange(0, BLOCK)
    a = tl.load(a_ptr + i)
    b = tl.load(b_ptr + i)
    tl.store(out_ptr + i, a + b)
    tl.store(out_ptr + BLOCK + i, a - b)
    tl.store(out_ptr + 2 * BLOCK + i, a * b)
    tl.store(out_ptr + 3 * BLOCK + i, tl.maximum(a, b))
    tl.store(out_ptr + 4 * BLOCK + i, tl.where(a < b, a, b))
    tl.store(out_ptr + 5 * BLOCK + i, -a)
    tl.store(sum_ptr, tl.sum(a, axis=0).to(tl.float32))
    tl.store(sum_ptr + 1, tl.max(a, axis=0).to(tl.float32))


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """c [M,N] fp32 = a [M,K] @ b [K,N], one tile."""
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    tl.store(c_ptr + m[:, None] * N + n[None, :], tl.dot(a, b))


def casts_agree(x: torch.Tensor) -> bool:
    """Say whether x fp32 → bf16 → fp32 has torch's bits; any NaN equals any NaN."""
    narrow, wide = torch.empty(x.numel(), dtype=torch.bfloat16), torch.empty(x.numel(), dtype=torch.float32)
    cast_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, narrow, wide, x.numel(), BLOCK)
    return same_bits(narrow, x.to(torch.bfloat16)) and same_bits(wide, x.to(torch.bfloat16).to(torch.float32))


def same_bits(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Say whether two tensors hold the same bits, any NaN being equal to any NaN."""
    integer = torch.int16 if got.element_size() == 2 else torch.int32
    return bool(((got.view(integer) == want.view(integer)) | (got.isnan() & want.isnan())).all())


def _arithmetic_agrees(a: torch.Tensor, b: torch.Tensor) -> bool:
    out, sums = torch.empty(6, a.numel(), dtype=torch.bfloat16), torch.empty(2)
    arithmetic_kernel[(1,)](a, b, out, sums, a.numel())
    want = torch.stack([a + b, a - b, a * b, torch.maximum(a, b), torch.minimum(a, b), -a])
    # The integers sum to less than 2**8, so that every order and every rounding gives the same sum.
    return same_bits(out, want) and sums.tolist() == [a.double().sum().item(), a.double().max().item()]


def _dot_agrees() -> bool:
    a = ((torch.arange(16 * 64) * 37 % 255) - 127).to(torch.bfloat16).reshape(16, 64)
    b = ((torch.arange(64 * 16) * 101 % 17) - 8).to(torch.bfloat16).reshape(64, 16)
    c = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, c, 16, 16, 64)
    return torch.equal(c, (a.double() @ b.double()).float())


def bf16_agrees_with_torch() -> bool:
    """Run all three comparisons; an exception inside the interpreter counts as disagreement."""
    special = torch.tensor(SPECIAL, dtype=torch.int64).to(torch.int32).view(torch.float32)
    small = ((torch.arange(64) * 29 % 13) * 2 - 11).to(torch.bfloat16)  # no zero: before 3.8 -x is 0 - x, on a GPU too
    try:
        return casts_agree(special) and _arithmetic_agrees(small, small.flip(0) * 3) and _dot_agrees()
    except Exception:  # whatever an uncorrected interpreter trips over
        return False
