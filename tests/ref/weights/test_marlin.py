"""Marlin's tiles: each word's codes by hand, and back; vLLM's own repack kernel, thread by thread, in Python."""

from __future__ import annotations

import pytest
import torch

from moeracle.ref.weights.layouts import pack_int4
from moeracle.ref.weights.marlin import (
    marlin_bias,
    marlin_scales,
    marlin_zeros,
    pack_marlin,
    unpack_marlin,
    unpack_marlin_scales,
    unpack_marlin_zeros,
)


def repacked(gptq: torch.Tensor, N: int, K: int) -> torch.Tensor:
    """The repack kernel's loop: four warps of 32 threads a tile, from `gptq` words [K/8, N]."""
    out = torch.zeros(K // 16, 2 * N, dtype=torch.int64)
    words = gptq.long() & 0xFFFFFFFF
    for k_tile in range(K // 16):
        for n_tile in range(N // 64):
            for warp in range(4):
                for thread in range(32):
                    n, row = 64 * n_tile + 16 * warp + thread // 4, 2 * (thread % 4)
                    values = []
                    for column in (n, n + 8):
                        for offset in (0, 1, 8, 9):
                            k = row + offset
                            values.append(int(words[2 * k_tile + k // 8, column]) >> 4 * (k % 8) & 15)
                    word = sum(values[source] << 4 * i for i, source in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
                    out[k_tile, 128 * n_tile + 4 * thread + warp] = word
    return torch.where(out >= 1 << 31, out - (1 << 32), out).to(torch.int32)


def codes_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 16, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(("N", "K"), [(64, 16), (128, 48)])
def test_the_words_are_those_of_the_repack_kernel(N: int, K: int) -> None:
    codes = codes_of(N, K)
    words = pack_marlin(codes)
    assert torch.equal(words, repacked(pack_int4(codes, "gptq"), N, K))
    assert torch.equal(unpack_marlin(words), codes)
    assert not torch.equal(unpack_marlin(words.roll(1, -1)), codes)


def test_experts_and_strided_words() -> None:
    codes = codes_of(3, 64, 32)
    words = pack_marlin(codes)
    assert words.shape == (3, 2, 128)
    assert torch.equal(words[1], pack_marlin(codes[1]))
    wide = torch.zeros(3, 2, 160, dtype=torch.int32)
    wide[..., :128] = words
    assert torch.equal(unpack_marlin(wide[..., :128]), codes)


@pytest.mark.parametrize("groups", [1, 4])
def test_scales_and_zero_points_and_back(groups: int) -> None:
    scale = torch.arange(128 * groups).reshape(128, groups).float()
    stored = marlin_scales(scale)
    assert stored.shape == (groups, 128)
    # Thread 0's first columns: 0, 8, 16, … with groups; 0, 1, 8, 9, … with one.
    first = [0, 8, 16, 24] if groups > 1 else [0, 1, 8, 9]
    assert torch.equal(stored[0, :4], scale[first, 0])
    assert torch.equal(unpack_marlin_scales(stored), scale)
    zero = codes_of(128, groups)
    words = marlin_zeros(zero)
    assert words.shape == (groups, 16)
    # Of scales' order 0, 8, 16, …, 56 the even places come first.
    assert [int(words[0, 0]) >> 4 * i & 15 for i in range(8)] == zero[[0, 16, 32, 48, 8, 24, 40, 56], 0].tolist()
    assert torch.equal(unpack_marlin_zeros(words), zero)
    assert torch.equal(marlin_bias(scale[:, 0]), marlin_scales(scale[:, :1])[0])


def test_what_is_no_whole_tile_is_refused() -> None:
    for codes in (codes_of(32, 16), codes_of(64, 8)):
        with pytest.raises(ValueError, match=r"must be multiples of 64 and 16 for Marlin's tiles"):
            pack_marlin(codes)
    with pytest.raises(ValueError, match=r"got torch.int64, must be torch.int32"):
        unpack_marlin(torch.zeros(1, 128, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got 64 a row, must be a multiple of 128"):
        unpack_marlin(torch.zeros(1, 64, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"N: got 32, must be a multiple of 64"):
        marlin_scales(torch.zeros(32, 2))
