"""Offsets beyond 2^31: the kernels run on strides of a tensor that would not fit in memory.

Loads of w are redirected: an address is turned back into (e, n, j), which a 32-bit product anywhere would have garbled.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moeracle.kernels.triton.decode_gemm import decode_gemm_kernel
from moeracle.kernels.triton.dequantize_int4 import dequantize_kernel
from moeracle.kernels.triton.device.int4_tile import Form, tl
from moeracle.kernels.triton.grouped_gemm import block_table, grouped_gemm_kernel
from moeracle.kernels.triton.interpreter import enable as interpreter
from moeracle.kernels.triton.padded_gemm import padded_gemm_kernel
from moeracle.kernels.triton.silu_gemm import silu_gemm_kernel

pytestmark = pytest.mark.skipif(not interpreter.is_interpreting(), reason="watches the interpreter's loads")

E, N, K, G = 6, 40, 64, 32
STRIDE_E, STRIDE_N = 2**29 + 2**25, 2**26 + 8  # in words: expert 5 begins beyond 2**31, so does row 32 of expert 0
STRIDES = (STRIDE_E, STRIDE_N, 1)
TILE = {"BLOCK_N": 16, "BLOCK_K": 32}


class FarMemory:
    """A masked load that finds words of w at addresses far beyond w's end."""

    def __init__(self, w: torch.Tensor, original):
        self.w, self.original, self.seen = w, original, set()

    def __call__(self, builder, ptrs, mask, other, *rest):
        offset = ptrs.data.astype(np.int64) - self.w.data_ptr()
        far = E * STRIDE_E * 4 + N * STRIDE_N * 4
        if ptrs.get_element_ty().name != "int32" or not ((-far < offset) & (offset < far)).all() or ptrs.data.ndim != 2:
            return self.original(builder, ptrs, mask, other, *rest)
        at = [
            tuple(self.words()[o] if m else (0, 0, 0)) for o, m in zip((offset // 4).flat, mask.data.flat, strict=True)
        ]
        self.seen |= set(at)
        e, n, j = (np.array(part).reshape(offset.shape) for part in zip(*at, strict=True))
        return type(ptrs)(np.where(mask.data, self.w.numpy()[e, n, j], 0).astype(np.int32), ptrs.get_element_ty())

    def words(self):
        return self.__dict__.setdefault(
            "_words",
            {e * STRIDE_E + n * STRIDE_N + j: (e, n, j) for e in range(E) for n in range(N) for j in range(K // 8)},
        )


@pytest.fixture
def far(make_weight, monkeypatch):
    """Return f() → (x, w, W fp64); while the test runs, w lies at its far strides."""
    from triton.runtime.interpreter import InterpreterBuilder

    w, W = make_weight(E, N, K, G=G)
    memory = FarMemory(w.packed, InterpreterBuilder.create_masked_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", lambda *args, **kw: memory(*args, **kw))
    x = torch.randn(E, K, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    yield x, w, W
    assert memory.seen == set(memory.words().values())  # every word was read, and through the redirection


def pointers(w):
    return w.packed, w.scale, w.packed


def far_form(w):
    return Form(*STRIDES, *w.scale.stride(), 0, 0, 0, GROUP=tl.constexpr(G), ZERO=tl.constexpr(0))


def expect(x, W):
    return torch.einsum("ek,enk->en", x.double(), W), torch.einsum("ek,enk->en", x.double().abs(), W.abs())


def test_grouped(far, assert_close):
    x, w, W = far
    y, table = torch.empty(E, N, dtype=torch.bfloat16), block_table(torch.arange(E + 1), E, 16)
    grouped_gemm_kernel[(len(table) * 3,)](x, pointers(w), table, y, N, K, *x.stride(), far_form(w), **TILE, BLOCK_M=16)
    assert_close(y, *expect(x, W))


def test_padded(far, assert_close):
    x, w, W = far
    y, ids, end = torch.zeros(E, N, dtype=torch.bfloat16), torch.arange(E).int(), torch.tensor([E]).int()
    sizes = (E, E, 1, 1, N, K)
    padded_gemm_kernel[(E * 3,)](
        x, pointers(w), ids, ids, end, end, y, *sizes, *x.stride(), WEIGHTED=False, form=far_form(w), **TILE, BLOCK_M=16
    )
    assert_close(y, *expect(x, W))


def test_gemm1_with_its_epilogue(far):
    x, w, W = far
    a, ids, end = torch.zeros(E, N // 2, dtype=torch.bfloat16), torch.arange(E).int(), torch.tensor([E]).int()
    sizes = (E, E, 1, 1, N // 2, K)
    silu_gemm_kernel[(E * 2,)](x, pointers(w), ids, ids, end, a, *sizes, *x.stride(), far_form(w), **TILE, BLOCK_M=16)
    h = expect(x, W)[0].float().bfloat16().double()
    want = torch.nn.functional.silu(h[:, : N // 2]) * h[:, N // 2 :]
    torch.testing.assert_close(a.double(), want, rtol=2**-6, atol=1e-3)  # another expert's, or row's, are far off


def test_decode(far, assert_close):
    x, w, W = far
    y, ids = torch.empty(E, N, dtype=torch.bfloat16), torch.arange(E).int()
    decode_gemm_kernel[(E * 3,)](x, pointers(w), ids, y, 1, N, K, *x.stride(), far_form(w), **TILE)
    assert_close(y, *expect(x, W))


def test_dequantize(far):
    _, w, W = far
    out = torch.empty(E, N, K, dtype=torch.bfloat16)
    dequantize_kernel[(E * 3 * 2,)](pointers(w), out, N, K, far_form(w), **TILE)
    assert torch.equal(out.double(), W)
