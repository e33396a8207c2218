"""`moeracle kernels tune TARGET`: only legal tiles are timed; whatever is faster and wrong is refused by its fault."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from moeracle.commands.kernels import tile_tuner, tune_target
from moeracle.properties.cases.case import Case
from moeracle.target.declaration import make_kernel
from moeracle.target.load import load_target
from moeracle.target.sources import digest_of

CASE = "int4_linear/T4-N64-K128-G32/bf16/exllama-sym/-/normal/s1"
TILED = """
import torch
import moeracle

@moeracle.kernel("int4_linear", layout="exllama", contract="grouped,accumulator=fp32",
                 tiles=[{"block_n": 16}, {"block_n": 32}, {"block_n": 16, "half": True}, {"block_n": 16, "steps": -1}],
                 supports=lambda case, block_n=16: case.N % block_n == 0 or f"N must be a multiple of {block_n}")
def linear(x, w, bias, *, block_n=16, half=False, steps=0):
    d = w.dequantize(torch.float32).to(x.dtype).float()
    (T, K), N = x.shape, d.shape[0]
    y = torch.empty(T, N, dtype=x.dtype)
    for n in range(0, N // 2 if half else N, block_n):  # half: a launcher that strides twice as far
        acc = torch.zeros(T, block_n)
        for k in range(0, K + 32 * steps, 32):  # steps = -1: the last one is left out
            acc += x[:, k : k + 32].float() @ d[n : n + block_n, k : k + 32].T
        y[:, n : n + block_n] = (acc if bias is None else acc + bias[n : n + block_n].float()).to(x.dtype)
    return y
"""
TUNE = ("kernels", "tune", "tiled.py", "--case", CASE, "--seconds", "0.001", "--json", "t.json")
LEGAL = ["defaults", "block_n=16", "block_n=32"]
WRONG = {"block_n=16,half=True": "F82 ", "block_n=16,steps=-1": "F23 "}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """One run: (folder, exit code, what was printed, the JSON)."""
    from contextlib import redirect_stdout
    from io import StringIO

    from moeracle.cli import main

    folder = tmp_path_factory.mktemp("tuned")
    (folder / "tiled.py").write_text(TILED)
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(folder)
        code = main(TUNE)
    return folder, code, printed.getvalue(), json.loads((folder / "t.json").read_text())


def test_only_legal_tiles_are_timed_and_the_others_are_refused_by_their_fault(tuned):
    _, code, printed, found = tuned
    rows = {row["tile"]: row for row in found["rows"]}
    assert code == 1
    assert [tile for tile, row in rows.items() if row["legal"]] == LEGAL
    assert all(rows[tile]["us"] > 0 for tile in LEGAL)
    assert {tile for tile, row in rows.items() if not row["legal"]} == set(WRONG)
    for tile, fault in WRONG.items():
        assert rows[tile]["us"] is None
        assert fault in rows[tile]["fault"], rows[tile]["fault"]
        assert f"replay: moeracle check 'tiled.py:linear[{tile}]' --case" in printed
    assert [row["tile"] in LEGAL for row in found["best"]] == [True]


def test_what_legality_cost_is_said(tuned):
    _, _, printed, found = tuned
    assert set(found["spent"]) == {"starting", "judging", "explaining", "timing"}
    assert all(seconds > 0 for seconds in found["spent"].values())
    assert 0 < found["judging_share"] < 1
    assert "5 tiles, 2 refused; judging took " in printed


def test_a_run_that_was_cut_short_goes_on_with_the_tiles_that_are_left(tuned, folder, cli, monkeypatch):
    found = tuned[3]
    (folder / "tiled.py").write_text(TILED)
    cut = {**found, "rows": [row for row in found["rows"] if row["tile"] != "block_n=32"]}
    (folder / "t.json").write_text(json.dumps(cut))
    judged, real = [], tile_tuner.TileTuner.judged

    def counting(self, kernel, *more):
        judged.append(kernel.name)
        return real(self, kernel, *more)

    monkeypatch.setattr(tile_tuner.TileTuner, "judged", counting)
    assert cli(*TUNE, "--resume").code == 1
    assert judged == ["linear", "linear[block_n=32]"]  # the defaults, beside which it is timed
    again = json.loads((folder / "t.json").read_text())
    assert sorted(row["tile"] for row in again["rows"]) == sorted(row["tile"] for row in found["rows"])
    (folder / "tiled.py").write_text(TILED + "\n# changed\n")
    refused = cli(*TUNE, "--resume")
    assert refused.code == 2
    assert "resume: t.json has source" in refused.err


def test_a_run_does_not_go_on_where_a_module_that_the_file_imports_has_changed(tuned, folder, cli):
    (folder / "tiled.py").write_text(f"import parts\n{TILED}")
    (folder / "parts.py").write_text("WIDTH = 1\n")
    (folder / "t.json").write_text(json.dumps({**tuned[3], "source": digest_of("tiled.py")}))
    (folder / "parts.py").write_text("WIDTH = 2\n")
    refused = cli(*TUNE, "--resume")
    assert refused.code == 2
    assert "resume: t.json has source" in refused.err


def test_outputs_of_which_everything_is_legal_are_not_timed(folder, cli, monkeypatch):
    (folder / "tiled.py").write_text(TILED.replace(', {"block_n": 16, "half": True}, {"block_n": 16, "steps": -1}', ""))
    real = tile_tuner.judge
    monkeypatch.setattr(tile_tuner, "judge", lambda *a, **k: replace(real(*a, **k), status="vacuous"))
    done = cli(*TUNE)
    found = json.loads((folder / "t.json").read_text())
    assert done.code in (1, 3)
    assert [(row["legal"], row["us"]) for row in found["rows"]] == [(False, None)] * 3
    assert found["best"] == []


def test_the_best_tile_is_the_one_that_was_fastest_beside_the_defaults():
    def row(tile, us, ratio, legal=True):
        return {"kernel": "k", "case": "c", "tile": tile, "legal": legal, "us": us, "ratio": ratio}

    run = object.__new__(tune_target._Run)
    # The clock drifted: "a" was timed when all was slow, yet is 1.5 times as fast as the defaults beside it.
    run.rows = [row("defaults", 10.0, None), row("a", 12.0, 1.5), row("b", 9.0, 1.1), row("c", None, None, legal=False)]
    assert [found["tile"] for found in run.best()] == ["a"]


def test_a_target_names_one_tile_or_all(folder):
    (folder / "tiled.py").write_text(TILED)
    one, whole = load_target("tiled.py:linear[block_n=32]").kernels, load_target("tiled.py:linear[*]").kernels
    assert [k.name for k in one] == ["linear[block_n=32]"]
    assert [k.name.partition("[")[2] for k in whole] == [f"{tile}]" for tile in (*LEGAL[1:], *WRONG)]
    narrow = Case.parse(CASE).replace(N=48)
    assert load_target("tiled.py:linear[block_n=16]").kernels[0].why_not(narrow) is None
    assert one[0].why_not(narrow) == "N must be a multiple of 32"


def plain(x, w, bias, *, block_n=16):
    return x


def positional(x, w, bias, block_n=16):
    return x


@pytest.mark.parametrize(
    ("fn", "tiles", "complaint"),
    [
        (plain, {"block_m": (16,)}, "got 'block_m', must be a keyword-only parameter"),
        (positional, {"block_n": (16,)}, "got 'block_n', must be a keyword-only parameter"),
        (plain, {"block_n": ([16],)}, "got block_n=[16], must be a number"),
        (plain, {"block_n": ("1,2",)}, "got block_n='1,2', must be a number"),
        (plain, {"block_n": ("12",)}, "got block_n='12', must be a number"),
        (plain, {"block_n": ()}, "got 0 of them, must be 1 to 4096"),
        (plain, {"block_n": range(5000)}, "got 4097 of them, must be 1 to 4096"),
        (plain, [{}], "none empty"),
        (plain, 7, "must be values by parameter or a list of such tiles"),
    ],
)
def test_tiles_that_cannot_be_are_refused_where_they_are_declared(fn, tiles, complaint):
    with pytest.raises(ValueError, match=r"^tiles: ") as refused:
        make_kernel(fn, "int4_linear", tiles=tiles)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("tiled.py",), "case: must be given (--case), or a layer in its place"),
        (("tiled.py", "--case", CASE, "--shape", "qwen3.5-35b"), "case: must be given"),
        (("tiled.py", "--case", CASE, "--arch", "gfx1151"), "arch: got 'gfx1151', must be left out with a TARGET"),
        (("tiled.py", "--case", CASE, "--resume"), "resume: needs --json"),
        (("--case", CASE), "case: got"),
        (("tiled.py:linear[block_n=17]", "--case", CASE), "tile of linear: got 'block_n=17'"),
        (("tiled.py:linear[block_n=16]", "--case", CASE), "declares no tiles"),
    ],
)
def test_a_mistake_is_one_line(folder, cli, argv, complaint):
    (folder / "tiled.py").write_text(TILED)
    done = cli("kernels", "tune", *argv)
    assert done.code == 2
    assert complaint in done.err
    assert done.err.count("\n") == 1
