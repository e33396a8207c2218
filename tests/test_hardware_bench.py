"""The benchmark as recorded on an H200 is whole, and docs/bench.md says what it holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from moeracle.commands.kernels.sweep import mark_cliffs
from moeracle.kernels import tuned
from moeracle.kernels.bench.cases import ARCHETYPES, TOKENS
from moeracle.kernels.hopper.tiles.layers import OP, from_fields
from moeracle.kernels.hopper.tiles.linear import MENU as LINEARS
from moeracle.kernels.hopper.tiles.model import MENU

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "fixtures" / "hardware" / "h200"
PAGE = (ROOT / "docs" / "bench.md").read_text()
MATRIX, LAYERS, SWEEP = (
    json.loads((RECORDED / f"{name}.json").read_text()) for name in ("bench", "bench_layer", "sweep")
)
MODELS = {"qwen3.5-35b": (1024, 256, 128), "qwen3-omni-30b": (1536, 128, 32)}  # N of gemm1, E, G
OURS = {"moe_w4a16": "moe_w4a16.hopper", "grouped_gemm": "grouped_gemm.hopper", "padded_gemm": "padded_gemm.hopper"}
THEIRS = {"moe_w4a16": "moe_w4a16.padded", "grouped_gemm": "grouped_gemm", "padded_gemm": "padded_gemm"}
GEMMS = (("grouped_gemm", "gemm1"), ("grouped_gemm", "gemm2"), ("padded_gemm", "gemm1"), ("padded_gemm", "gemm2"))


def found(run: dict[str, Any], op: str, what: str, archetype: str, T: int) -> dict[str, Any]:
    """Return the one row of a point."""
    (row,) = (r for r in run["rows"] if (r["op"], r["what"], r["archetype"], r["T"]) == (op, what, archetype, T))
    return row


def layer_line(row: dict[str, Any]) -> str:
    """Return a row of the page's table of layers."""
    against = row["against"]
    cells = [f"{row['T']:,}", f"{row['active']}", f"{row['us']:.1f}"]
    cells += [
        f"{row['us_low']:.1f}..{row['us_high']:.1f}",
        f"{row['floor_percent']:.0f} %",
        f"{row['times_floor']:.2f}",
    ]
    cells += [f"{row['useful_percent']:.0f} %", f"{row['tflops_useful']:.1f}", f"{row['tflops_padded']:.1f}"]
    cells += [f"{row['gbs']:,.0f}", f"{against['us']:.1f}", f"{against['ratio']:.2f}"]
    return f"| {' | '.join(cells)} |"


def routing_line(run: dict[str, Any], T: int) -> str:
    """Return a row of the page's table of layers by routing."""
    rows = [found(run, "moe_w4a16", "layer", archetype, T) for archetype in ARCHETYPES]
    cells = [f"{T:,}", *(f"{r['us']:.1f} ({r['times_floor']:.2f})" for r in rows)]
    return f"| {' | '.join(cells)} |"


def gemm_line(T: int) -> str:
    """Return a row of the page's table of GEMMs."""
    rows = [found(MATRIX, op, what, "uniform", T) for op, what in GEMMS]
    cells = [f"{T:,}", *(f"{r['us']:.1f} ({r['against']['ratio']:.2f})" for r in rows)]
    return f"| {' | '.join(cells)} |"


def held(run: dict[str, Any], op: str, what: str) -> None:
    """Assert that a run has each routing and size of a point, judged and timed in a graph, with figures that can be."""
    for archetype in ARCHETYPES:
        for T in TOKENS:
            row = found(run, op, what, archetype, T)
            assert (row["kernel"], row["against"]["kernel"], row["legal"]) == (OURS[op], THEIRS[op], True)
            assert not row["note"]  # in a CUDA graph
            numbers = ("us", "tflops_useful", "tflops_padded", "gbs", "floor_percent", "useful_percent")
            assert all(row[name] > 0 and math.isfinite(row[name]) for name in numbers)
            assert row["floor_percent"] <= 100
            assert 0 < row["useful_percent"] <= 100
            assert row["tflops_useful"] <= row["tflops_padded"] * 1.0001 <= run["ceilings"]["tflops"] * 1.1


@pytest.mark.parametrize(("op", "what"), [("moe_w4a16", "layer"), *GEMMS])
def test_every_routing_and_size_was_judged_and_timed(op, what):
    assert MATRIX["device"] == "NVIDIA H200"
    assert (MATRIX["illegal"], MATRIX["skipped"], MATRIX["points"]) == ([], [], {"asked": 175, "left": 0})
    assert len(MATRIX["rows"]) == 175
    held(MATRIX, op, what)


def test_the_other_model_was_judged_and_timed():
    assert LAYERS["device"] == "NVIDIA H200"
    assert (LAYERS["illegal"], LAYERS["skipped"], LAYERS["points"]) == ([], [], {"asked": 35, "left": 0})
    assert {row["shape"] for row in LAYERS["rows"]} == {"qwen3-omni-30b"}
    held(LAYERS, "moe_w4a16", "layer")


@pytest.mark.parametrize(("run", "model"), [(MATRIX, "qwen3.5-35b"), (LAYERS, "qwen3-omni-30b")], ids=list(MODELS))
def test_the_layers_ran_with_the_tables_tiles(run, model):
    N, E, G = MODELS[model]
    table = {row["rows_per_expert"]: row for row in tuned.load("nvidia-h200")[OP, N, 2048, E, G, "bf16"]}
    for T in TOKENS:
        tile = from_fields(table[T * 8 / E]["tile"]).gemm1
        launched = found(run, "moe_w4a16", "layer", "uniform", T)["tile"]
        assert (launched["BM"], launched["BN"], launched["num_warps"]) == (tile.block_m, tile.block_n, tile.num_warps)


def test_the_page_says_what_was_measured():
    for T in TOKENS:
        assert gemm_line(T) in PAGE
        for run in (MATRIX, LAYERS):
            assert layer_line(found(run, "moe_w4a16", "layer", "uniform", T)) in PAGE
            assert routing_line(run, T) in PAGE
    for run in (MATRIX, LAYERS, SWEEP):
        assert run["command"] in PAGE
    ceilings = MATRIX["ceilings"]
    for name, unit in (("copy_gbs", "GB/s"), ("read_gbs", "GB/s"), ("tflops", "TFLOP/s")):
        assert f"{ceilings[name]:,.0f} {unit}" in PAGE


@pytest.mark.parametrize("model", MODELS)
def test_the_sweep_has_no_cliff(model):
    assert {row["shape"] for row in SWEEP["rows"]} == set(MODELS)
    assert (SWEEP["illegal"], SWEEP["skipped"], SWEEP["points"]["left"]) == ([], [], 0)
    rows = [dict(row) for row in SWEEP["rows"] if row["shape"] == model]
    assert mark_cliffs(rows, SWEEP["allowed"]) == []
    far = max((max(row["neighbours"], 1 / row["neighbours"]), row["T"]) for row in rows if row["neighbours"])
    assert (rows[0]["T"], rows[-1]["T"]) == (1, 4096)
    assert f"{model}: {len(rows)} sizes, at most {far[0]:.2f}x, at T = {far[1]}" in PAGE


def test_the_tuned_layers_have_no_cliff():
    far = 1.0
    layers = [rows for (op, *_), rows in tuned.load("nvidia-h200").items() if op == OP]
    assert layers
    for rows in layers:
        us = [row["us"] for row in sorted(rows, key=lambda row: row["rows_per_expert"])]
        assert len(us) == 13
        steps = [here / math.sqrt(before * after) for before, here, after in zip(us, us[1:], us[2:], strict=False)]
        far = max(far, *steps, *(1 / step for step in steps))
    assert far < 1.3
    assert (
        f"within {math.ceil(far * 100) / 100:.2f}x of the geometric mean"
        in (ROOT / "docs" / "performance.md").read_text()
    )


def named(tile: Any) -> str:
    """Return a tile's name as tests/on_hardware/tuned_tiles.py makes it."""
    numbers = (str(value) for name, value in vars(tile).items() if value or name != "max_registers")
    return f"{type(tile).__name__.lower()}{'-'.join(numbers)}"


def test_every_tile_of_the_table_was_judged():
    run = json.loads((RECORDED / "tuned_tiles.json").read_text())
    assert set(run["exit_codes"]) == {0}
    assert {(k["status"], k["illegal"]) for k in run["kernels"]} == {("legal", 0)}
    assert all(k["exact"] == k["judged"] > 0 for k in run["kernels"] if k["op"] == "padded_gemm")
    cases, elements = (sum(k[name] for k in run["kernels"]) for name in ("cases_judged", "judged"))
    page = " ".join((ROOT / "docs" / "performance.md").read_text().split())
    assert f"{cases} cases, {elements / 1e6:.1f} million elements, none illegal" in page
    rows = [row for (op, *_), rows in tuned.load("nvidia-h200").items() if op == OP for row in rows]
    layers = [from_fields(row["tile"]) for row in rows]
    wanted = {f"padded_gemm[{named(tile)}]" for layer in layers for tile in (layer.gemm1, layer.gemm2)}
    wanted |= {f"moe_w4a16[{named(layer.gemm1)},{named(layer.gemm2)}]" for layer in layers}
    assert wanted <= {k["kernel"] for k in run["kernels"]}


def test_every_tile_that_the_model_may_choose_was_judged():
    run = json.loads((RECORDED / "menu_tiles.json").read_text())
    assert set(run["exit_codes"]) == {0}
    assert all(k["status"] == "legal" and k["exact"] == k["judged"] > 0 for k in run["kernels"])
    wanted = {f"{lead}{in_full(tile)}" for lead, menu in (("", MENU), ("linear-", LINEARS)) for tile in menu}
    assert wanted == {k["kernel"] for k in run["kernels"]}
    elements = sum(k["judged"] for k in run["kernels"])
    page = " ".join((ROOT / "docs" / "performance.md").read_text().split())
    assert f"all {len(wanted)} tiles of both menus, {elements / 1e6:.1f} million elements" in page


def in_full(tile: Any) -> str:
    """Return a tile's name as tests/on_hardware/menu_tiles.py makes it."""
    return f"{type(tile).__name__.lower()}{'-'.join(str(value) for value in vars(tile).values())}"


ROWS = json.loads((RECORDED / "rows.json").read_text())


def short(us: float) -> str:
    return f"{us:.1f}" if us < 100 else f"{us:,.0f}"


def beside(row: dict[str, Any], peer: str = "") -> str:
    return f"{short(row['us'])} / {peer}{short(row['peer_us'])} ({row['ratio']:.2f})"


def test_every_row_beside_vllm_is_on_the_page_and_in_the_readme():
    layers = {(row["model"], row["T"]): row for row in ROWS["layers"]}
    names, tokens = (list(dict.fromkeys(key[i] for key in layers)) for i in (0, 1))
    assert (len(names), sorted(tokens), len(layers)) == (9, [1, 4, 8, 16, 64, 256, 512, 1024, 2048, 4096], 90)
    page, readme = (ROOT / "docs" / "performance.md").read_text(), (ROOT / "README.md").read_text()
    for name in names:
        cells = [f"{beside(row)} {row['x_floor']:.2f}x" for T in sorted(tokens) for row in [layers[name, T]]]
        assert f"| {name} | {' | '.join(cells)} |" in page
        few = [layers[name, T] for T in (1, 4, 16, 64, 256, 1024, 4096)]
        assert " | ".join(f"{short(row['us'])} ({row['ratio']:.2f})" for row in few) in readme
        steps = {row["T"]: row for row in ROWS["steps"] if row["model"] == name}
        assert f"| {name} | {' | '.join(beside(steps[T]) for T in (1, 16, 64))} |" in page
    linears: dict[str, list[str]] = {}
    for row in sorted(ROWS["linears"], key=lambda row: row["T"]):
        linears.setdefault(f"{row['N']} x {row['K']}", []).append(beside(row, f"{row['peer']} "))
    assert len(linears) == 14
    for size, found in linears.items():
        assert f"| {size} | {' | '.join(found)} |" in page
    assert ROWS["command"] in page


def test_what_is_said_of_the_rows_holds():
    layers = ROWS["layers"]
    ahead = [row["ratio"] for row in layers]
    mean = math.exp(sum(map(math.log, ahead)) / len(ahead))
    page = (ROOT / "docs" / "performance.md").read_text()
    for text in (page, (ROOT / "README.md").read_text()):
        assert f"{sum(one > 1 for one in ahead)} of {len(ahead)} rows, {mean:.2f} times as fast" in text
    far = [row for row in layers if row["T"] >= 512]
    assert f"{sum(row['x_floor'] > 1.6 for row in far)} of {len(far)} rows above 1.6" in " ".join(page.split())
    few = [row for row in ROWS["linears"] if row["T"] <= 128]
    assert f"ahead in {sum(row['ratio'] > 1 for row in few)} of {len(few)} rows" in page
    assert {
        verdict for kind in ("layers", "linears") for row in ROWS[kind] for verdict in row["verdicts"].values()
    } == {"legal"}
    assert ROWS["spills"] == {}
