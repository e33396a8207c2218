"""One correct rounding: literals, the whole grid of each format with its midpoints, and what torch gets wrong."""

import math

import pytest
import torch

from moeracle.ref.rounding import FORMATS, round_in_fp64, round_to, ulp

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def bits(t):
    return [v & 0xFFFF for v in t.view(torch.int16).tolist()]


def test_literals_bf16():
    x = f64(
        1.0,
        1 + 2**-8,
        1 + 3 * 2**-8,
        1 + 2**-8 + 2**-40,
        -(1 + 2**-8 + 2**-40),
        0.0,
        -0.0,
        2.0**-133,
        2.0**-134,
        -3e-45,
    )
    assert bits(round_to(x, BF16)) == [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF81, 0x0000, 0x8000, 0x0001, 0x0000, 0x8000]


def test_literals_fp16():
    x = f64(65504.0, 65519.9999, 65520.0, -65520.0, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 1 + 2**-11)
    assert bits(round_to(x, FP16)) == [0x7BFF, 0x7BFF, 0x7C00, 0xFC00, 0x0001, 0x0000, 0x0001, 0x3C00]


def test_literals_rtz():
    x = f64(1 + 2**-7 - 2**-50, -(1 + 2**-7 - 2**-50), 1e308, -1e308, math.inf, 2.0**-133 * 1.99, -1e-320)
    assert bits(round_to(x, BF16, "rtz")) == [0x3F80, 0xBF80, 0x7F7F, 0xFF7F, 0x7F80, 0x0001, 0x8000]


def test_flush_to_zero_keeps_the_sign():
    x = f64(2.0**-126, 2.0**-127, -(2.0**-127), 2.0**-126 * (1 - 2**-9))
    assert bits(round_to(x, BF16, ftz=True)) == [0x0080, 0x0000, 0x8000, 0x0080]  # flushed after rounding


def test_torch_rounds_twice_and_we_do_not():
    x = f64(1 + 2**-8 + 2**-40)
    assert x.to(BF16).item() == 1.0  # fp64 -> fp32 -> bf16: the defect this module exists for
    assert round_to(x, BF16).item() == 1.0078125


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_every_value_midpoint_and_neighbour(dtype):
    grid = torch.arange(0x8000, dtype=torch.int32).to(torch.int16).view(dtype).double()
    grid = grid[grid.isfinite()]
    low, high = grid[:-1], grid[1:]
    middle = (low + high) / 2
    even = torch.where(torch.arange(len(low)) % 2 == 0, low, high)
    above = torch.nextafter(middle, torch.full_like(middle, math.inf))
    below = torch.nextafter(middle, torch.zeros_like(middle))
    for sign in (1.0, -1.0):
        assert torch.equal(round_to(sign * grid, dtype).double(), sign * grid)
        assert torch.equal(round_to(sign * middle, dtype).double(), sign * even)
        assert torch.equal(round_to(sign * above, dtype).double(), sign * high)
        assert torch.equal(round_to(sign * below, dtype).double(), sign * low)
        assert torch.equal(round_to(sign * above, dtype, "rtz").double(), sign * low)


def test_fp32_agrees_with_the_machine():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200_000, dtype=torch.float64, generator=generator)
    x = x * torch.exp2(torch.randint(-160, 140, x.shape, generator=generator).double())
    assert torch.equal(round_to(x, FP32), x.float())


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_special_values(dtype):
    r = round_to(f64(math.nan, math.inf, -math.inf, 1e308, -1e308), dtype)
    assert r[0].isnan()
    assert r[1:].tolist() == [math.inf, -math.inf, math.inf, -math.inf]


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_overflow_on_either_side_alone_and_before_any_cast(dtype):
    p, _, largest = FORMATS[dtype]
    half = largest + float(ulp(f64(largest), dtype)) / 2  # the midpoint to the next power of two
    for sign in (1.0, -1.0):
        inside = sign * f64(largest, math.nextafter(half, 0.0), 1.0)
        assert round_in_fp64(inside, dtype).tolist() == [sign * largest, sign * largest, sign]
        assert round_in_fp64(sign * f64(half, 1.0), dtype).tolist() == [sign * math.inf, sign]
        assert round_in_fp64(sign * f64(half, math.inf), dtype, "rtz").tolist() == [sign * largest, sign * math.inf]
    assert round_in_fp64(f64(-half, 0.5, half), dtype).tolist() == [-math.inf, 0.5, math.inf]
    assert round_in_fp64(torch.zeros(0, 3, dtype=torch.float64), dtype).shape == (0, 3)
    assert p == round(-math.log2(torch.finfo(dtype).eps))


def test_nothing_is_flushed_unless_asked():
    assert round_in_fp64(f64(2.0**-127, -(2.0**-133)), BF16).tolist() == [2.0**-127, -(2.0**-133)]
    assert round_in_fp64(f64(2.0**-127, -(2.0**-126)), BF16, ftz=True).tolist() == [0.0, -(2.0**-126)]


def test_ulp():
    assert ulp(f64(1.0, 1.99, 2.0, 0.0, 2.0**-130, math.inf), BF16).tolist() == [
        2**-7,
        2**-7,
        2**-6,
        2.0**-133,
        2.0**-133,
        2.0**120,
    ]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"^x: got torch.float32, must be torch.float64"):
        round_to(torch.ones(1), BF16)
    with pytest.raises(ValueError, match=r"^mode: got 'rnd', must be one of rne, rtz; did you mean 'rne'\?"):
        round_to(f64(1.0), BF16, "rnd")
    with pytest.raises(ValueError, match=r"^dtype: got 'torch.int8'"):
        round_to(f64(1.0), torch.int8)
