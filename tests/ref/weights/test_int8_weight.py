"""Int8Weight: words by hand and by the plain definition, Marlin's repack kernel thread by thread, and refusals."""

import pytest
import torch

from moeracle.ref.weights.layouts import (
    LAYOUTS8,
    PACKINGS8,
    ZERO_PACKINGS8,
    pack_codes,
    pack_plain,
    pack_zeros,
    unpack_codes,
    unpack_zeros,
)
from moeracle.ref.weights.marlin import pack_marlin, unpack_marlin
from moeracle.ref.weights.quantize import quantize_int4
from moeracle.ref.weights.weight import Int4Weight, Int8Weight

U8 = torch.uint8


def drawn(*shape: int, low: int = 0) -> torch.Tensor:
    return torch.randint(low, 256, shape, dtype=U8, generator=torch.Generator().manual_seed(8))


# Byte 3 of the last word sets its sign bit; signed bytes hold u - 128.
FOUR, EIGHT = torch.tensor([[0, 1, 127, 128]], dtype=U8), torch.tensor([[1, 2, 3, 4, 0, 128, 129, 255]], dtype=U8)


@pytest.mark.parametrize(
    ("layout", "codes", "expected"),
    [
        ("gptq", EIGHT, [[0x04030201], [0xFF818000 - (1 << 32)]]),
        ("compressed_tensors", EIGHT, [[0x04030201, 0xFF818000 - (1 << 32)]]),
        ("bytes", FOUR, [[0, 1, 127, 128]]),
        ("int8", FOUR, [[128, 129, 255, 0]]),
    ],
)
def test_words_by_hand(layout: str, codes: torch.Tensor, expected: list[list[int]]) -> None:
    packed = pack_codes(codes, layout, 8)
    assert packed.tolist() == expected
    assert torch.equal(unpack_codes(packed, layout, 8), codes)
    signed = packed.view(torch.int8) if packed.dtype == U8 else packed
    assert torch.equal(unpack_codes(signed, layout, 8), codes)


@pytest.mark.parametrize("layout", LAYOUTS8)
def test_words_by_the_plain_definition(layout: str) -> None:
    codes, packing = drawn(3, 16, 24), PACKINGS8[layout]
    lines = codes.sub(128) if packing.signed else codes
    plain = pack_plain(lines, packing.shifts)
    packed = pack_codes(codes, layout, 8)
    assert torch.equal(packed, (plain.mT if packing.transposed else plain).to(packing.dtype))
    assert packing.logical_shape(tuple(packed.shape)) == tuple(codes.shape)
    wide = torch.zeros(*packed.shape[:-1], packed.shape[-1] + 3, dtype=packed.dtype)
    wide[..., : packed.shape[-1]] = packed
    assert torch.equal(unpack_codes(wide[..., : packed.shape[-1]], layout, 8), codes)


@pytest.mark.parametrize("form", ["unpacked", *ZERO_PACKINGS8])
def test_zero_points(form: str) -> None:
    zero = drawn(2, 8, 3)
    assert torch.equal(unpack_zeros(pack_zeros(zero, form, 8), form, 8), zero)
    words = pack_zeros(torch.tensor([[0], [1], [128], [255]], dtype=U8), form, 8)
    stored = {"gptq_v1": 0xFE7F00FF - (1 << 32), "unpacked": None}.get(form, 0xFF800100 - (1 << 32))
    assert stored is None or words.flatten().tolist() == [stored]


@pytest.mark.parametrize("layout", LAYOUTS8)
@pytest.mark.parametrize("zero_layout", [None, "unpacked", *ZERO_PACKINGS8])
def test_dequantizing(layout: str, zero_layout: str | None) -> None:
    codes, zero = drawn(3, 8, 64), None if zero_layout is None else drawn(3, 8, 2)
    scale = (torch.rand(3, 8, 2, generator=torch.Generator().manual_seed(1)) + 0.5).to(torch.float16)
    w = Int8Weight.from_codes(codes, scale, zero, layout=layout, zero_layout=zero_layout or "unpacked")
    z = 128 if zero is None else zero.double().repeat_interleave(32, -1)
    exact = (codes.double() - z) * scale.double().repeat_interleave(32, -1)
    assert torch.equal(w.dequantize(torch.float64), exact)
    assert torch.equal(w.dequantize(), exact.float())  # 8 + 11 bits fit fp32
    assert (w.shape, w.E, w.G, w.middle) == ((3, 8, 64), 3, 32, 128)
    one, two = w.expert(2), w.experts([2, 0])
    assert type(one) is type(two) is Int8Weight
    assert torch.equal(one.dequantize(torch.float64), exact[2])
    assert torch.equal(two.dequantize(torch.float64), exact[[2, 0]])


def test_marlins_tiles_are_those_of_the_repack_kernel() -> None:
    N, K = 128, 32
    codes, words = drawn(N, K), torch.zeros(K // 16, 4 * N, dtype=torch.int64)
    for k_tile in range(K // 16):
        for n_tile in range(N // 64):
            for warp in range(4):
                for thread in range(32):
                    n, row = 64 * n_tile + 16 * warp + thread // 4, 16 * k_tile + 2 * (thread % 4)
                    for half, column in enumerate((n, n + 8)):
                        values = [int(codes[column, row + offset]) for offset in (0, 1, 8, 9)]
                        word = sum(values[source] << 8 * i for i, source in enumerate((0, 2, 1, 3)))
                        words[k_tile, 256 * n_tile + 8 * thread + 2 * warp + half] = word
    packed = pack_marlin(codes, 8)
    assert torch.equal(packed.long() & 0xFFFFFFFF, words)
    assert torch.equal(unpack_marlin(packed, 8), codes)


@pytest.mark.parametrize("symmetric", [True, False])
def test_quantizing(symmetric: bool) -> None:
    w = torch.randn(8, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    codes, scale, zero = quantize_int4(w, 32, symmetric=symmetric, scale_dtype=torch.float32, bits=8)
    made = Int8Weight.from_codes(codes, scale, zero, layout="bytes").dequantize(torch.float64)
    assert bool(((made - w).abs() <= scale.double().repeat_interleave(32, 1) / 2 * (1 + 2**-15)).all())
    assert int(codes.max()) > 200


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: pack_codes(FOUR, "exllama", 8), "layout: got 'exllama', which holds codes of 4 bits, must be of 8"),
        (lambda: pack_codes(FOUR, "bytes", 4), "layout: got 'bytes', which holds codes of 8 bits, must be of 4"),
        (lambda: pack_codes(FOUR, "gtpq", 8), r"layout: got 'gtpq'.*did you mean 'gptq'\?"),
        (lambda: pack_codes(FOUR, "gptq", 3), "bits: got 3, must be 4 or 8"),
        (lambda: pack_codes(FOUR[:, :3], "gptq", 8), "codes: K is 3, must be a multiple of 4 for layout 'gptq'"),
        (lambda: Int4Weight(FOUR, torch.ones(1, 1), None, "bytes", -1), "layout: got 'bytes', which holds codes of 8"),
        (
            lambda: Int8Weight(FOUR, torch.ones(1, 1), FOUR[:, :1], "bytes", -1, "rdna"),
            "zero_layout: got 'rdna', which holds codes of 4 bits, must be of 8: unpacked, gptq_v1",
        ),
    ],
)
def test_refusals_are_one_line(made, message) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        made()
    assert "\n" not in str(refused.value)
