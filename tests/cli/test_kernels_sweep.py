"""Sweeps and tuning with a clock of our own: cliffs are seen, and only legal tiles win."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from moeracle.bench.suite import Suite
from moeracle.commands.kernels import sweep as kernels_sweep
from moeracle.commands.kernels import tune as kernels_tune
from moeracle.commands.kernels.sweep import interpolated, mark_cliffs, sizes
from moeracle.commands.options import SweepOptions
from moeracle.kernels import tuned
from moeracle.kernels.triton.tiles import Tile
from moeracle.kernels.tune import by_compiler
from moeracle.kernels.tune import space as tune_space
from support.bench_fakes import CEILINGS, LEGAL, TINY, Clock, layer, point, suite


def test_sizes_of_a_sweep():
    found = sizes(64, 2)
    assert found[0] == 1
    assert found[-1] == 64
    assert {15, 16, 17, 31, 32, 33, 63} <= set(found)
    assert found == sorted(set(found))


def test_interpolation_is_straight_in_logarithms():
    assert interpolated((1, 10.0), 2, (4, 40.0)) == pytest.approx(20.0)


def series(*us: float) -> list[dict]:
    return [{"T": 2**i, "us": value, "case": str(i)} for i, value in enumerate(us)]


def test_a_cliff_is_seen_and_a_slope_is_not():
    assert mark_cliffs(series(10, 20, 40, 80)) == []
    assert [c["T"] for c in mark_cliffs(series(10, 10, 14, 10, 10))] == [4]
    assert [c["T"] for c in mark_cliffs(series(10, 10, 7, 10, 10))] == [4]
    assert mark_cliffs(series(10, 10, 12.9, 10, 10)) == []


def test_the_sweep_names_cliffs_and_fails(tmp_path, capsys):
    class Jump(Clock):
        def measure(self, sides, rounds, seconds):
            self.sides = ([10.0 if self.calls != 3 else 20.0] * 3,)
            return super().measure(sides, rounds, seconds)

    options = SweepOptions(tokens=(1, 2, 4, 8, 16), json=tmp_path / "s.json")
    s = Suite(Jump([10.0]), CEILINGS, "cpu", cache_bytes=0)
    assert kernels_sweep.measure(s, [LEGAL], {"tiny": TINY}, options) == 1
    assert "3 cliffs" in capsys.readouterr().out
    assert any("/T4-" in case for case in json.loads((tmp_path / "s.json").read_text())["cliffs"])
    assert kernels_sweep.measure(suite(), [LEGAL], {"tiny": TINY}, replace(options, json=None)) == 0


def test_tuning_finds_the_fastest_legal_tile():
    """A kernel whose time is a function of its tile: the climb ends at the best tile that is not illegal."""
    tile = {}

    def tunable(*args):
        tile.update(tuned.lookup("padded_gemm", 64, 64, 8, 32, "bf16", 8, "cpu") or {})
        stages = layer(*args)
        if tile.get("block_n") == 256:  # fast, and wrong
            stages["h"] += 1
        return stages

    class ByTile(Clock):
        def measure(self, sides, rounds, seconds):
            return [[100.0 / tile["block_n"] * tile["num_warps"]] * 3]

    tuner = kernels_tune.Tuner(ByTile(), "cpu", most=60, cache_bytes=0)
    kernel = replace(LEGAL, fn=tunable, name="moe_w4a16.padded")
    row = tuner.tune(point(), kernel)
    assert row["tile"]["block_n"] == 128
    assert row["tile"]["num_warps"] == 2
    assert row["us"] == pytest.approx(100 / 128 * 2, abs=0.01)
    assert (row["op"], row["rows_per_expert"]) == ("padded_gemm", 1.0)
    assert tuner.illegal
    assert all(found["tile"]["block_n"] == 256 for found in tuner.illegal)


def test_neighbours_are_tiles_one_step_away():
    for rows in (8, 512, 8192, 32768):
        fields = tune_space.start(rows, 256, 1024, 2048, torch.device("cpu"))
        found = list(tune_space.neighbours(fields))
        assert len(found) > 5
        for candidate in found:
            Tile(**candidate)
            assert sum(candidate[name] != value for name, value in fields.items()) == 1
    assert all(c["block_n"] <= 256 for c in tune_space.neighbours({**fields, "block_n": 256}))


def candidate(cost, registers=100, waves=8.0, wrong=(), **tile):
    return {"cost": cost, "registers": registers, "waves": waves, "most_waves": 16, "wrong": list(wrong), "tile": tile}


def test_a_gfx_tile_is_chosen_among_those_that_do_not_spill():
    spills = candidate(1.0, wrong=["spills 9 registers"], n=1)
    full, lonely = candidate(2.0, registers=250, n=2), candidate(3.0, waves=2.0, n=3)
    good, equal = candidate(4.0, n=4), candidate(4.0, waves=12.0, n=5)
    assert [c["tile"]["n"] for c in by_compiler.ordered([spills, full, lonely, good, equal])] == [5, 4]
    assert [c["tile"]["n"] for c in by_compiler.ordered([spills, lonely])] == [3]
    assert by_compiler.ordered([spills]) == []


def row(each: float, **tile) -> dict:
    key = {"op": "grouped_gemm", "N": 64, "K": 64, "E": 8, "G": 32, "dtype": "bf16"}
    return {**key, "rows_per_expert": each, "tile": tile}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    tuned.load.cache_clear()
    yield tmp_path
    tuned.load.cache_clear()


def test_a_table_keeps_other_rows_and_says_who_wrote_which(tables):
    tuned.write("gpu", "GPU", "sm_90", {"command": "first"}, [row(1, block_m=16), row(4, block_m=32)])
    path = tuned.write("gpu", "GPU", "sm_90", {"command": "second"}, [row(4, block_m=64), {**row(1), "op": "other"}])
    table = json.loads(path.read_text())
    assert [(r["op"], r["rows_per_expert"], r["tile"]) for r in table["rows"]] == [
        ("grouped_gemm", 1, {"block_m": 16}),
        ("grouped_gemm", 4, {"block_m": 64}),
        ("other", 1, {}),
    ]
    assert {op: by["command"] for op, by in table["made_by"].items()} == {"grouped_gemm": "second", "other": "second"}


def test_a_bucket_speaks_for_its_neighbourhood_alone(tables):
    tuned.write("gpu", "GPU", "sm_90", {}, [row(1, n=1), row(4, n=4)])
    (rows,) = tuned.load("gpu").values()
    assert [tuned.pick(rows, each)["tile"]["n"] for each in (0.125, 1, 1.01, 4, 8)] == [1, 1, 4, 4, 4]
    assert tuned.pick(rows, 0.1) is None
    assert tuned.pick(rows, 8.1) is None
    assert tuned.pick([], 1) is None


def test_an_untuned_shape_is_a_note(tables, monkeypatch):
    monkeypatch.setattr(tuned, "places", lambda device: ("gpu",))
    monkeypatch.setattr(tuned, "_UNTUNED", {})
    tuned.write("gpu", "GPU", "sm_90", {}, [row(1, n=1)])
    assert tuned.lookup("grouped_gemm", 64, 64, 8, 32, "bf16", 8, "cuda") == {"n": 1}
    assert tuned.untuned() == []
    assert tuned.lookup("grouped_gemm", 64, 64, 8, 32, "fp16", 8, "cuda") is None
    assert tuned.untuned() == ["grouped_gemm N=64 K=64 E=8 G=32 fp16: untuned on gpu, a model's or the default tile"]
    with tuned.forced({"grouped_gemm": {"n": 9}}):
        assert tuned.lookup("grouped_gemm", 64, 64, 8, 32, "fp16", 8, "cuda") == {"n": 9}


def test_a_damaged_table_is_named(tables):
    (tables / "gpu.json").write_text(json.dumps({"rows": [{"op": "x"}]}))
    with pytest.raises(ValueError, match=r"gpu\.json has no rows\.0\.N"):
        tuned.load("gpu")
