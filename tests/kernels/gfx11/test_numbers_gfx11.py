"""The arithmetic of the machine code's model, instruction by instruction, against exact fractions and known values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from support.gfx11 import lanes_of

pytestmark = pytest.mark.usefixtures("toolchain")
F = np.float32


def many(form: str, name: str, *sources: np.ndarray) -> np.ndarray:
    """Return uint32 results of as many lanes as the sources have."""
    count = len(sources[0])
    return np.concatenate([lanes_of(form, name, *(s[i : i + 32] for s in sources)) for i in range(0, count, 32)])


def fma(*sources: np.ndarray) -> np.ndarray:
    return many("VOP3", "V_FMA_F32", *sources).view(F)


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
        got = fma(a, b, c)
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
    assert fma(a, b, c)[0] == one + np.float32(2**-11) + np.float32(2**-23)
    assert fma(a, b, -c)[0] == one + np.float32(2**-11)
    assert np.float32(np.float64(a[0]) * b[0] + tiny) == one + np.float32(2**-11)


def test_dot2_adds_the_low_product_first() -> None:
    big, small = 0x4B80, 0x3F80  # 2**24 and 1 in bf16

    def dot(a_low: int, b_low: int, a_high: int, b_high: int) -> float:
        words = [np.array([high << 16 | low], np.uint32) for low, high in ((a_low, a_high), (b_low, b_high))]
        return float(lanes_of("VOP3P", "V_DOT2_F32_BF16", *words, F([1])).view(F)[0])

    assert dot(big, small, small, small) == 2**24  # (1 + 2^24) + 1, each rounded to even
    assert dot(small, small, big, small) == 2**24 + 2  # (1 + 1) + 2^24


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
    assert lanes_of("VOP1", "V_CVT_F16_F32_E32", F([value]))[0] == bits


def test_fp16_narrows_as_numpy_does() -> None:
    x = np.concatenate(
        [
            floats(9, 4000),
            (np.random.default_rng(8).integers(0, 2**31, 4000) % 0x10000000 + 0x33000000).astype(np.uint32).view(F),
        ]
    )
    with np.errstate(over="ignore"):
        want = x.astype(np.float16).view(np.uint16)
    assert np.array_equal(many("VOP1", "V_CVT_F16_F32_E32", x) & 0xFFFF, want)


def test_every_bf16_and_fp16_is_widened_as_torch_does() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32)
    want = torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.float16).float().numpy()
    assert np.array_equal(many("VOP1", "V_CVT_F32_F16_E32", bits).view(F), want, equal_nan=True)
    want = torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16).float().numpy()
    finite = bits[np.isfinite(want)]
    zero, one = np.zeros_like(finite), np.full_like(finite, 0x3F80)
    got = many("VOP3P", "V_DOT2_F32_BF16", finite, one, zero).view(F)
    assert np.array_equal(got, want[np.isfinite(want)])


def test_conversions_to_integers_saturate() -> None:
    x = F([1.9, -1.9, 3e9, -3e9, np.nan, np.inf])
    got = lanes_of("VOP1", "V_CVT_I32_F32_E32", x)
    assert got.view(np.int32).tolist() == [1, -1, 2**31 - 1, -(2**31), 0, 2**31 - 1]
    assert lanes_of("VOP1", "V_CVT_U32_F32_E32", x).tolist() == [1, 0, 3_000_000_000, 0, 0, 2**32 - 1]


def test_fractions_and_roundings_of_halves() -> None:
    x = F([-1e-20, 2.75, -2.75, 5.0])
    assert lanes_of("VOP1", "V_FRACT_F32_E32", x).view(F).tolist() == [float(np.nextafter(F(1), F(0))), 0.75, 0.25, 0.0]
    assert np.isnan(lanes_of("VOP1", "V_FRACT_F32_E32", F([np.nan, np.inf])).view(F)).all()
    h = np.float16([2.75, -2.75, -0.25, 0.5, 3.0])
    bits = h.view(np.uint16).astype(np.uint32)
    for name, fn in (("FLOOR", np.floor), ("CEIL", np.ceil), ("TRUNC", np.trunc), ("RNDNE", np.rint)):
        got = lanes_of("VOP1", f"V_{name}_F16_E32", bits)
        assert np.array_equal(got & 0xFFFF, fn(h).view(np.uint16)), name
    with np.errstate(all="ignore"):
        exact = {
            "RCP": 1 / h.astype(np.float64),
            "RSQ": 1 / np.sqrt(np.abs(h.astype(np.float64))),
            "EXP": np.exp2(h.astype(np.float64)),
        }
    for name, want in exact.items():
        given = bits & 0x7FFF if name == "RSQ" else bits
        assert np.array_equal(
            lanes_of("VOP1", f"V_{name}_F16_E32", given) & 0xFFFF, want.astype(np.float16).view(np.uint16)
        ), name
    assert lanes_of("VOP1", "V_FREXP_MANT_F32_E32", F([6.0, -0.1])).view(F).tolist() == [0.75, float(F(-0.1) * 8)]
    assert lanes_of("VOP1", "V_FREXP_EXP_I32_F32_E32", F([6.0, 2.0**-149])).view(np.int32).tolist() == [3, -148]
    turns = F([0.25, 0.5, -0.25, 1.0])
    assert np.allclose(lanes_of("VOP1", "V_SIN_F32_E32", turns).view(F), [1, 0, -1, 0], atol=1e-6)
    assert np.allclose(lanes_of("VOP1", "V_COS_F32_E32", turns).view(F), [0, -1, 0, 1], atol=1e-6)
    assert lanes_of("VOP1", "V_RNDNE_F32_E32", F([-0.25, 0.5, 1.5])).tolist() == [1 << 31, 0, 0x40000000]


def test_bit_counts() -> None:
    x = np.array([0, 1, 0x80000000, 0x00F0], np.uint32)
    assert lanes_of("VOP1", "V_CLZ_I32_U32_E32", x).tolist() == [0xFFFFFFFF, 31, 0, 24]
    assert lanes_of("VOP1", "V_CTZ_I32_B32_E32", x).tolist() == [0xFFFFFFFF, 0, 31, 4]
    same_signs = np.array([0, 1, 0xFFFFFFFF, 0xFFFF0000], np.uint32)
    assert lanes_of("VOP1", "V_CLS_I32_E32", same_signs).tolist() == [2**32 - 1, 31, 2**32 - 1, 16]
    assert lanes_of("VOP3", "V_BCNT_U32_B32", x, np.zeros(4, np.uint32)).tolist() == [0, 1, 1, 4]
    assert lanes_of("VOP1", "V_BFREV_B32_E32", np.array([1, 0x80000002], np.uint32)).tolist() == [
        0x80000000,
        0x40000001,
    ]


def test_perm_takes_the_low_register_as_bytes_0_to_3() -> None:
    high, low = np.array([0x77665544], np.uint32), np.array([0x33228100], np.uint32)

    def perm(select: int) -> int:
        return int(lanes_of("VOP3", "V_PERM_B32", high, low, np.array([select], np.uint32))[0])

    assert perm(0x07040300) == 0x77443300
    assert perm(0x0C0D0102) == 0x00FF8122
    assert perm(0x08090A0B) == 0xFF000000  # signs of bytes 1, 3, 5, 7


def test_bit_fields() -> None:
    x, start, width = (np.array([v], np.uint32) for v in (0xABCD1234, 8, 12))
    assert lanes_of("VOP3", "V_BFE_U32", x, start, width)[0] == 0xD12
    assert lanes_of("VOP3", "V_BFE_I32", x, start, width).view(np.int32)[0] == 0xD12 - 0x1000
    assert lanes_of("VOP3", "V_BFE_U32", x, start, np.zeros(1, np.uint32))[0] == 0
