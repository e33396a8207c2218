"""The arithmetic of the machine code's model against exact fractions and hand-known values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from moeracle.kernels.gfx11 import integers, numbers


def floats(seed: int, count: int) -> np.ndarray:
    """Return fp32 of every exponent, subnormals too, no NaN."""
    bits = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    return np.where(np.isfinite(x), x, np.float32(1.5))


def rounded(exact: Fraction) -> np.float32:
    """Round a fraction to fp32, nearest even, through torch-free integer arithmetic."""
    if exact == 0:
        return np.float32(0)
    sign, value = (-1 if exact < 0 else 1), abs(exact)
    exponent = max(value.numerator.bit_length() - value.denominator.bit_length() - 24, -149)
    while value / Fraction(2) ** exponent >= 2**24:
        exponent += 1
    while exponent > -149 and value / Fraction(2) ** exponent < 2**23:
        exponent -= 1
    whole = round(value / Fraction(2) ** exponent)  # Python rounds halves to even
    return (
        np.float32(np.ldexp(float(sign * whole), exponent))
        if whole * Fraction(2) ** exponent < Fraction(2) ** 128
        else np.float32(sign * np.inf)
    )


def test_fma_rounds_once() -> None:
    a, b = floats(1, 3000), floats(2, 3000)
    with np.errstate(all="ignore"):
        c = np.where(np.arange(3000) % 2 == 0, (-a * b).astype(np.float32), floats(3, 3000))  # half of them cancel
        c = np.where(np.isfinite(c), c, np.float32(1))
        got = numbers.fma(a, b, c)
        want = np.array(
            [
                rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)))
                for x, y, z in zip(a, b, c, strict=True)
            ]
        )
        twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert np.array_equal(np.abs(got).view(np.uint32), np.abs(want).view(np.uint32))
    assert np.count_nonzero(twice != want) < 30, "fp64 and then fp32 is nearly right, so that data must be made to tell"


def test_fma_where_two_roundings_are_wrong() -> None:
    one, tiny = np.float32(1), np.float32(2.0**-60)
    a, b, c = np.float32([1 + 2**-12]), np.float32([1 + 2**-12]), np.float32([tiny])
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: a tie in fp32, which 2^-60 breaks upwards; in fp64 the sum is the tie again.
    assert numbers.fma(a, b, c)[0] == one + np.float32(2**-11) + np.float32(2**-23)
    assert numbers.fma(a, b, -c)[0] == one + np.float32(2**-11)
    assert np.float32(np.float64(a[0]) * b[0] + tiny) == one + np.float32(2**-11)


def test_dot2_adds_the_low_product_first() -> None:
    big, small = np.float32([2.0**24]), np.float32([1.0])
    assert numbers.dot2(big, small, small, small, np.float32([1])) == 2**24  # (1 + 2^24) + 1, each rounded to even
    assert numbers.dot2(small, small, big, small, np.float32([1])) == 2**24 + 2  # (1 + 1) + 2^24


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (65504.0, 0x7BFF),
        (65520.0, 0x7C00),
        (65519.99, 0x7BFF),
        (2.0**-24, 1),
        (2.0**-25, 0),
        (2.0**-25 * 1.001, 1),
        (-0.0, 0x8000),
    ],
)
def test_fp16_rounding(value: float, bits: int) -> None:
    with np.errstate(over="ignore"):
        assert numbers.f16_bits(np.float32([value]))[0] == bits


def test_every_bf16_and_fp16_is_widened_as_torch_does() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32)
    for widen, dtype in ((numbers.bf16_to_f32, torch.bfloat16), (numbers.f16_to_f32, torch.float16)):
        want = torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(dtype).float().numpy()
        assert np.array_equal(widen(bits), want, equal_nan=True)


def test_conversions_to_integers_saturate() -> None:
    x = np.float32([1.9, -1.9, 3e9, -3e9, np.nan, np.inf])
    assert numbers.to_int(x, -(2**31), 2**31 - 1).view(np.int32).tolist() == [1, -1, 2**31 - 1, -(2**31), 0, 2**31 - 1]
    assert numbers.to_int(x, 0, 2**32 - 1).tolist() == [1, 0, 3_000_000_000, 0, 0, 2**32 - 1]


def test_bit_counts() -> None:
    x = np.array([0, 1, 0x80000000, 0x00F0], np.uint32)
    assert numbers.count_leading_zeros(x).tolist() == [0xFFFFFFFF, 31, 0, 24]
    assert numbers.count_trailing_zeros(x).tolist() == [0xFFFFFFFF, 0, 31, 4]
    same_signs = np.array([0, 1, 0xFFFFFFFF, 0xFFFF0000], np.uint32)
    assert numbers.count_sign_bits(same_signs).tolist() == [2**32 - 1, 31, 2**32 - 1, 16]
    assert numbers.popcount(x).tolist() == [0, 1, 1, 4]
    assert numbers.reverse_bits(np.array([1, 0x80000002], np.uint32)).tolist() == [0x80000000, 0x40000001]


def test_perm_takes_the_low_register_as_bytes_0_to_3() -> None:
    high, low = np.array([0x77665544], np.uint32), np.array([0x33221100], np.uint32)
    assert integers.perm(high, low, np.array([0x07040300], np.uint32))[0] == 0x77443300
    assert integers.perm(high, low, np.array([0x0C0D0102], np.uint32))[0] == 0x00FF1122
    with pytest.raises(ValueError, match="sign-byte"):
        integers.perm(high, low, np.array([0x08000000], np.uint32))


def test_bit_fields() -> None:
    x, start, width = (np.array([v], np.uint32) for v in (0xABCD1234, 8, 12))
    assert integers.bfe_u(x, start, width)[0] == 0xD12
    assert integers.bfe_i(x.view(np.int32), start, width)[0] == 0xD12 - 0x1000
    assert integers.bfe_u(x, start, np.zeros(1, np.uint32))[0] == 0
