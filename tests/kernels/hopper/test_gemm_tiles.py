"""Which tile one Hopper GEMM takes by itself: the tuned layer's, for the blocks that it is given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moeracle.kernels import tuned
from moeracle.kernels.hopper.moe_w4a16 import blocks_to_launch, most_blocks
from moeracle.kernels.hopper.prepared_weight import PreparedWeight
from moeracle.kernels.hopper.tiles.gemm import WIDEST, grouped_tile, padded_tile, unsplit
from moeracle.kernels.hopper.tiles.layers import OP, from_fields
from moeracle.kernels.hopper.tiles.model import one_gemm
from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size
from moeracle.kernels.triton.schedules import WGMMA

GPU = torch.device("cuda", 0)
SHAPES = [(256, 1024, 2048, 128), (128, 1536, 2048, 32)]  # E, N = 2I, K = H, G of layers that the table holds


def weight(N: int, K: int, G: int) -> PreparedWeight:
    words = torch.empty(1, -(-N // 64) * 4, -(-K // 128) * 2, 32, 4, dtype=torch.int32, device="meta")
    return PreparedWeight(words, words, None, N, K, G, False, torch.bfloat16)


@pytest.fixture(autouse=True)
def _on_an_h200(monkeypatch):
    monkeypatch.setattr(tuned, "places", lambda device: ("nvidia-h200", "sm_90"))
    monkeypatch.setattr(tuned, "_UNTUNED", {})


def gemms(N, K, G):
    return ("gemm1", weight(N, K, G)), ("gemm2", weight(K, N // 2, G))


def narrow(tile):
    """The tile for blocks of 8 that one for 16 was made of."""
    cap = getattr(tile, "max_registers", 0)
    return replace(tile, block_m=8, **({"max_registers": cap - 16} if cap else {}))


@pytest.mark.parametrize(("E", "N", "K", "G"), SHAPES)
def test_rows_in_expert_order_take_the_tuned_layers_tile(E, N, K, G):
    table = tuned.load("nvidia-h200")[OP, N, K, E, G, "bf16"]
    for which, w in gemms(N, K, G):
        for row in table:
            tile = getattr(from_fields(row["tile"]), which)
            got = grouped_tile(round(row["rows_per_expert"] * E), E, w, GPU)
            capped = tile.block_m == 128 and getattr(tile, "max_registers", 0)
            assert got == (WIDEST if which == "gemm1" and capped else unsplit(tile))
            assert got.fit(w).schedule() == WGMMA
    assert not tuned.untuned()


@pytest.mark.parametrize(("E", "N", "K", "G"), SHAPES)
@pytest.mark.parametrize("T", [1, 3, 64, 100, 4096])
@pytest.mark.parametrize("B", [1, 5, 8, 16, 24, 64, 100, 128, 512])
def test_a_block_is_one_tile(E, N, K, G, T, B):
    table = tuned.load("nvidia-h200")[OP, N, K, E, G, "bf16"]
    held = {getattr(from_fields(row["tile"]), which) for row in table for which in ("gemm1", "gemm2")}
    for _, w in gemms(N, K, G):
        tile = padded_tile(T * 8, E, w, GPU, B)
        assert tile.block_m == max(8, min(128, 1 << (B - 1).bit_length()))
        assert {tile, narrow(tile)} & {unsplit(t) for t in held} or tile == WIDEST
        assert tile.fit(w).schedule() == WGMMA


@pytest.mark.parametrize(("N", "K", "tokens"), [(1024, 2048, (1, 2)), (2048, 512, (1, 2, 4, 16, 64))])
def test_few_programs_keep_their_tile_in_blocks_of_16(N, K, tokens):
    """A tile made for more rows has fewer programs: 64 of them at T = 1, on 132 multiprocessors."""
    w = weight(N, K, 128)
    for T in tokens:
        assert narrow(padded_tile(8 * T, 256, w, GPU, 16)) == grouped_tile(8 * T, 256, w, GPU)


@pytest.mark.parametrize("B", [32, 64])
def test_of_the_tiles_for_these_blocks_the_nearest_is_taken(B):
    w = weight(1024, 2048, 128)
    table = tuned.load("nvidia-h200")[OP, 1024, 2048, 256, 128, "bf16"]
    made = {row["rows_per_expert"]: from_fields(row["tile"]).gemm1 for row in table}
    made = {rows: tile for rows, tile in made.items() if tile.block_m == B}
    assert made
    for rows, tile in made.items():
        assert padded_tile(round(rows * 256), 256, w, GPU, B) == tile
    assert padded_tile(8, 256, w, GPU, B) == made[min(made)]
    assert padded_tile(8 * 4096, 256, w, GPU, B) == made[max(made)]


@pytest.mark.parametrize(("N", "K"), [(1792, 3072), (3072, 896), (128, 96), (14336, 4096), (4096, 7168)])
@pytest.mark.parametrize("rows", [1, 40, 400, 4000, 10**6])
def test_a_shape_that_no_table_holds_has_tiles_and_is_noted(N, K, rows):
    w = weight(N, K, 32)
    assert 8 <= grouped_tile(rows, 16, w, GPU).fit(w).block_m <= 128
    assert [f"N={N} K={K} E=16 G=32" in line for line in tuned.untuned()] == [True]
    for B in (8, 16, 32, 64, 128, 300):
        tile = padded_tile(rows, 16, w, GPU, B)
        assert tile.block_m == min(B, 128)
        assert tile.fit(w).block_m == tile.block_m
        assert tile.fit(w).schedule() == WGMMA


def test_rows_far_from_every_bucket_take_what_the_model_chooses():
    w = weight(1024, 2048, 128)
    other = weight(1024, 2048, 64)  # another group
    assert grouped_tile(1, 256, other, GPU) == one_gemm(1, 256, 1024, 2048, 64)
    many = 256 * 4096
    assert grouped_tile(many, 256, w, GPU) == one_gemm(many, 256, 1024, 2048, 128)
    assert padded_tile(many, 256, w, GPU, 64) == one_gemm(many, 256, 1024, 2048, 128, 64)


def test_without_a_gpu_there_is_no_table(monkeypatch):
    monkeypatch.setattr(tuned, "places", lambda device: ())
    assert grouped_tile(8, 256, weight(1024, 2048, 128), torch.device("cpu")) == one_gemm(8, 256, 1024, 2048, 128)
    assert not tuned.untuned()


@pytest.mark.parametrize("B", [1, 2, 8, 16, 64])
@pytest.mark.parametrize(("T", "k", "E", "ranks"), [(1, 8, 256, 1), (9, 2, 4, 1), (40, 3, 6, 2), (0, 2, 4, 1)])
def test_every_block_with_rows_is_launched(T, k, E, ranks, B):
    g = torch.Generator().manual_seed(T)
    for spread in (1, E):
        ids = torch.randint(0, spread, (T, k), generator=g, dtype=torch.int32)
        blocks = moe_align_block_size(ids, B, E, torch.arange(E) // ranks if ranks > 1 else None)
        launched = blocks_to_launch(blocks[0].numel(), blocks[1].numel(), T * k, E // ranks, B)
        assert int(blocks[2]) <= launched * B
        assert launched <= most_blocks(T * k, E, B)


def test_of_an_alignment_made_otherwise_every_block_is_launched():
    """Its blocks may hold nothing but padding, and be followed by blocks that do not."""
    assert blocks_to_launch(64, 1, 64, 2, 64) == 1
    assert blocks_to_launch(8 + 4 * 15, 5, 8, 4, 16) == 4
    for num_ids, num_blocks in ((8 + 4 * 15 + 1, 5), (8 + 3 * 15, 4), (8 + 4 * 15, 9), (4, 1)):
        assert blocks_to_launch(num_ids, num_blocks, 8, 4, 16) == num_blocks
