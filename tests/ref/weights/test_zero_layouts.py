"""Zero-point forms against words worked out by hand; test_layouts.py holds their fast path to the plain definition."""

import pytest
import torch

from moeracle.ref.weights.layouts import ZERO_LAYOUTS, pack_zeros, unpack_zeros

torch.set_num_threads(1)

PACKED_ZEROS = [form for form in ZERO_LAYOUTS if form != "unpacked"]


def words(packed):
    """The container's contents as unsigned hex literals."""
    width = 0xFFFFFFFF if packed.dtype == torch.int32 else 0xFF
    return [value & width for value in packed.flatten().tolist()]


def random_zeros(*shape):
    return torch.randint(0, 16, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# N = 8 rows: zero points 0..7 in the first group of columns, 8..15 in the second.
ZEROS_BY_HAND = [
    ("gptq_v1", [0x6543210F, 0xEDCBA987], (2, 1)),  # z-1 mod 16: row 0 of group 0 wraps to 15
    ("gptq_v2", [0x76543210, 0xFEDCBA98], (2, 1)),
    ("awq", [0x75316420, 0xFDB9ECA8], (2, 1)),
    ("compressed_tensors", [0x76543210, 0xFEDCBA98], (1, 2)),
    ("rdna", [0x76543210, 0xFEDCBA98], (1, 2)),
    ("nibble_pairs", [0x10, 0x98, 0x32, 0xBA, 0x54, 0xDC, 0x76, 0xFE], (4, 2)),
]


@pytest.mark.parametrize(("form", "expected", "shape"), ZEROS_BY_HAND)
def test_zeros_by_hand(form, expected, shape):
    zero = torch.stack([torch.arange(8), torch.arange(8, 16)], dim=1).to(torch.uint8)  # [N, K/G]
    packed = pack_zeros(zero, form)
    assert words(packed) == expected
    assert packed.shape == shape
    assert torch.equal(unpack_zeros(packed, form), zero)


def test_symmetric_gptq_zeros_read_seven_in_v1_and_eight_in_v2():
    zero = torch.full((8, 1), 8, dtype=torch.uint8)
    assert words(pack_zeros(zero, "gptq_v1")) == [0x77777777]
    assert words(pack_zeros(zero, "gptq_v2")) == [0x88888888]


def test_v1_adds_one_per_nibble_without_a_carry():
    packed = torch.tensor([[0x0000003F]], dtype=torch.int32)  # nibbles 15 and 3
    zero = unpack_zeros(packed, "gptq_v1")
    assert zero.flatten().tolist() == [0, 4, 1, 1, 1, 1, 1, 1]
    carried = (packed.view(torch.uint8) + 0x11).view(torch.int32)  # a loader that adds 1 to both nibbles of a byte
    assert unpack_zeros(carried, "gptq_v2").flatten().tolist() == [0, 5, 1, 1, 1, 1, 1, 1]


def test_unpacked_zeros_pass_through():
    zero = random_zeros(5, 3)
    assert pack_zeros(zero, "unpacked") is zero
    assert unpack_zeros(zero, "unpacked") is zero


@pytest.mark.parametrize("form", ZERO_LAYOUTS)
def test_zeros_with_leading_dimensions(form):
    zero = random_zeros(3, 16, 5)
    packed = pack_zeros(zero, form)
    assert torch.equal(unpack_zeros(packed, form), zero)
    assert torch.equal(packed[1], pack_zeros(zero[1], form))


@pytest.mark.parametrize("form", PACKED_ZEROS)
def test_strided_zeros(form):
    zero = random_zeros(2, 16, 6)
    packed = pack_zeros(zero, form)
    assert torch.equal(pack_zeros(zero.mT.contiguous().mT, form), packed)
    assert torch.equal(unpack_zeros(packed.mT.contiguous().mT, form), zero)
    wide = torch.full((*packed.shape[:-1], packed.shape[-1] + 3), 0x5A, dtype=packed.dtype)
    view = wide[..., : packed.shape[-1]].copy_(packed)
    assert torch.equal(unpack_zeros(view, form), zero)
    assert torch.equal(view, packed)
    assert torch.equal(zero, random_zeros(2, 16, 6))


def test_nibble_pairs_accept_int8_bytes():
    zero = random_zeros(4, 3)
    assert torch.equal(unpack_zeros(pack_zeros(zero, "nibble_pairs").view(torch.int8), "nibble_pairs"), zero)


@pytest.mark.parametrize("form", PACKED_ZEROS)
def test_zeros_refuse_a_ragged_n(form):
    with pytest.raises(ValueError, match=rf"zero: N is 9, must be a multiple of \d for zero_layout '{form}'"):
        pack_zeros(torch.zeros(9, 2, dtype=torch.uint8), form)


ONE = torch.ones(8, 1, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_zeros(ONE, "gptq"), r"zero_layout: got 'gptq', must be one of unpacked, gptq_v1"),
        (lambda: unpack_zeros(ONE.int(), "rnda"), r"zero_layout: got 'rnda'.*did you mean 'rdna'"),
        (lambda: pack_zeros(255 * ONE, "gptq_v1"), r"zero: largest value is 255, must be 0\.\.15"),
        (lambda: unpack_zeros(16 * ONE, "unpacked"), r"packed: largest value is 16"),
        (lambda: pack_zeros(ONE.int(), "rdna"), r"zero: got torch\.int32, must be torch\.uint8"),
        (lambda: unpack_zeros(ONE, "rdna"), r"packed: got torch\.uint8, must be torch\.int32 for zero_layout 'rdna'"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
