"""Tiles on gfx1151 for layers that no table holds: as wide as experts have rows, and only from the compiled ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from moeracle.kernels import tuned
from moeracle.kernels.bench.cases import MODELS, SHAPES
from moeracle.kernels.triton.tiles import GFX11, Tile, tile_for
from moeracle.kernels.tuned import gfx_tiles

LAYERS = SHAPES | MODELS


@pytest.fixture
def on_gfx1151(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(tuned, "places", lambda device: ("radeon-8060s-graphics", "gfx1151"))
    monkeypatch.setattr(tuned, "lookup", lambda *args: None)  # whatever the table itself holds


@pytest.mark.parametrize("name", LAYERS)
def test_blocks_grow_with_the_rows_of_an_expert(on_gfx1151, name):
    s = LAYERS[name]
    allowed = {Tile(*row[:-1]) for row in gfx_tiles.menu(s.G)}
    assert len(allowed) >= 2
    for N, K in ((2 * s.I, s.H), (s.H, s.I)):
        w = SimpleNamespace(E=s.E, N=N, K=K, G=s.G, zero_kind=0)
        tiles = [
            tile_for("grouped_gemm", T * s.k, w, torch.bfloat16, torch.device("cuda", 0)) for T in (4, 64, 512, 4096)
        ]
        assert set(tiles) <= allowed
        rows = [tile.block_m for tile in tiles]
        assert rows == sorted(rows)
        assert (rows[0], rows[-1]) == (16, 64)


def test_what_the_table_has_no_tile_for_takes_the_default(on_gfx1151, monkeypatch):
    w = SimpleNamespace(E=8, N=256, K=256, G=64, zero_kind=0)
    assert gfx_tiles.menu(64) == []
    assert tile_for("grouped_gemm", 64, w, torch.bfloat16, torch.device("cuda", 0)) == GFX11
    monkeypatch.setattr(tuned, "places", lambda device: ("gfx1100",))
    w.G = 128
    assert tile_for("grouped_gemm", 4096, w, torch.bfloat16, torch.device("cuda", 0)) == GFX11
