"""`moeracle kernels tune` for the Hopper layer: its search stands in, what is judged and written is the command's."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import moeracle.kernels
from moeracle.bench_problems import Problems
from moeracle.commands import bench_options, kernels_tune, kernels_tune_hopper
from moeracle.commands.options import TuneOptions
from moeracle.kernels import tune_space, tuned
from moeracle.kernels.hopper_tiles import OP, default_layer, to_fields
from support.bench_fakes import ILLEGAL, LEGAL, TINY, layer, point

LAYERS = [default_layer(2 * T, 8, 64) for T in (1, 64)]
HOPPER = replace(LEGAL, name=OP)


def problem_of(T: int) -> SimpleNamespace:
    """What the search times on, here a case's tensors."""
    args = Problems("cpu").build(point(T).case()).args
    weights = SimpleNamespace(w13=args["w13"], w2=args["w2"])
    routes = [(args["topk_weights"], args["topk_ids"])]
    return SimpleNamespace(shape=TINY, T=T, x=args["x"], weights=weights, routes=routes)


class Search:
    """Stands in for tune_hopper: asks the judge about each layer in turn and keeps the first that passes."""

    TOKENS = (1, 4)

    def __init__(self, cut: bool = False) -> None:
        self.cut, self.tokens = cut, ()

    def search(self, shape, tokens, dtype, judge, note):
        self.tokens = tokens
        for T in tokens:
            if self.cut and T > 1:
                raise KeyboardInterrupt
            reasons = [judge(problem_of(T), one) for one in LAYERS]
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
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="GPU"))
    monkeypatch.setattr(tuned, "places", lambda device: ("gpu", "sm_90") if str(device) == "cuda" else ())
    old = {"op": OP, "N": 64, "K": 64, "E": 8, "G": 32, "dtype": "bf16", "tile": {}, "us": 9.0}
    tuned.write("gpu", "GPU", "sm_90", {"command": "before"}, [old | {"rows_per_expert": each} for each in (1.0, 7.0)])

    def run(search=None, kernel=HOPPER, **fields):
        search = search or Search()
        monkeypatch.setitem(sys.modules, "moeracle.kernels.tune_hopper", search)
        monkeypatch.setattr(moeracle.kernels, "tune_hopper", search, raising=False)
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

    def by_tile(*args):
        stages = layer(*args)
        if tuned.lookup(OP, 64, 64, 8, 32, "bf16", 2, "cpu") == to_fields(LAYERS[0]):
            stages["a"] += 1
        return stages

    code, _, rows = tune(kernel=replace(HOPPER, fn=by_tile), tokens=(4,), json=tmp_path / "t.json")
    assert code == 1
    assert rows[1.0]["tile"] == to_fields(LAYERS[1])
    (bad,) = json.loads((tmp_path / "t.json").read_text())["illegal"]
    assert bad["tile"] == to_fields(LAYERS[0])
    assert "illegal" in bad["why"]
    assert tuned.lookup(OP, 64, 64, 8, 32, "bf16", 2, "cpu") is None  # nothing stays forced


def test_it_is_judged_on_the_tensors_it_was_timed_with():
    problem = problem_of(4)
    judge = kernels_tune_hopper.judged(HOPPER, "bf16")
    assert judge(problem, LAYERS[0]) is None
    assert "illegal" in kernels_tune_hopper.judged(ILLEGAL, "bf16")(problem, LAYERS[0])
    problem.routes = [(problem.routes[0][0] * float("nan"), problem.routes[0][1])]
    assert judge(problem, LAYERS[0]) is not None


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
