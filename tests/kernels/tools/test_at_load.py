"""Tiles at load time: only those with the bits of a proven schedule are timed, and what was found is kept, once."""

from __future__ import annotations

import json
import multiprocessing
from types import SimpleNamespace

import pytest
import torch

from moeracle.kernels import tuned
from moeracle.kernels.hopper.prepared_weight import PreparedWeight
from moeracle.kernels.hopper.tiles.kinds import sizes_of
from moeracle.kernels.hopper.tiles.layers import (
    OP,
    Direct,
    Few,
    Layer,
    from_fields,
    layer_for,
    model_layer,
    to_fields,
)
from moeracle.kernels.tune import at_load

ROW = {"op": OP, "N": 64, "K": 64, "E": 8, "G": 32, "dtype": "bf16"}
LAYER = Layer(Direct(8), Few(8))
KINDS_OF_WEIGHT = ["bf16", "bf16+zero", "fp16", "fp16+zero"]


class Clock:
    """Takes a call's own word: what it returns is microseconds."""

    def prepare(self, calls):
        return SimpleNamespace(captured=True, us=calls[0].us)

    def one_by_one(self, side, times):
        return [side.us] * times


class Problem:
    """A layer whose GEMMs store what `bits` says of a tile, and take as long as `us` says."""

    def __init__(self, us, bits=lambda tile: at_load.parts_of(tile), spills=()):
        self.up, self.down = sizes_of(3072, 4096, 128), sizes_of(4096, 1536, 128)
        self.E, self.rows, self.us, self.bits, self.spills = 128, 8, us, bits, spills
        self.a, self.y = (torch.zeros(4, dtype=torch.bfloat16) for _ in range(2))

    def gemm_calls(self, which, tile):
        def call():
            (self.y if which else self.a).fill_(self.bits(tile))
            return SimpleNamespace(n_spills=6 if tile in self.spills else 0)

        call.us = self.us(which, tile)
        return [call]


def slow_few(which, tile):
    """Every tile takes 10 us, a Direct 9, a Few in four parts 1."""
    return 1.0 if at_load.parts_of(tile) == 4 else 9.0 if isinstance(tile, Direct) else 10.0


def found_by(problem):
    said = []
    us, layer = at_load.best_layer(problem, Clock(), said.append, at_load.Gate(problem))
    return us, layer, said


def test_the_fastest_tile_is_taken_where_its_bits_are_a_proven_schedules():
    us, layer, said = found_by(Problem(slow_few))
    assert us <= 1.0 + 10.0
    assert at_load.parts_of(layer.gemm1) == 4
    assert said == []


def test_a_faster_tile_with_other_bits_is_never_timed():
    wrong = lambda tile: 7 if at_load.parts_of(tile) == 4 and tile.depth > 4 else at_load.parts_of(tile)
    problem = Problem(lambda which, tile: 0.5 if wrong(tile) == 7 else slow_few(which, tile), wrong)
    us, layer, said = found_by(problem)
    assert us >= 1.0
    assert all(wrong(tile) != 7 for tile in (layer.gemm1, layer.gemm2))
    assert any("its bits are not those of wgmma.k16.sm90" in line for line in said)


def test_a_tile_that_spills_is_left_out_and_so_is_a_schedule_that_nothing_proves(monkeypatch):
    fast = [tile for tile in at_load.candidates(sizes_of(3072, 4096, 128), 8, 128) if at_load.parts_of(tile) == 4]
    assert fast
    _, layer, said = found_by(Problem(slow_few, spills=fast))
    assert layer.gemm1 not in fast
    assert any("it spills registers" in line for line in said)
    monkeypatch.setitem(at_load.PROVEN, 4, ())
    _, layer, said = found_by(Problem(slow_few))
    assert at_load.parts_of(layer.gemm1) != 4
    assert any("is proven for this weight" in line for line in said)


@pytest.mark.parametrize("everything", [0.0, float("nan"), float("inf")])
def test_sums_that_are_all_zero_or_not_finite_prove_nothing(everything):
    with pytest.raises(ValueError, match="no tiles are left"):
        found_by(Problem(slow_few, bits=lambda tile: everything))


@pytest.mark.parametrize("left", [0.0, float("nan")])
def test_what_gemm1s_last_tile_left_does_not_hide_a_wrong_tile_of_gemm2(left):
    class Chained(Problem):
        def gemm_calls(self, which, tile):
            wrong = self.bits(tile)

            def call():
                (self.y if which else self.a).copy_(self.a * wrong if which else torch.full_like(self.a, left))
                return SimpleNamespace(n_spills=0)

            call.us = self.us(which, tile)
            return [call]

    problem = Chained(slow_few, bits=lambda tile: 3 if getattr(tile, "depth", 0) > 4 else 1)
    gate = at_load.Gate(problem)
    right, wrong = Few(8, 64, 4, 4), Few(8, 64, 4, 6)
    assert "which tells nothing" in gate(0, right)
    assert gate(1, right.fit(problem.down)) == ""
    assert "its bits are not those of" in gate(1, wrong.fit(problem.down))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOERACLE_CACHE", str(tmp_path))
    tuned.load_cached.cache_clear()
    yield tmp_path
    tuned.load_cached.cache_clear()


def test_rows_of_another_dtype_or_with_zero_points_are_not_taken(cache, monkeypatch):
    other = Layer(Direct(16), Few(16))
    rows = [{**ROW, "dtype": kind, "rows_per_expert": 0.25, "tile": to_fields(tile), "us": 3.0}
            for kind, tile in (("fp16+zero", LAYER), ("bf16", other))]  # fmt: skip
    tuned.keep("some-gpu", "Some GPU", rows)
    monkeypatch.setattr(tuned, "places", lambda device: ("some-gpu",))
    chosen = {kind: layer_for(2, 8, sizes_of(64, 64, 32, kind), "cuda") for kind in KINDS_OF_WEIGHT}
    assert chosen.pop("fp16+zero") == LAYER
    assert chosen.pop("bf16") == other
    model = model_layer(2, 8, sizes_of(64, 64, 32))
    assert model not in (LAYER, other)
    assert chosen == {"fp16": model, "bf16+zero": model}


def test_weights_prepared_for_one_kind_say_which(monkeypatch):
    assert [
        PreparedWeight(None, None, zero, 64, 64, 32, True, dtype).kind
        for dtype in (torch.bfloat16, torch.float16)
        for zero in (None, torch.zeros(1))
    ] == KINDS_OF_WEIGHT
    monkeypatch.setattr(at_load, "prepared", lambda w, **kinds: w)
    up, down = (SimpleNamespace(**vars(sizes_of(*s)), words=torch.zeros(128)) for s in ((128, 64, 32), (64, 64, -1)))
    with pytest.raises(ValueError, match="w2: got G -1, must be those of w13, 32"):
        at_load.search(up, down, 8)


def test_what_was_found_is_read_by_later_launches_and_not_with_other_kernels(cache, monkeypatch):
    tuned.keep("some-gpu", "Some GPU", [{**ROW, "rows_per_expert": 0.25, "tile": to_fields(LAYER), "us": 3.0}])
    monkeypatch.setattr(tuned, "places", lambda device: ("some-gpu",))
    assert from_fields(tuned.lookup(OP, 64, 64, 8, 32, "bf16", 2, "cuda")) == LAYER
    assert tuned.lookup(OP, 64, 64, 8, 32, "bf16", 2000, "cuda") is None  # far from its rows
    monkeypatch.setattr(tuned, "digest", lambda: "another")
    tuned.load_cached.cache_clear()
    assert tuned.lookup(OP, 64, 64, 8, 32, "bf16", 2, "cuda") is None


def test_a_second_search_measures_nothing(cache, monkeypatch):
    calls = []
    monkeypatch.setattr(at_load, "_place", lambda device: ("some-gpu", "Some GPU"))
    monkeypatch.setattr(at_load, "prepared", lambda w, **kinds: w)
    monkeypatch.setattr(at_load, "problem_of", lambda *args: calls.append(args[-1]) or Problem(slow_few))
    up, down = (
        SimpleNamespace(**vars(w), words=torch.zeros(128)) for w in (Problem(slow_few).up, Problem(slow_few).down)
    )
    first = at_load.search(up, down, 8, tokens=(1, 2), clock=Clock())
    again = at_load.search(up, down, 8, tokens=(1, 2, 4), clock=Clock())
    assert calls == [1, 2, 4]
    assert [row["rows_per_expert"] for row in again] == [1 / 16, 1 / 8, 1 / 4]
    assert again[:2] == first


def add(i, folder):
    import os

    os.environ["MOERACLE_CACHE"] = folder
    tuned.keep("some-gpu", "Some GPU", [{**ROW, "rows_per_expert": float(i), "tile": to_fields(LAYER)}])


def test_processes_that_write_at_once_lose_no_row(cache):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(add, [(i, str(cache)) for i in range(1, 13)])
    (path,) = cache.glob("*.json")
    assert [row["rows_per_expert"] for row in json.loads(path.read_text())["rows"]] == list(range(1, 13))
    path.write_text("{")
    tuned.load_cached.cache_clear()
    with pytest.raises(ValueError, match=path.name):
        tuned.load_cached("some-gpu")
