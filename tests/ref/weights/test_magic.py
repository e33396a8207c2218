"""Magic-number decoding against exact dequantization, nibble by nibble, and the tricks that do not work."""

import pytest
import torch

from moeracle.ref.weights.dequantize import dequantize_int4
from moeracle.ref.weights.layouts import pack_int4, unpack_int4
from moeracle.ref.weights.magic import (
    BF16_METHODS,
    FP16_METHODS,
    dequantize_bf16_magic,
    dequantize_fp16_magic,
    dequantize_int8_magic,
    sub_finite,
    sum_correction,
    truncate_bf16,
)

torch.set_num_threads(1)

PATHS = [
    *((dequantize_bf16_magic, method, torch.bfloat16) for method in ("single_mask", "sub_finite", "truncate")),
    *((dequantize_fp16_magic, method, torch.float16) for method in FP16_METHODS),
]


def every_nibble_in_every_position():
    """[128, 8] codes: row 16r+u has u at position r and other codes around it."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (128, 8), dtype=torch.uint8, generator=generator)
    row = torch.arange(128)
    codes[row, row // 16] = (row % 16).to(torch.uint8)
    return codes


def random_words(*shape, seed=0):
    return torch.randint(-(2**31), 2**31, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int32)


def exact(words, zero=8):
    codes = unpack_int4(words, "exllama")
    one = torch.ones(*codes.shape[:-1], 1)
    return dequantize_int4(codes, one, torch.full_like(one, zero, dtype=torch.uint8))


def test_by_hand():
    words = torch.tensor([[0x75316420, 0xFDB9ECA8 - 2**32]], dtype=torch.int32)  # codes 0..15
    expected = [[float(u - 8) for u in range(16)]]
    for decode, method, _ in PATHS:
        assert decode(words, method=method).tolist() == expected
    assert dequantize_bf16_magic(words, method="sum_correction").tolist() == [[float(128 + u) for u in range(16)]]


@pytest.mark.parametrize(("decode", "method", "dtype"), PATHS)
def test_every_nibble_in_every_position(decode, method, dtype):
    codes = every_nibble_in_every_position()
    got = decode(pack_int4(codes, "exllama"), method=method)
    assert got.dtype == dtype
    assert torch.equal(got.float(), codes.float() - 8)


@pytest.mark.parametrize("zero", [0, 1, 7, 8, 15])
@pytest.mark.parametrize(("decode", "method", "dtype"), PATHS)
def test_random_words_and_zero_points(decode, method, dtype, zero):
    words = random_words(2, 64, 128, seed=zero)
    assert torch.equal(decode(words, method=method, zero=zero).float(), exact(words, zero))


@pytest.mark.parametrize("method", BF16_METHODS)
def test_strided_words(method):
    words = random_words(8, 48)
    assert torch.equal(
        dequantize_bf16_magic(words[:, :16], method=method), dequantize_bf16_magic(words[:, :16].clone(), method=method)
    )


def test_sum_correction_decodes_to_128_plus_u():
    words = random_words(64, 128)
    got = dequantize_bf16_magic(words, method="sum_correction")
    assert torch.equal(got.float(), unpack_int4(words, "exllama").float() + 128)


def test_two_masks_on_bf16_are_wrong_above_eight():
    codes = every_nibble_in_every_position()
    got = dequantize_bf16_magic(pack_int4(codes, "exllama"), method="two_mask").float()
    right = codes.float() - 8
    high = torch.tensor([False, False, True, True] * 2).expand(128, 8)  # pairs read through the high mask
    leaks = high & (codes >= 9)
    assert torch.equal(got[~leaks], right[~leaks])
    assert torch.equal(got[leaks], 2 * right[leaks])
    assert leaks.sum() >= 4 * 7
    assert (got[leaks] != right[leaks]).all()


def test_a_test_whose_codes_stay_below_nine_cannot_see_the_leak():
    codes = every_nibble_in_every_position().clamp(max=8)
    got = dequantize_bf16_magic(pack_int4(codes, "exllama"), method="two_mask")
    assert torch.equal(got.float(), codes.float() - 8)


@pytest.mark.parametrize("zero", [0, 1, 128, 255])
def test_int8_magic(zero):
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16)
    got = dequantize_int8_magic(codes, zero=zero)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got.float(), codes.float() - zero)
    assert torch.equal(dequantize_int8_magic(codes.mT, zero=zero), got.mT)


def bf16(*values):
    return torch.tensor(values, dtype=torch.bfloat16)


def test_sub_finite_and_truncate_agree_on_nibbles_only():
    u, constant = torch.arange(16).bfloat16() + 128, bf16(136.0)
    assert torch.equal(sub_finite(u, constant), truncate_bf16(u.float() - 136))
    # 1 - 2^-9 needs nine bits: half way between bf16 neighbours 1 - 2^-8 and 1, and the even one is 1.
    a, b = bf16(1.0), bf16(2.0**-9)
    assert sub_finite(a, b).item() == 1.0
    assert truncate_bf16(a.float() - b.float()).item() == 1 - 2.0**-8
    assert sub_finite(-a, -b).item() == -1.0
    assert truncate_bf16(b.float() - a.float()).item() == -(1 - 2.0**-8)


def test_sub_finite_is_torch_rounding_on_finite_results():
    bits = torch.randint(0, 65536, (2, 100_000), generator=torch.Generator().manual_seed(0))
    a, b = bits.to(torch.int16).view(torch.bfloat16)
    finite = (a.float() - b.float()).isfinite()
    got, expected = sub_finite(a, b)[finite], (a.float() - b.float()).bfloat16()[finite]
    assert torch.equal(got.view(torch.int16), expected.view(torch.int16))
    different = truncate_bf16((a.float() - b.float())[finite]) != expected
    assert different.float().mean() > 0.05


def test_sum_correction_by_hand():
    words = pack_int4(torch.tensor([[0, 15, 8, 9] * 4], dtype=torch.uint8), "exllama")
    a = bf16(*[1.0, 2.0, 3.0, 4.0] * 2, *[1.0] * 8).view(1, 16)
    # per four codes -8 7 0 1: -8 + 14 + 0 + 4 = 10, and -8 + 7 + 0 + 1 = 0
    assert sum_correction(a, words, chunk=8).tolist() == [[[20.0, 0.0]]]
    assert sum_correction(a, words, chunk=16).tolist() == [[[20.0]]]
    # 128 forgets the zero point: 8 * sum a too much
    assert sum_correction(a, words, chunk=8, constant=128).tolist() == [[[20.0 + 8 * 20, 64.0]]]


@pytest.mark.parametrize("chunk", [16, 32])
def test_sum_correction_is_exact_on_integers_and_poor_on_reals(chunk):
    T, N, K = 4, 16, 512
    words = random_words(N, K // 8)
    w = exact(words).double()
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(-8, 9, (T, K), generator=generator).bfloat16()
    assert torch.equal(sum_correction(integers, words, chunk=chunk).double().sum(-1), integers.double() @ w.mT)

    a = torch.randn(T, K, generator=generator).mul(3).exp().bfloat16()  # wide enough for the sums to round
    right = torch.einsum("tck,nck->tnc", a.double().unflatten(1, (-1, chunk)), w.unflatten(1, (-1, chunk)))
    got = sum_correction(a, words, chunk=chunk)
    assert got.dtype == torch.float32
    magnitude = a.double().unflatten(1, (-1, chunk)).sum(-1) * (128 + 15 + 136)
    assert ((got.double() - right).abs() <= (2 * chunk + 1) * 2.0**-24 * magnitude.unsqueeze(1)).all()
    direct = torch.zeros_like(got)
    act, weight = a.float().unflatten(1, (-1, chunk)).unsqueeze(1), w.float().unflatten(1, (-1, chunk))
    for k in range(chunk):
        direct += act[..., k] * weight[..., k]
    assert (got.double() - right).pow(2).mean() > 100 * (direct.double() - right).pow(2).mean()  # of squares


def test_sum_correction_can_lose_the_whole_answer():
    codes = torch.tensor([[8] * 31 + [9]], dtype=torch.uint8)  # the large activations meet weight 0
    a = bf16(*[1000.0] * 31, 2.0**-12).view(1, 32)
    assert (a.double() @ (codes.double() - 8).mT).item() == 2.0**-12
    # dot = 31 * 136000 + 137 * 2^-12, and the ulp of 4,216,000 is 0.5; the total 31,000 has ulp 2^-9
    assert sum_correction(a, pack_int4(codes, "exllama")).item() == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dequantize_bf16_magic(random_words(1, 1), method="two_masks"), r"method: got 'two_masks'.*'two_mask'"),
        (lambda: dequantize_fp16_magic(random_words(1, 1), method="truncate"), r"method: got 'truncate'"),
        (lambda: dequantize_fp16_magic(random_words(1, 1).long()), r"words: got torch\.int64, must be torch\.int32"),
        (lambda: dequantize_bf16_magic(random_words(1, 1), zero=16), r"zero: got 16, must be 0\.\.15"),
        (lambda: dequantize_int8_magic(random_words(1)), r"codes: got torch\.int32, must be torch\.uint8"),
        (lambda: dequantize_int8_magic(torch.zeros(1, dtype=torch.uint8), zero=256), r"zero: got 256"),
        (lambda: sub_finite(torch.ones(1), bf16(1.0)), r"a: got torch\.float32, must be torch\.bfloat16"),
        (lambda: truncate_bf16(bf16(1.0)), r"x: got torch\.bfloat16, must be torch\.float32"),
        (lambda: sum_correction(torch.ones(1, 8), random_words(1, 1)), r"a: got torch\.float32"),
        (lambda: sum_correction(torch.ones(1, 8).bfloat16(), random_words(1, 2)), r"words: got shape \(1, 2\)"),
        (lambda: sum_correction(torch.ones(1, 8).bfloat16(), random_words(1, 1)), r"chunk: got 32"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
