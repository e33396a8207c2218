"""WMMA by itself: layouts, signs, halves, saturation; on whole numbers, so that no order of a sum matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from support.gfx11 import State, encode, execute

pytestmark = pytest.mark.usefixtures("toolchain")
Array = np.ndarray[Any, Any]
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


def words_of(matrix: Array, dtype: torch.dtype) -> Array:
    """Return rows [16, 16] of a 16-bit format as the eight registers of A or B: row l % 16 in lane l."""
    half = torch.from_numpy(matrix).to(dtype).view(torch.int16).numpy().view(np.uint16)
    pairs = half.reshape(16, 8, 2).astype(np.uint32)
    return np.tile((pairs[:, :, 0] | pairs[:, :, 1] << 16).T, 2)


def placed(registers: Array) -> Array:
    """Return D [16, 16] of eight registers: register r of lane l is row 2 r + l / 16, column l % 16."""
    return registers.reshape(8, 2, 16).reshape(16, 16)


def small(seed: int, low: int, high: int) -> Array:
    return np.random.default_rng(seed).integers(low, high, (16, 16)).astype(np.float64)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize(
    ("neg", "neg_hi"), [(0, 0), (1, 1), (2, 2), (4, 0), (0, 4), (4, 4), (3, 0)]
)  # A, B, C; the upper half's bit of C: its magnitude
def test_fp32_results_and_signs(kind: str, neg: int, neg_hi: int) -> None:
    a, b, c = small(1, -4, 5), small(2, -4, 5), small(3, -100, 100)
    state = State()
    state.v[8:16], state.v[16:24] = words_of(a, DTYPES[kind]), words_of(b, DTYPES[kind])
    state.v[24:32] = c.reshape(8, 32).astype(np.float32).view(np.uint32)
    execute(
        encode("VOP3P", f"V_WMMA_F32_16X16X16_{kind}", vdst=296, src0=264, src1=272, src2=280, neg=neg, neg_hi=neg_hi),
        state,
    )
    even = np.arange(16) % 2 == 0
    for i, x in enumerate((a, b)):
        x[:, even] *= -1 if neg >> i & 1 else 1
        x[:, ~even] *= -1 if neg_hi >> i & 1 else 1
    c = np.abs(c) if neg_hi & 4 else c
    want = a @ b.T + (-c if neg & 4 else c)
    assert placed(state.v[40:48].view(np.float32)).tolist() == want.tolist()


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("upper", [0, 1])
def test_narrow_results_lie_in_one_half_and_keep_the_other(kind: str, upper: int) -> None:
    a, b, c = small(4, -3, 4), small(5, -3, 4), small(6, -9, 10)
    state, dtype = State(), DTYPES[kind]
    state.v[8:16], state.v[16:24] = words_of(a, dtype), words_of(b, dtype)
    half = torch.from_numpy(c.reshape(8, 32)).to(dtype).view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    state.v[24:32] = half << 16 | 0x1234 if upper else half | 0x12340000
    state.v[40:48] = 0xABCD9876
    fields = {"opsel": 4 * upper, "opsel_hi": 3, "opsel_hi2": 1}
    execute(encode("VOP3P", f"V_WMMA_{kind}_16X16X16_{kind}", vdst=296, src0=264, src1=272, src2=280, **fields), state)
    got = state.v[40:48]
    kept, made = (got & 0xFFFF, got >> 16) if upper else (got >> 16, got & 0xFFFF)
    assert (kept == (0x9876 if upper else 0xABCD)).all()
    values = torch.from_numpy(made.astype(np.uint16).view(np.int16)).view(dtype).double().numpy()
    assert placed(values).tolist() == (a @ b.T + c).tolist()


def test_a_narrow_result_is_rounded_once() -> None:
    a, b = np.ones((16, 16)), np.full((16, 16), 0.125)
    state = State()
    state.v[8:16], state.v[16:24] = words_of(a, torch.bfloat16), words_of(b, torch.bfloat16)
    state.v[24:32] = 0x4380  # 256 in bf16, whose next is 258: 16 / 8 more reaches it, each step alone would be lost
    execute(encode("VOP3P", "V_WMMA_BF16_16X16X16_BF16", vdst=296, src0=264, src1=272, src2=280), state)
    assert set((state.v[40:48] & 0xFFFF).ravel().tolist()) == {0x4381}


@pytest.mark.parametrize("size", [8, 4])
@pytest.mark.parametrize("signs", [0, 1, 2, 3])
@pytest.mark.parametrize("clamp", [0, 1])
def test_whole_numbers_and_saturation(size: int, signs: int, clamp: int) -> None:
    rng, per = np.random.default_rng(7), 32 // size
    raw = [rng.integers(0, 1 << size, (16, 16)) for _ in range(2)]
    c = np.array([2**31 - 5, -(2**31) + 5, 100, -100] * 64).reshape(16, 16)
    state = State()
    for at, x in ((8, raw[0]), (16, raw[1])):
        packed = (x.reshape(16, 16 // per, per) << size * np.arange(per)).sum(-1).astype(np.uint32)
        state.v[at : at + 16 // per] = np.tile(packed.T, 2)
    state.v[24:32] = c.reshape(8, 32).astype(np.int32).view(np.uint32)
    name = f"V_WMMA_I32_16X16X16_IU{size}"
    execute(encode("VOP3P", name, vdst=296, src0=264, src1=272, src2=280, neg=signs, clmp=clamp), state)
    a, b = (x - (x >> size - 1 << size) if signs >> i & 1 else x for i, x in enumerate(raw))
    exact = a @ b.T + c
    want = np.clip(exact, -(2**31), 2**31 - 1) if clamp else (exact + 2**31) % 2**32 - 2**31
    assert placed(state.v[40:48].view(np.int32)).tolist() == want.tolist()
    assert (exact != want).any() or not clamp
