"""The model that chooses tiles: how far its choices are from the best measured, of layers it was not fitted to, too."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from moeracle.kernels.bench.cases import MODELS, SHAPES
from moeracle.kernels.common.machine_model import Machine, blocks_and_columns, microseconds
from moeracle.kernels.hopper.tiles import linear, model
from moeracle.kernels.hopper.tiles.kinds import WHOLE_X, Few, sizes_of
from moeracle.kernels.hopper.tiles.layers import Layer, model_layer
from moeracle.kernels.tune import fit

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "hardware" / "h200"
TOKENS = (1, 2, 3, 4, 8, 16, 32, 64, 100, 128, 256, 512, 1024, 2048, 4096)


@pytest.fixture(scope="module")
def groups():
    return fit.groups_of(json.loads((RECORDED / "tile_sweep.json").read_text()))


def good(found):
    return mean(found) < 1.05 and max(found) < 1.25 and sum(one <= 1.05 for one in found) > 0.65 * len(found)


def regrets(groups, machine, dense):
    return [group.regret(machine) for group in groups if (group.which == fit.DENSE) == dense]


@pytest.mark.parametrize(("dense", "least"), [(False, 100), (True, 40)])
def test_what_is_chosen_is_near_the_best_that_was_measured(groups, dense, least):
    found = regrets(groups, linear.DENSE if dense else model.H200, dense)
    assert len(found) >= least
    assert good(found), sorted(found)


def test_the_few_best_of_the_model_hold_one_that_is_within_5_percent(groups):
    """What a search at load time has to choose from: the model's six best and the best of each block_m."""
    short = []
    for group in groups:
        if group.which != fit.DENSE:
            order = sorted(range(len(group.works)), key=lambda i: microseconds(group.works[i], model.H200))
            first = {group.tiles[i].block_m: i for i in reversed(order)}
            if min(group.us[i] for i in {*order[:6], *first.values()}) > 1.05 * group.best:
                short.append((group.name, group.which, group.T))
    assert len(short) <= 5, short


def test_layers_that_a_fit_has_not_seen_are_chosen_for_nearly_as_well(groups):
    without = json.loads((RECORDED / "tile_fits.json").read_text())
    found = []
    for name, constants in without.items():
        own = [group for group in groups if group.name == name]
        assert own, name
        found += [group.regret(Machine(**constants)) for group in own]
    assert {group.name for group in groups} == set(without)
    assert mean(found) < 1.07
    assert sorted(found)[int(0.9 * len(found))] < 1.2


def test_a_model_that_knows_nothing_chooses_badly(groups):
    """What the bounds above are worth: no memory to wait for, endless tensor cores, or one slow kind do not pass."""
    for wrong in (Machine(latency=0.01, memory=1e9), Machine(product=1e12), Machine(issue_few=10.0)):
        assert not good(regrets(groups, wrong, dense=False)), wrong


@pytest.mark.parametrize("name", [*SHAPES, *MODELS])
def test_every_layer_gets_tiles_that_divide_its_weights(name):
    s = (SHAPES | MODELS)[name]
    up, down = sizes_of(2 * s.I, s.H, s.G), sizes_of(s.H, s.I, s.G)
    for T in TOKENS:
        layer = model_layer(T * s.k, s.E, up)
        assert isinstance(layer, Layer)
        for tile, w in ((layer.gemm1, up), (layer.gemm2, down)):
            assert tile == tile.fit(w)
            assert w.slabs * 16 % tile.block_n == 0
            assert tile.schedule()
            assert not isinstance(tile, Few) or tile.block_m * w.padded_k * 2 <= WHOLE_X


@pytest.mark.parametrize("rows", [1, 7, 100, 2048, 30000, 10**6])
@pytest.mark.parametrize(
    ("E", "N", "K", "G"), [(1, 64, 64, 32), (64, 192, 96, 32), (8, 5760, 2880, 32), (256, 64, 8192, 8192)]
)
def test_any_shape_has_a_tile_for_any_block(rows, E, N, K, G):
    for block_m in (None, 8, 16, 32, 64, 128):
        tile = model.one_gemm(rows, E, N, K, G, block_m)
        assert block_m in (None, tile.block_m)
        assert getattr(tile, "split_k", 1) == 1
        assert tile == tile.fit(sizes_of(N, K, G))


def test_blocks_are_counted_as_rows_fall_on_experts():
    assert blocks_and_columns(8, 1, 8, 8) == (1.0, 8.0)
    assert blocks_and_columns(9, 1, 8, 8) == (2.0, 16.0)
    assert blocks_and_columns(40, 1, 64, 16) == (1.0, 64.0)
    assert blocks_and_columns(20, 1, 64, 16) == (1.0, 32.0)
    blocks, _ = blocks_and_columns(2, 2, 8, 8)  # both on one expert half of the time
    assert blocks == pytest.approx(1.5)


def test_rows_are_rounded_up_to_few_numbers():
    assert [model.bucket(rows) for rows in (1, 2, 3, 8, 9, 1000, 1024, 1025)] == [1, 2, 4, 8, 10, 1024, 1024, 1218]
