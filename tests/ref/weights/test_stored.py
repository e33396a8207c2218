"""Dense packing of 1 to 8 bits, and the stored form of a weight, by the definition."""

from __future__ import annotations

import pytest
import torch

from moeracle.ref.weights.dense_bits import pack_bits, unpack_bits, words_for
from moeracle.ref.weights.layouts import pack_int4
from moeracle.ref.weights.stored import StoredWeight, pack_v1_zeros, unpack_v1_zeros


def by_the_definition(codes: torch.Tensor, bits: int) -> list[int]:
    """Return the words of one row as one whole number, cut into 32 bits."""
    stream = sum(code << i * bits for i, code in enumerate(codes.tolist()))
    words = [(stream >> 32 * w) & 0xFFFFFFFF for w in range(words_for(len(codes), bits))]
    return [word - (1 << 32) if word >> 31 else word for word in words]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 32, 45])
def test_dense_packing(bits, count):
    codes = torch.randint(0, 1 << bits, (3, count), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.tolist() == [by_the_definition(row, bits) for row in codes]
    assert torch.equal(unpack_bits(packed, bits, count), codes)
    assert torch.equal(unpack_bits(packed.mT.contiguous().mT, bits, count), codes)


def test_four_bits_are_the_order_of_gptq():
    codes = torch.arange(16, dtype=torch.uint8).repeat(2, 1)
    assert torch.equal(pack_bits(codes, 4), pack_int4(codes, "compressed_tensors"))


def test_one_word_by_hand():
    """3 bits: codes 7, 0, 5 are bits 0-2, 3-5 and 6-8: 7 + 5 * 64."""
    assert pack_bits(torch.tensor([7, 0, 5], dtype=torch.uint8), 3).tolist() == [7 + 5 * 64]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unpack_bits(torch.zeros(2, dtype=torch.int64), 4, 8), "words: got torch.int64"),
        (lambda: unpack_bits(torch.zeros(2, dtype=torch.int32), 4, 8), "words: got 2 a row, must be 1 for 8 codes"),
        (lambda: unpack_bits(torch.zeros(1, dtype=torch.int32), 9, 3), "bits: got 9, must be 1..8"),
        (lambda: pack_bits(torch.tensor([8], dtype=torch.uint8), 3), "largest value is 8, must be below 8"),
        (lambda: unpack_v1_zeros(torch.zeros(1, dtype=torch.int32), "carry", 8), "did you mean 'word_carry'"),
        (lambda: unpack_v1_zeros(torch.zeros(3, dtype=torch.int32), "word_carry", 32, 3), "bits: got 3"),
        (lambda: pack_v1_zeros(torch.tensor([0, 16, 3])), "zero: 2 of 3 are not in 1..15"),
        (lambda: StoredWeight(torch.zeros(2, 4, dtype=torch.uint8), torch.ones(3, 1)), r"scale: got shape \(3, 1\)"),
        (
            lambda: StoredWeight(torch.zeros(2, 4, dtype=torch.uint8), torch.ones(2, 1), group_of=torch.ones(4).long()),
            "group_of",
        ),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_zero_points_less_one_come_back_in_every_reading():
    zero = torch.arange(1, 16).repeat(2, 1)[:, :8]
    for reading in ("modulo", "plain", "byte_carry", "word_carry"):
        assert torch.equal(unpack_v1_zeros(pack_v1_zeros(zero), reading, 8).long(), zero)


def test_a_stored_weight_is_exact_and_may_have_a_short_last_group():
    codes = torch.tensor([[15, 0, 8, 3, 9]], dtype=torch.uint8)
    stored = StoredWeight(codes, torch.tensor([[0.5, -2.0]]).half(), torch.tensor([[1, 16]], dtype=torch.int16))
    assert stored.group_size == 3
    assert stored.dequantize().tolist() == [[7.0, -0.5, 3.5, 26.0, 14.0]]
