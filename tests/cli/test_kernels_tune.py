"""`moeracle kernels tune` for the Hopper layer: its search stands in, what is judged and written is the command's."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import moeracle.kernels.tune
from moeracle.bench import judge as bench_judge
from moeracle.bench.problems import Problems
from moeracle.commands.kernels import bench_options, tune_hopper, tuner
from moeracle.commands.kernels import tune as kernels_tune
from moeracle.commands.options import TuneOptions
from moeracle.kernels import tuned
from moeracle.kernels.hopper.tiles.layers import OP, Direct, Few, Layer, Stream, to_fields
from moeracle.kernels.tune import space as tune_space
from support.bench_fakes import ILLEGAL, LEGAL, layer, point

LAYERS = [Layer(Few(8, 64, 4, 4), Few(8, 64, 2, 4)), Layer(Direct(32), Stream(32))]
HOPPER = replace(LEGAL, name=OP)


def shifted(*args):
    """A layer that is wrong with the first tile: one stage, and no other."""
    stages = layer(*args)
    if tuned.lookup(OP, 64, 64, 8, 32, "bf16", 2, "cpu") == to_fields(LAYERS[0]):
        stages["a"] += 1
    return stages


class Search:
    """Stands in for tune.hopper: asks the judge about each layer in turn and keeps the first that passes."""

    TOKENS = (1, 4)

    def __init__(self, cut: bool = False) -> None:
        self.cut, self.tokens = cut, ()

    def search(self, shape, tokens, dtype, problem_of, note):
        self.tokens = tokens
        for T in tokens:
            if self.cut and T > 1:
                raise KeyboardInterrupt
            problem, judge = problem_of(T)
            assert (problem.T, problem.rows, problem.E) == (T, T * shape.k, shape.E)
            assert len({tuple(ids.flatten().tolist()) for _, _, ids in problem.routed}) > 1  # routings rotate
            reasons = [judge(one) for one in LAYERS]
            illegal = [
                {"T": T, "tile": to_fields(one), "why": why} for one, why in zip(LAYERS, reasons, strict=True) if why
            ]
            best = LAYERS[reasons.index(None)]
            key = {"op": OP, "N": 2 * shape.I, "K": shape.H, "E": shape.E, "G": shape.G, "dtype": dtype}
            row = {**key, "rows_per_expert": T * shape.k / shape.E, "tile": to_fields(best), "us": 3.0}
            yield row, {"default_us": 4.04, "tried": [(3.0, "a"), (4.0, "b")], "gemms": [{}, {}], "illegal": illegal}


@pytest.fixture
def tune(tmp_path, monkeypatch):
    """Run the command on a GPU that is not there."""
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    tuned.load.cache_clear()
    monkeypatch.setattr(bench_options, "require_gpu", lambda what: "cuda")
    monkeypatch.setattr(tuner, "Problems", lambda device: Problems("cpu"))
    gpu = SimpleNamespace(name="GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(tuned, "places", lambda device: ("gpu", "sm_90") if str(device) == "cuda" else ())
    old = {"op": OP, "N": 64, "K": 64, "E": 8, "G": 32, "dtype": "bf16", "tile": {}, "us": 9.0}
    tuned.write("gpu", "GPU", "sm_90", {"command": "before"}, [old | {"rows_per_expert": each} for each in (1.0, 7.0)])

    def run(search=None, kernel=HOPPER, **fields):
        search = search or Search()
        monkeypatch.setitem(sys.modules, "moeracle.kernels.tune.hopper", search)
        monkeypatch.setattr(moeracle.kernels.tune, "hopper", search, raising=False)
        monkeypatch.setattr(kernels_tune, "chosen", lambda names: [kernel])
        options = TuneOptions(kernels=(OP,), shapes=("E8-H64-I32-k2-G32",), **fields)
        code = kernels_tune.run_tune(options)
        table = json.loads((tmp_path / "gpu.json").read_text())
        return code, table["made_by"][OP]["command"], {row["rows_per_expert"]: row for row in table["rows"]}

    yield run
    tuned.load.cache_clear()


def test_rows_are_merged_and_say_which_command(tune, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["moeracle", "kernels", "tune", "--kernel", OP, "--json", "/some/where/t.json"])
    code, made_by, rows = tune()
    assert code == 0
    assert made_by == f"moeracle kernels tune --kernel {OP} --json t.json"
    assert sorted(rows) == [0.25, 1.0, 7.0]
    assert (rows[1.0]["us"], rows[7.0]["us"]) == (3.0, 9.0)
    assert rows[0.25]["tile"] == to_fields(LAYERS[0])
    assert (rows[0.25]["default_us"], rows[0.25]["tried"]) == (4.0, 2)
    assert not {"what", "layers", "gemms"} & set(rows[0.25])
    out = capsys.readouterr().out
    assert "wrote 2 rows of gpu.json" in out
    assert "1.33x" in out


def test_a_search_that_is_cut_keeps_what_it_found(tune, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tune(Search(cut=True), tokens=(1, 4))
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [(row["rows_per_expert"], row["us"]) for row in rows] == [(0.25, 3.0), (1.0, 9.0), (7.0, 9.0)]


def test_the_judge_has_the_last_word(tune, tmp_path):
    """The first layer's tile gives wrong results: it is named, and the second is written."""

    code, _, rows = tune(kernel=replace(HOPPER, fn=shifted), tokens=(4,), json=tmp_path / "t.json")
    assert code == 1
    assert rows[1.0]["tile"] == to_fields(LAYERS[1])
    (bad,) = json.loads((tmp_path / "t.json").read_text())["illegal"]
    assert bad["tile"] == to_fields(LAYERS[0])
    assert "illegal" in bad["why"]
    assert tuned.lookup(OP, 64, 64, 8, 32, "bf16", 2, "cpu") is None  # nothing stays forced


def test_layers_of_equal_bits_are_judged_once(monkeypatch):
    problem, calls, real = Problems("cpu").build(point(4).case()), [], bench_judge.judge
    monkeypatch.setattr(bench_judge, "judge", lambda *args, **options: calls.append(1) or real(*args, **options))
    judge = tune_hopper.judged(HOPPER, problem)
    assert [judge(one) for one in LAYERS] == [None, None]
    assert len(calls) == 1
    by_tile = replace(HOPPER, fn=shifted)
    judge = tune_hopper.judged(by_tile, problem)
    assert judge(LAYERS[1]) is None
    assert "illegal" in judge(LAYERS[0])  # one stage's bits are others
    assert len(calls) == 3
    assert "illegal" in tune_hopper.judged(ILLEGAL, problem)(LAYERS[0])


def test_dry_writes_no_table_and_without_tokens_its_own_are_taken(tune):
    search = Search()
    _, made_by, rows = tune(search, dry=True)
    assert (made_by, sorted(rows), search.tokens) == ("before", [1.0, 7.0], Search.TOKENS)


def test_what_the_search_does_not_do_is_refused(tune):
    with pytest.raises(ValueError, match=r"archetype: got .zipf1., must be .uniform. for moe_w4a16"):
        tune(archetype="zipf1")
    with pytest.raises(ValueError, match=r"dtype: got .fp16., must be .bf16. for moe_w4a16"):
        tune(dtype="fp16")


def test_a_shape_that_it_does_not_take_is_a_note(tune, capsys):
    code, _, rows = tune(kernel=replace(HOPPER, supports=lambda case: "needs K that 64 divides"))
    assert (code, sorted(rows)) == (3, [1.0, 7.0])
    assert "needs K that 64 divides" in capsys.readouterr().err


def test_the_layer_is_tunable_by_name():
    assert tune_space.TUNABLE[tune_space.TABLE_NAME[OP]] == "moe_w4a16"
