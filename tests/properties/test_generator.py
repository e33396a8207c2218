"""The generator: the same words everywhere, streams that do not touch each other, roundings known by hand."""

import numpy as np
import pytest
import torch

from moeracle.properties.common.generator import (
    FORMATS,
    Stream,
    integer_bits,
    power_bits,
    round_bits,
    stream_key,
    to_tensor,
)
from moeracle.ref.rounding import round_to

BF16, FP16, FP32 = FORMATS["bf16"], FORMATS["fp16"], FORMATS["fp32"]


def test_stream_keys_are_fnv1a() -> None:
    assert stream_key("") == 0xCBF29CE484222325
    assert stream_key("a") == 0xAF63DC4C8601EC8C
    assert stream_key("foobar") == 0x85944171F73967E8


def test_raw_words_are_pinned() -> None:
    assert [hex(w) for w in Stream(7, "x").raw(3).tolist()] == [
        "0x53ec3ab92e7367f",
        "0x81dfddcc441f23ff",
        "0x394536fa7a8c539a",
    ]
    assert [hex(w) for w in Stream(2**64 - 1, "w13.codes").raw(2).tolist()] == [
        "0xd743689dded67a9b",
        "0x3c941dde3067c8d1",
    ]


def test_reading_in_pieces_reads_the_same_words() -> None:
    whole = Stream(1, "x").raw(7)
    pieces = Stream(1, "x")
    assert np.array_equal(np.concatenate([pieces.raw(3), pieces.raw(0), pieces.raw(4)]), whole)


def test_streams_and_seeds_are_independent() -> None:
    words = {(seed, name): Stream(seed, name).raw(4).tobytes() for seed in (0, 1) for name in ("x", "y", "scale")}
    assert len(set(words.values())) == 6


@pytest.mark.parametrize(("width", "expected"), [(8, [0x88, 0x77, 0x66]), (16, [0x7788, 0x5566, 0x3344])])
def test_narrow_words_come_least_significant_first(
    monkeypatch: pytest.MonkeyPatch, width: int, expected: list[int]
) -> None:
    monkeypatch.setattr(Stream, "raw", lambda self, count: np.full(count, 0x1122334455667788, np.uint64))
    assert Stream(0, "x").bits((3,), width).tolist() == expected


def test_below_reaches_every_value_evenly() -> None:
    values = Stream(3, "n").below((7000,), 7)
    counts = np.bincount(values, minlength=7)
    assert len(counts) == 7
    assert abs(counts - 1000).max() < 150  # five standard deviations


def test_permutation_is_one() -> None:
    order = Stream(5, "p").permutation(100)
    assert sorted(order) == list(range(100))
    assert order.tolist() != list(range(100))


def test_normal_is_bell_shaped_on_a_grid() -> None:
    values = Stream(2, "n").normal((100, 1000)).astype(np.float64)
    assert np.array_equal(values * 2**15, np.round(values * 2**15))
    assert np.abs(values).max() <= 4
    assert abs(values.mean()) < 0.02
    assert abs(values.var() - 4 / 3) < 0.02
    assert abs((np.abs(values) < 1.1547).mean() - 0.667) < 0.01  # one standard deviation: 66.7 % for four uniforms


def test_fine_normal_seldom_repeats() -> None:
    coarse, fine = (np.unique(Stream(2, "n").normal((20000,), fine=f)).size for f in (False, True))
    assert fine > 19900 > coarse


def test_rounding_to_bf16_by_hand() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0, 3.0, 2.0**-133, 2.0**-134], np.float32)
    assert round_bits(values, BF16).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x8000, 0x4040, 0x0001, 0x0000]


def test_rounding_to_fp16_by_hand() -> None:
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, 65504.0, 2.0**-24, 2.0**-25, -(2.0**-14)], np.float32)
    assert round_bits(values, FP16).tolist() == [0x3C00, 0x3C02, 0x7BFF, 0x0001, 0x0000, 0x8400]


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_rounding_agrees_with_one_correct_rounding(name: str) -> None:
    words = Stream(11, "floats").bits((20000,), 32)
    values = words.view(np.float32)
    values = values[np.abs(values) < 60000]  # finite in both formats; subnormals stay
    expected = round_to(torch.from_numpy(values).double(), FORMATS[name].torch_dtype)
    assert torch.equal(to_tensor(round_bits(values, FORMATS[name]), FORMATS[name]), expected)


def test_powers_and_integers_by_hand() -> None:
    assert power_bits(np.array([0, 1, -126]), BF16).tolist() == [0x3F80, 0x4000, 0x0080]
    assert power_bits(-14, FP16).tolist() == 0x0400
    assert power_bits(3, FP32).tolist() == 0x41000000
    assert integer_bits(np.array([-3, 0, 255]), 0, BF16).tolist() == [0xC040, 0x0000, 0x437F]
    assert integer_bits(np.array([1]), -24, FP16).tolist() == [0x0001]


@pytest.mark.parametrize("fmt", [BF16, FP16, FP32])
def test_to_tensor_keeps_bits_and_is_writable(fmt) -> None:
    bits = np.broadcast_to(power_bits(0, fmt), (2, 3))
    tensor = to_tensor(bits, fmt)
    tensor[0, 0] = 2
    assert tensor.dtype == fmt.torch_dtype
    assert tensor.tolist() == [[2, 1, 1], [1, 1, 1]]
