"""Packings against words worked out by hand, the plain definition, and each other."""

import pytest
import torch

from moeracle.ref.weights.layouts import (
    INTERLEAVED,
    LAYOUTS,
    PACKINGS,
    SEQUENTIAL,
    ZERO_PACKINGS,
    pack_int4,
    pack_plain,
    pack_zeros,
    unpack_int4,
    unpack_plain,
    unpack_zeros,
)

torch.set_num_threads(1)


def row(*values):
    return torch.tensor([values], dtype=torch.uint8)


def column(*values):
    return row(*values).mT


def words(packed):
    """The container's contents as unsigned hex literals."""
    width = 0xFFFFFFFF if packed.dtype == torch.int32 else 0xFF
    return [value & width for value in packed.flatten().tolist()]


def random_codes(*shape, seed=0):
    return torch.randint(0, 16, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# Codes 0..7 and 8..15 read off their nibbles: sequential words spell them backwards; interleaved ones put the even
# codes 0 2 4 6 in the low half and the odd codes 1 3 5 7 in the high half, with the last odd one in the sign bit.
BY_HAND = [
    ("compressed_tensors", row(*range(16)), [0x76543210, 0xFEDCBA98], (1, 2)),
    ("gptq", row(*range(16)), [0x76543210, 0xFEDCBA98], (2, 1)),
    ("exllama", row(*range(16)), [0x75316420, 0xFDB9ECA8], (1, 2)),
    ("awq", column(*range(16)), [0x75316420, 0xFDB9ECA8], (1, 2)),
    ("nibble_pairs", row(*range(8)), [0x10, 0x32, 0x54, 0x76], (1, 4)),
    ("nibble_pairs", row(15, 0, 0, 15), [0x0F, 0xF0], (1, 2)),
    ("exllama", row(0, 0, 0, 0, 0, 0, 0, 15), [0xF0000000], (1, 1)),
    ("exllama", row(0, 15, 0, 0, 0, 0, 0, 0), [0x000F0000], (1, 1)),
    ("compressed_tensors", row(0, 15, 0, 0, 0, 0, 0, 0), [0x000000F0], (1, 1)),
]


@pytest.mark.parametrize(("layout", "codes", "expected", "shape"), BY_HAND)
def test_pack_by_hand(layout, codes, expected, shape):
    packed = pack_int4(codes, layout)
    assert words(packed) == expected
    assert packed.shape == shape
    assert packed.is_contiguous()
    assert torch.equal(unpack_int4(packed, layout), codes)


# Two rows (columns for awq), so that a word of one line can be told from a word of the next.
@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("exllama", [[0x11112222], [0x33334444]]),
        ("compressed_tensors", [[0x12121212], [0x34343434]]),
        ("gptq", [[0x12121212, 0x34343434]]),
        ("nibble_pairs", [[0x12] * 4, [0x34] * 4]),
    ],
)
def test_two_rows_by_hand(layout, expected):
    codes = torch.tensor([[2, 1] * 4, [4, 3] * 4], dtype=torch.uint8)
    assert pack_int4(codes, layout).tolist() == expected


def test_awq_two_columns_by_hand():
    codes = torch.tensor([[2, 4], [1, 3]] * 4, dtype=torch.uint8)  # rows alternate, K = 2
    assert pack_int4(codes, "awq").tolist() == [[0x11112222], [0x33334444]]


@pytest.mark.parametrize("shifts", [SEQUENTIAL, INTERLEAVED])
def test_plain_definition_places_each_code_at_its_shift(shifts):
    for r, shift in enumerate(shifts):
        one = torch.zeros(8, dtype=torch.uint8)
        one[r] = 15
        assert pack_plain(one, shifts).tolist() == [15 << shift]


def plain(codes, packing):
    """pack_int4 by the plain definition."""
    if packing.signed:
        codes = ((codes.short() - 8) & (255 if len(packing.shifts) == 1 else 15)).to(torch.uint8)
    lines = codes if packing.along == "K" else codes.mT
    packed = pack_plain(lines, packing.shifts)
    return (packed.mT if packing.transposed else packed).to(packing.dtype)


ALL_PACKINGS = [*PACKINGS.items(), *((f"zero {name}", packing) for name, packing in ZERO_PACKINGS.items())]


@pytest.mark.parametrize(("name", "packing"), ALL_PACKINGS)
def test_fast_equals_plain_for_every_nibble_in_every_position(name, packing):
    pack, unpack = (pack_zeros, unpack_zeros) if name.startswith("zero ") else (pack_int4, unpack_int4)
    name = name.removeprefix("zero ")
    codes = random_codes(256, 8)  # background; row 16r+u has u at position r
    codes[:128] = 0
    r, u = torch.arange(128) // 16, torch.arange(128) % 16
    codes[torch.arange(128), r] = u.to(torch.uint8)
    codes[torch.arange(128, 256), r] = u.to(torch.uint8)
    codes = codes if packing.along == "K" else codes.mT
    stored = (codes - 1) & 15 if name == "gptq_v1" else codes
    packed = pack(codes, name)
    assert torch.equal(packed, plain(stored, packing))
    assert torch.equal(unpack(packed, name), codes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unpack_of_arbitrary_words_equals_plain(layout):
    packing = PACKINGS[layout]
    generator = torch.Generator().manual_seed(1)
    shape = (3, 64, 96)
    if packing.dtype == torch.int32:
        packed = torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)
    else:
        packed = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    if len(packing.shifts) == 1:  # of a byte that is no q in -8..7 nothing is promised
        packed = ((packed & 15).short() - 8).to(torch.uint8)
    lines = unpack_plain(packed.mT if packing.transposed else packed, packing.shifts)
    lines = (lines + 8) & 15 if packing.signed else lines
    codes = lines.mT if packing.along == "N" else lines
    assert torch.equal(unpack_int4(packed, layout), codes)
    assert torch.equal(pack_int4(codes, layout), packed)


def test_all_65536_half_words_unpack_like_plain():
    half = torch.arange(65536).reshape(256, 256)
    for word in (half, half << 16, half * 65537):
        packed = word.to(torch.int32)
        assert torch.equal(unpack_int4(packed, "exllama"), unpack_plain(packed, INTERLEAVED))
        assert torch.equal(unpack_int4(packed, "compressed_tensors"), unpack_plain(packed, SEQUENTIAL))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,), (1,)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_leading_dimensions(layout, lead):
    codes = random_codes(*lead, 16, 24)
    packed = pack_int4(codes, layout)
    assert packed.shape == PACKINGS[layout].packed_shape(tuple(codes.shape))
    assert PACKINGS[layout].logical_shape(tuple(packed.shape)) == tuple(codes.shape)
    back = unpack_int4(packed, layout)
    assert back.is_contiguous()
    assert torch.equal(back, codes)
    for e in range(lead[0] if lead else 0):
        assert torch.equal(packed[e], pack_int4(codes[e], layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_inputs(layout):
    codes = random_codes(3, 16, 24)
    packed = pack_int4(codes, layout)
    wide = torch.full((*packed.shape[:-1], packed.shape[-1] + 32), 0x5A, dtype=packed.dtype)
    wide[..., : packed.shape[-1]] = packed
    padded = wide[..., : packed.shape[-1]]
    assert not padded.is_contiguous()
    assert torch.equal(unpack_int4(padded, layout), codes)
    assert torch.equal(unpack_int4(packed.mT.contiguous().mT, layout), codes)
    assert torch.equal(unpack_int4(packed.flip(0).flip(0), layout), codes)
    expanded = packed[:1].expand(4, -1, -1)
    assert torch.equal(unpack_int4(expanded, layout), codes[:1].expand(4, -1, -1))
    # Codes that are transposed, every other row, and cut out of a buffer at an odd byte.
    assert torch.equal(pack_int4(codes.mT.contiguous().mT, layout), packed)
    assert torch.equal(pack_int4(codes.repeat_interleave(2, 1)[:, ::2], layout), packed)
    odd = torch.cat([torch.zeros(1, dtype=torch.uint8), codes.flatten()])[1:].view(3, 16, 24)
    assert torch.equal(pack_int4(odd, layout), packed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_word_with_an_odd_stride(layout):
    codes = random_codes(*((1, 8) if PACKINGS[layout].along == "K" else (8, 1)))
    packed = pack_int4(codes, layout)
    buffer = torch.zeros(64, dtype=packed.dtype)
    view = buffer.as_strided(tuple(packed.shape), (7, 5)).copy_(packed)
    assert torch.equal(unpack_int4(view, layout), codes)
    codes_view = torch.zeros(512, dtype=torch.uint8).as_strided(tuple(codes.shape), (31, 31)).copy_(codes)
    assert torch.equal(pack_int4(codes_view, layout), packed)


def test_more_codes_than_one_chunk():
    codes = random_codes(3, 1025, 1024)
    for layout in ("exllama", "gptq", "nibble_pairs"):
        assert torch.equal(unpack_int4(pack_int4(codes, layout), layout), codes)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty(layout, shape):
    codes = torch.zeros(shape, dtype=torch.uint8)
    assert unpack_int4(pack_int4(codes, layout), layout).shape == shape


def test_nibble_pairs_accepts_int8_bytes():
    codes = random_codes(4, 16)
    assert torch.equal(unpack_int4(pack_int4(codes, "nibble_pairs").view(torch.int8), "nibble_pairs"), codes)


def test_inputs_are_not_written():
    codes = random_codes(8, 8)
    before = codes.clone()
    for layout in LAYOUTS:
        packed = pack_int4(codes, layout)
        kept = packed.clone()
        unpack_int4(packed, layout)
        assert torch.equal(packed, kept)
    assert torch.equal(codes, before)


U8 = torch.uint8
REFUSED = [
    (lambda: pack_int4(row(*range(8)), "exlama"), r"layout: got 'exlama'.*did you mean 'exllama'\?"),
    (lambda: unpack_int4(torch.zeros(1, 1, dtype=torch.int32), "gtpq"), r"layout: got 'gtpq'.*did you mean 'gptq'\?"),
    (lambda: pack_int4(row(*[16] * 8), "exllama"), r"codes: largest value is 16, must be 0\.\.15"),
    (
        lambda: pack_int4(torch.zeros(1, 8, dtype=torch.int32), "exllama"),
        r"codes: got torch\.int32, must be torch\.uint8",
    ),
    (lambda: pack_int4(torch.zeros(8, dtype=U8), "exllama"), r"codes: got shape \(8,\)"),
    (lambda: pack_int4(torch.zeros(8, 12, dtype=U8), "exllama"), r"codes: K is 12, must be a multiple of 8 for layout"),
    (lambda: pack_int4(torch.zeros(8, 12, dtype=U8), "gptq"), r"codes: K is 12, must be a multiple of 8"),
    (
        lambda: pack_int4(torch.zeros(12, 8, dtype=U8), "awq"),
        r"codes: N is 12, must be a multiple of 8 for layout 'awq'",
    ),
    (lambda: pack_int4(torch.zeros(8, 9, dtype=U8), "nibble_pairs"), r"codes: K is 9, must be a multiple of 2"),
    (
        lambda: unpack_int4(torch.zeros(8, 1, dtype=torch.int64), "awq"),
        r"packed: got torch\.int64, must be torch\.int32",
    ),
    (lambda: unpack_int4(torch.zeros(8, 1, dtype=torch.int32), "nibble_pairs"), r"must be torch\.uint8"),
    (lambda: unpack_int4(torch.zeros(8, dtype=torch.int32), "awq"), r"packed: got shape \(8,\)"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
