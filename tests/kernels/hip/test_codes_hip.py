"""Codes and conversions, exhaustively where that is possible: every nibble with every zero point, every bf16 border."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moeracle.kernels.hip.runtime.launch import hip_kernel
from moeracle.ref.weights.layouts import pack_int4

SOURCE = Path(__file__).with_name("codes.hip")
DECODE = {"sub_finite": 0, "truncate": 1, "magic": 2}


def decoded(words: torch.Tensor, zero: int, dtype: torch.dtype, decode: str) -> torch.Tensor:
    macros = {"DECODE": DECODE[decode]} | ({"DTYPE_FP16": 1} if dtype == torch.float16 else {})
    out = torch.empty(len(words), 4, dtype=torch.int32)
    hip_kernel(SOURCE, "decode", **macros).launch((-(-len(words) // 32),), (32,), words, out, zero, len(words))
    return out.view(torch.int16).view(dtype).reshape(len(words), 8).float()


def every_nibble() -> tuple[torch.Tensor, torch.Tensor]:
    """Every code in every place, its neighbours all different from it."""
    codes = ((torch.arange(16)[:, None] + torch.arange(8)[None] * 5) % 16).to(torch.uint8)
    return pack_int4(codes, "exllama").flatten(), codes.float()


@pytest.mark.parametrize("decode", ["sub_finite", "truncate"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_code_minus_every_zero_point_is_exact(dtype: torch.dtype, decode: str) -> None:
    words, codes = every_nibble()
    for zero in range(16):
        assert torch.equal(decoded(words, zero, dtype, decode), codes - zero)


def test_magic_leaves_128_plus_the_code() -> None:
    words, codes = every_nibble()
    assert torch.equal(decoded(words, 8, torch.bfloat16, "magic"), codes + 128)


def converted(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    outs = [torch.empty(len(x), dtype=torch.int32) for _ in range(3)]
    hip_kernel(SOURCE, "convert").launch((-(-len(x) // 32),), (32,), x, *outs, len(x))
    return outs[0] & 0xFFFF, outs[1], outs[2]


def test_the_store_rounds_as_torch_does_and_keeps_nan_and_infinity() -> None:
    # Every bf16, and at each the fp32 just below, at and above the midpoint to the next.
    tops = torch.arange(1 << 16, dtype=torch.int64)[:, None] << 16
    lows = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (tops | lows).flatten()
    x = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)
    quiet = ~x.isnan() | (bits & 0x400000 != 0)  # what arithmetic yields: a NaN with its quiet bit
    stored = converted(x)[0].to(torch.int16).view(torch.bfloat16)[quiet]
    want = x[quiet].to(torch.bfloat16)
    assert torch.equal(stored.isnan(), want.isnan())
    finite = ~want.isnan()
    assert torch.equal(stored[finite].view(torch.int16), want[finite].view(torch.int16))


def test_truncation_equals_rounding_on_integers_and_nowhere_near_midpoints() -> None:
    integers = torch.arange(-143, 144).float()
    _, finite, cut = converted(integers)
    assert torch.equal(finite, cut)
    low = (finite & 0xFFFF).to(torch.int16).view(torch.bfloat16).float()
    high = (finite >> 16).to(torch.int16).view(torch.bfloat16).float()
    assert torch.equal(low, integers)
    assert torch.equal(high, -integers)
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    _, finite, cut = converted(x)
    assert torch.equal((finite & 0xFFFF).to(torch.int16), x.to(torch.bfloat16).view(torch.int16))
    toward_zero = (cut & 0xFFFF).to(torch.int16).view(torch.bfloat16).float()
    assert (toward_zero.abs() <= x.abs()).all()
    assert 0.45 < float(((finite ^ cut) & 0xFFFF != 0).float().mean()) < 0.55  # half of all values differ
