"""The arithmetic of the machine code's model, instruction by instruction, against exact fractions and known values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from support.gfx11 import State, encode, execute, lanes_of

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


def test_dot2_with_narrow_results_rounds_after_each_product() -> None:
    a, b = np.array([0x3C00_3C00], np.uint32), np.array([0x3C00_6800], np.uint32)  # fp16: 1, 1; 2048, 1
    assert lanes_of("VOP3", "V_DOT2_F16_F16", a, b, np.array([0x3C00], np.uint32))[0] & 0xFFFF == 0x6800
    three = np.array([0x4200], np.uint32)  # 2048 + 3 is a tie that goes to 2052; 1 more is lost
    assert lanes_of("VOP3", "V_DOT2_F16_F16", a, b, three)[0] & 0xFFFF == 0x6802
    one, ab = np.array([0x3F80], np.uint32), np.array([0x3F80_4380], np.uint32)  # bf16: 256, 1
    ones = np.array([0x3F80_3F80], np.uint32)
    assert lanes_of("VOP3", "V_DOT2_BF16_BF16", ones, ab, one)[0] & 0xFFFF == 0x4380
    assert lanes_of("VOP3", "V_DOT2_BF16_BF16", ab, ones, np.array([0x4040], np.uint32))[0] & 0xFFFF == 0x4382
    with pytest.raises(AssertionError, match="no formula"):
        lanes_of("VOP3", "V_DOT2_F16_F16", a, b, three, neg=1)


def test_parts_of_two_over_pi() -> None:
    state = State()
    state.v[1], state.v[2] = 0, 0x3FF00000  # 1.0
    parts = []
    for part in range(3):
        execute(encode("VOP3", "V_TRIG_PREOP_F64", vdst=266, src0=257, src1=128 + part), state)
        parts.append(Fraction(float(state.v[10:12, 0].copy().view(np.float64)[0])))
    two_over_pi = Fraction(0xA2F9836E4E441529FC2757D1F534DDC0DB6295993C43, 1 << 176)
    assert abs(sum(parts) - two_over_pi) < Fraction(1, 1 << 155)
    assert [float(p) for p in parts] == [2**-53 * (int(two_over_pi * 2**53)), *map(float, parts[1:])]


def test_codes_as_offsets() -> None:
    got = lanes_of("VOP1", "V_CVT_OFF_F32_I4_E32", np.arange(32, dtype=np.uint32)).view(F)
    assert got.tolist() == [(i if i < 8 else i - 16) / 16 for i in range(16)] * 2


@pytest.mark.parametrize(
    ("value", "signed", "unsigned"),
    [(1.0, 32767, 65535), (-1.0, -32767, 0), (2.0, 32767, 65535), (float("nan"), 0, 0), (0.5, 16384, 32768)],
)
def test_normalized_conversions(value: float, signed: int, unsigned: int) -> None:
    x = F([value])
    half = np.float16([value]).view(np.uint16).astype(np.uint32)
    for name, given in (("F32", x), ("F16", half)):
        for kind, want in (("I16", signed), ("U16", unsigned)):
            got = int(lanes_of("VOP3", f"V_CVT_PK_NORM_{kind}_{name}", given, given)[0])
            assert got == (want & 0xFFFF) * 0x10001, (name, kind)
    assert int(lanes_of("VOP1", "V_CVT_NORM_I16_F16_E32", half)[0]) & 0xFFFF == signed & 0xFFFF
    assert int(lanes_of("VOP1", "V_CVT_NORM_U16_F16_E32", half)[0]) & 0xFFFF == unsigned


def test_swaps_and_relative_moves() -> None:
    state = State()
    state.v[1], state.v[2], state.s[125] = 0x11112222, 0x33334444, 3 | 5 << 16
    execute(encode("VOP1", "V_SWAP_B16_E32", vdst=257, src0=258 + 128), state)
    assert (int(state.v[1, 0]), int(state.v[2, 0])) == (0x11113333, 0x22224444)
    state.v[4], state.v[6] = 7, 9
    execute(encode("VOP1", "V_MOVRELSD_2_B32_E32", vdst=257, src0=257), state)
    assert (int(state.v[4, 5]), int(state.v[6, 5])) == (7, 7)
    state.v[6] = 9
    execute(encode("VOP1", "V_SWAPREL_B32_E32", vdst=257, src0=257), state)
    assert (int(state.v[4, 5]), int(state.v[6, 5])) == (9, 7)


def test_four_masked_sums_of_bytes() -> None:
    state = State()
    state.v[1:3] = np.array([[0x04030201], [0x08070605]], np.uint32)
    state.v[3], state.v[4:8] = 0x00050005, np.array([[10], [20], [30], [40]], np.uint32)
    execute(encode("VOP3", "V_MQSAD_U32_U8", vdst=266, src0=257, src1=259, src2=260), state)
    assert state.v[10:14, 9].tolist() == [10 + 4 + 2, 20 + 3 + 1, 30 + 2 + 0, 40 + 1 + 1]


def test_a_vop3_instruction_may_have_a_lane_pattern() -> None:
    state = State()
    state.v[1], state.v[2], state.v[3] = np.arange(32, dtype=np.uint32), 100, 1000
    word = encode("VOP3", "V_ADD3_U32", vdst=266, src0=250, src1=258, src2=259)
    execute(word + (1 | 0x121 << 8 | 0xF << 24 | 0xF << 28).to_bytes(4, "little"), state)  # row_ror:1 of v1
    assert state.v[10].tolist() == [1100 + row + (lane - 1) % 16 for row in (0, 16) for lane in range(16)]


def test_registers_of_the_hardware() -> None:
    state = State()
    execute(encode("SOPK", "S_GETREG_B32", sdst=4, simm16=1 | 7 << 11), state)
    assert int(state.s[4]) == 0xF0
    state.s[5] = 0xF
    execute(encode("SOPK", "S_SETREG_B32", sdst=5, simm16=1 | 4 << 6 | 3 << 11), state)  # subnormals kept: as it is
    state.s[5] = 0
    with pytest.raises(RuntimeError, match="fault 12"):  # flushed
        execute(encode("SOPK", "S_SETREG_B32", sdst=5, simm16=1 | 4 << 6 | 3 << 11), state)
