"""Tiles of the Hopper kernels: what fits, what a table holds, what an untuned shape gets, which schedules they keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moeracle.kernels import tuned
from moeracle.kernels.hopper.cases import split_schedule
from moeracle.kernels.hopper.moe_w4a16 import most_blocks
from moeracle.kernels.hopper.prepared_weight import PreparedWeight
from moeracle.kernels.hopper.tiles.candidates import candidates
from moeracle.kernels.hopper.tiles.kinds import WHOLE_X
from moeracle.kernels.hopper.tiles.layers import (
    OP,
    SHARED,
    Direct,
    Duo,
    Few,
    Layer,
    Ring,
    Stream,
    from_fields,
    launched,
    to_fields,
)
from moeracle.ref.bitmodels.schedule import Schedule


def weight(N: int, K: int) -> PreparedWeight:
    words = torch.empty(1, -(-N // 64) * 4, -(-K // 128) * 2, 32, 4, dtype=torch.int32, device="meta")
    return PreparedWeight(words, words, None, N, K, 32, False, torch.bfloat16)


@pytest.mark.parametrize(("N", "K"), [(1024, 2048), (192, 96), (2048, 768), (64, 64), (320, 8192), (5760, 2880)])
@pytest.mark.parametrize("m", [8, 16, 32, 64, 128])
def test_a_fitted_tile_divides_the_weight_and_fits_into_shared_memory(N, K, m):
    w = weight(N, K)
    rows = w.slabs * 16
    for block_n in (64, 128, 256):
        tiles = [Ring(m, block_n, 128, 8, 8), Ring(m, block_n, 64, 4, 4), Few(m, block_n, 4, 8)]
        for tile in (*tiles, Direct(m, block_n, 256, 4, 8), Stream(m, block_n, 8), Duo(m, block_n, 128, 9)):
            fit = tile.fit(w)
            assert rows % fit.block_n == 0
            assert fit == fit.fit(w)
            if isinstance(fit, Ring):
                assert fit.num_stages >= 2
                assert fit.num_stages * fit.block_k * (fit.block_n // 2 + 2 * m) <= SHARED
                assert fit.num_stages - 1 <= w.padded_k // fit.block_k  # the kernel fills all but one unconditionally
            elif isinstance(fit, Direct):
                assert w.padded_k % fit.block_k == 0
                assert fit.num_stages >= 2
                assert fit.num_stages * fit.block_k * 2 * m <= SHARED
                assert fit.num_stages - 1 <= w.padded_k // fit.block_k
                assert fit.block_n % (16 * fit.num_warps) == 0
            elif isinstance(fit, Duo):
                assert fit.block_n >= 128  # 64 rows each of two warpgroups
                assert fit.num_stages >= 2
                pairs = 2 * (fit.block_n // 16) * 32 * -(-fit.block_k // w.G)  # scales and zero points
                assert fit.num_stages * (fit.block_k * (fit.block_n // 2 + 2 * m) + pairs) <= SHARED
            elif isinstance(fit, Stream):
                assert w.padded_k // 64 % fit.depth == 0
                assert m * w.padded_k * 2 <= SHARED
            else:
                steps = w.padded_k // fit.split_k / 64
                assert steps == int(steps)
                assert steps % fit.depth == 0
                assert fit.split_k == 1 or w.padded_k == K
                assert m * w.padded_k * 2 <= WHOLE_X


@pytest.mark.parametrize("each", [0.03, 0.5, 1.0, 4.0, 8.0, 16.0, 32.0, 128.0, 1000.0])
def test_tuning_tries_tiles_of_every_kind_that_fit(each):
    tiles = list(candidates(each))
    assert {tile.block_m for tile in tiles} & {8, 16, 32, 64, 128}
    for tile in tiles:
        assert not getattr(tile, "max_registers", 0) % 8  # what registers are handed out in
        assert getattr(tile, "least", 0) <= tile.block_m
        for w in (weight(1024, 2048), weight(2048, 768)):
            assert tile.fit(w).fit(w) == tile.fit(w)
            assert tile.fit(w).schedule()


@pytest.mark.parametrize("G", [16, 32, 64, 128, 192, 384, 768])
def test_no_step_of_duo_needs_more_scales_than_it_copies(G):
    """A step holds block_k / G groups of whole columns, or lies in one."""
    for m in (32, 64, 128):
        fit = Duo(m, 256, 128, 4).fit(replace(weight(1024, 768), G=G))
        assert fit.block_k % G == 0 or G % fit.block_k == 0


@pytest.mark.parametrize("K", [64, 96, 128, 256, 384, 768, 2048])
def test_the_declared_split_is_the_one_that_is_launched(K):
    tile = Few(8, 64, 4, 4).fit(weight(1024, K))
    declared = split_schedule(type("Case", (), {"K": K})())
    assert tile.schedule() == declared
    schedule = Schedule.parse(declared)
    assert [span[0][0] for span in schedule.spans(K)] == [p * K // tile.split_k for p in range(tile.split_k)]


def test_a_layer_goes_through_a_table_and_back():
    layer = Layer(Few(8, 64, 4, 2), Ring(8, 128, 64, 5, 4))
    assert from_fields(to_fields(layer)) == layer
    layer = Layer(Direct(16, 128, 256, 3, 8, 8, 64), Stream(16, 64, 8, 5, 96))
    assert from_fields(to_fields(layer)) == layer
    layer = Layer(Duo(64, 256, 128, 4, 32), Duo(64, 256, 64, 8))
    assert from_fields(to_fields(layer)) == layer
    with pytest.raises(ValueError, match="must be one of ring, direct, few, stream, duo"):
        from_fields({"gemm1": {"kind": "rings"}, "gemm2": {}})
    with pytest.raises(ValueError, match="must be one for both"):
        Layer(Few(8), Ring(16))


@pytest.mark.parametrize(("rows", "E", "B"), [(8, 256, 8), (300, 7, 16), (5, 5, 64), (4096, 3, 32)])
def test_no_routing_fills_more_blocks_than_are_launched(rows, E, B):
    g = torch.Generator().manual_seed(rows)
    for power in (0.0, 1.0, 4.0):
        ids = torch.multinomial(torch.arange(1, E + 1).double() ** power, rows, replacement=True, generator=g)
        assert int(((torch.bincount(ids, minlength=E) + B - 1) // B).sum()) <= most_blocks(rows, E, B)
    worst = [1] * (min(rows, E) - 1) + [rows - min(rows, E) + 1]
    assert sum(-(-c // B) for c in worst) <= most_blocks(rows, E, B)


@pytest.mark.parametrize("path", sorted(tuned.FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_every_tuned_layer_can_be_read(path):
    for key, rows in tuned.load(path.stem).items():
        if key[0] == OP:
            for row in rows:
                from_fields(row["tile"])


@pytest.mark.parametrize("m", [16, 64, 128])
def test_weights_that_duo_was_not_run_on_take_another_tile(m):
    small, tile = weight(1024, 2048), Duo(m, 256, 64 if m == 128 else 128, 4)
    large = replace(small, words=torch.empty(2**16 + 1, 64, 4, 32, 4, dtype=torch.int32, device="meta"))
    assert launched(tile, small) == tile
    other = launched(tile, large)
    assert (type(other), other.block_m, other.schedule()) == (Direct, m, tile.schedule())
    assert launched(Stream(8, 64, 4), large) == Stream(8, 64, 4)
