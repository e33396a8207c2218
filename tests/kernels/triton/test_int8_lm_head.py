"""The int8 lm_head against fp64, by each of its kernels: tails, strides, odd groups, offsets beyond 2^31."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moeracle.kernels.choose import int8_lm_head
from moeracle.kernels.triton.device.int8_tiles import int8_row_kernel
from moeracle.kernels.triton.int8_lm_head import int8_lm_head_portable, int8_lm_head_rows
from moeracle.kernels.triton.interpreter import enable as interpreter
from moeracle.kernels.triton.tiles import Tile


def problem(T, V, K, G, dtype, seed=0):
    """x and codes cut from wider buffers, scales, bias, and the fp64 answer with its magnitude."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(T, K + 8, generator=g).to(dtype)[:, :K]
    codes = torch.randint(-128, 128, (V, K + 16), generator=g, dtype=torch.int8)[:, :K]
    codes[:, 0] = -128
    scale = torch.rand(V, K // G, generator=g) + 0.1 if G else torch.rand(V, generator=g) + 0.1
    bias = torch.randn(V, generator=g).to(dtype)
    w = codes.double() * (scale.double().repeat_interleave(G, 1) if G else scale.double()[:, None])
    y, t = x.double() @ w.T + bias.double(), x.double().abs() @ w.abs().T + bias.double().abs()
    return (x, codes, scale, bias), y, t


# T, V, K, G: one token; fragments with one, two, four groups a product and tails of V and K; tiles; odd groups.
SIZES = [
    (1, 40, 96, 32), (1, 40, 100, 0), (4, 130, 192, 16), (4, 64, 256, 32), (9, 40, 96, 32), (8, 64, 256, 64),
    (16, 70, 320, 32), (3, 128, 384, 128), (11, 100, 200, 0), (5, 65, 512, 512), (17, 40, 96, 48), (70, 20, 64, 16),
    (3, 33, 60, 20), (2, 100, 70, 7), (0, 5, 16, 0),
]  # fmt: skip


@pytest.mark.parametrize("kernel", [int8_lm_head_portable, int8_lm_head, int8_lm_head_rows])
@pytest.mark.parametrize(("T", "V", "K", "G"), SIZES)
def test_against_fp64(device, assert_close, T, V, K, G, kernel):
    arguments, y, t = problem(T, V, K, G, torch.float16 if T % 2 else torch.bfloat16)
    moved = [a.to(device) for a in arguments]
    assert_close(kernel(*moved), y, t)
    without_bias = kernel(*moved[:3])
    assert without_bias.dtype == moved[0].dtype
    assert_close(without_bias, y - arguments[3].double(), t)


def test_a_tile_of_the_callers(device, assert_close):
    arguments, y, t = problem(5, 50, 128, 64, torch.bfloat16)
    assert_close(int8_lm_head(*(a.to(device) for a in arguments), config=Tile(16, 32, 32)), y, t)


def test_one_wrong_code_shows(device, assert_close):
    (x, codes, scale, bias), y, t = problem(4, 64, 128, 32, torch.bfloat16)
    codes = codes.clone()
    codes[37, 77] ^= 64
    with pytest.raises(AssertionError, match="wrong, first at"):
        assert_close(int8_lm_head(x.to(device), codes.to(device), scale.to(device), bias.to(device)), y, t)


def test_integers_are_exact_whatever_the_kernel(device):
    g = torch.Generator().manual_seed(3)
    codes = torch.randint(-128, 128, (80, 256), generator=g, dtype=torch.int8)
    for T in (1, 4, 16, 20):
        x = torch.randint(-8, 9, (T, 256), generator=g).to(torch.bfloat16)
        want = (x.double() @ codes.double().T * 0.5).float().to(torch.bfloat16)
        for scale in (torch.full((80,), 0.5), torch.full((80, 8), 0.5)):
            assert torch.equal(int8_lm_head(x.to(device), codes.to(device), scale.to(device)).cpu(), want)


@pytest.mark.skipif(not interpreter.is_interpreting(), reason="watches the interpreter's loads")
def test_rows_beyond_2_31_bytes(monkeypatch, assert_close):
    from triton.runtime.interpreter import InterpreterBuilder

    V, K, far = 64, 32, 2**26 + 64  # row 32 begins beyond 2^31
    (x, codes, scale, _), _, _ = problem(1, V, K, 16, torch.bfloat16)
    codes, original, seen = codes.contiguous(), InterpreterBuilder.create_masked_load, set()

    def load(self, ptrs, mask, other, *rest):
        if ptrs.get_element_ty().name != "int8":
            return original(self, ptrs, mask, other, *rest)
        offset = ptrs.data.astype(np.int64) - codes.data_ptr()
        v, k = np.where(mask.data, offset // far, 0), np.where(mask.data, offset % far, 0)
        assert ((v >= 0) & (v < V) & (k < K)).all()  # a 32-bit product would have come back from anywhere
        seen.update(v[mask.data].tolist())
        return type(ptrs)(np.where(mask.data, codes.numpy()[v, k], 0).astype(np.int8), ptrs.get_element_ty())

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", load)
    y = torch.empty(1, V, dtype=torch.bfloat16)
    sizes = (1, V, K, *x.stride(), far, 1, *scale.stride())
    constants = {"BIAS": False, "GROUP": 16, "CHUNK": 16, "BLOCK_V": 64, "BLOCK_K": 32}
    int8_row_kernel[(1,)](x, codes, scale, x, y, *sizes, **constants)
    w = codes.double() * scale.double().repeat_interleave(16, 1)
    assert_close(y, x.double() @ w.T, x.double().abs() @ w.abs().T)
    assert seen == set(range(V))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs 7 GB of a GPU's memory")
@pytest.mark.parametrize("G", [0, 32])
def test_more_than_2_31_codes(G):
    V, K = 1_100_032, 2048
    codes = torch.randint(-128, 128, (V, K), dtype=torch.int8, device="cuda")
    scale = torch.rand(V, *((K // G,) if G else ()), device="cuda") * 1e-3 + 1e-3
    for T in (1, 4, 16, 20):
        x = torch.randn(T, K, device="cuda").bfloat16()
        for kernel in (int8_lm_head, int8_lm_head_rows):
            y = kernel(x, codes, scale)
            for rows in (slice(0, 64), slice(1_048_500, 1_048_700), slice(V - 64, V)):
                wide = scale[rows].repeat_interleave(G, 1) if G else scale[rows, None]
                want = x.double() @ (codes[rows].double() * wide.double()).T
                assert ((y[:, rows].double() - want).abs() <= 2.0**-7 * want.abs() + 1e-4).all()


X, C, S = torch.zeros(2, 16, dtype=torch.bfloat16), torch.zeros(4, 16, dtype=torch.int8), torch.ones(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: int8_lm_head(X.float(), C, S), "x: got torch.float32"),
        (lambda: int8_lm_head(X, C.int(), S), "codes: got torch.int32"),
        (lambda: int8_lm_head(X, C[:, :8], S), r"codes: .* must be int8 \[V, 16\]"),
        (lambda: int8_lm_head(X, C, S[:3]), "scale: got"),
        (lambda: int8_lm_head(X, C, torch.ones(4, 3)), "with G dividing K = 16"),
        (lambda: int8_lm_head(X, C, torch.ones(4, 0)), "at least one group"),
        (lambda: int8_lm_head(X, C, S, S[:1]), r"bias: got shape \(1,\), must be \[4\]"),
        (lambda: int8_lm_head(X, C, torch.ones(4, 2), config=Tile(16, 16, 16)), "groups of 8"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
