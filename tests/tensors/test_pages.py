"""The page about tensors and its examples run as they stand; tolerances and the comparisons of others."""

from __future__ import annotations

import importlib.util
import json
import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from moeracle import NotJudged, testing, tolerance_report
from moeracle.clients import CLIENTS

from .made import LAYER, arguments, layer, linear

ROOT = Path(__file__).resolve().parents[2]


def loaded(path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_code_of_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tensors.md").read_text(), re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, Any] = {"folder": tmp_path}
    for block in blocks:
        exec(compile(block, "docs/tensors.md", "exec"), names)
    assert len(list(tmp_path.iterdir())) == 1
    assert "known faults planted it misses" in capsys.readouterr().out


def test_the_notebook_runs_and_shows_a_map(capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads((ROOT / "examples/tensors.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["right"].ok
    assert names["verdict"].verdict.diagnosis["id"]
    assert "<svg" in names["verdict"]._repr_html_()
    assert "these pass: " in capsys.readouterr().out


def test_the_pytest_example_passes() -> None:
    loaded("examples/tensors_pytest.py").test_your_layer()


def test_the_adapter_judges_a_call_like_vllms() -> None:
    text = LAYER.replace("exllama-sym", "nibble_pairs-asym")
    problem, stages = layer(text, CLIENTS["vllm.fused_moe_wna16"].contract)
    x, w1, w2, weights, ids = problem.args.values()
    more = {"w1_scale": w1.scale, "w2_scale": w2.scale, "w1_zp": w1.zero, "w2_zp": w2.zero}
    legal = loaded("examples/tensors_vllm.py").assert_fused_experts_legal
    legal(stages["out"], x, w1.packed, w2.packed, weights, ids.long(), **more)
    with pytest.raises(AssertionError, match="FAIL"):
        legal(
            stages["out"].flip(1), x, w1.packed, w2.packed, weights, ids.long(), **more, client="sglang.fused_moe_wna16"
        )


def test_a_loose_tolerance_is_told_what_it_misses() -> None:
    problem, out = linear()
    tight = tolerance_report("int4_linear", out, contract="grouped", **problem.args)
    assert tight.legal
    assert 0 < tight.atol < 0.5
    assert tight.tolerance == (tight.atol, 0.0)
    assert not any(tight.passes.values())
    assert tight.seen
    loose = tolerance_report("int4_linear", out, contract="grouped", atol=100.0, **problem.args)
    assert loose.passes == dict.fromkeys(loose.passes, True)
    assert {"zeros", "rows swapped", "one row lost"} <= loose.passes.keys()
    assert set(loose.seen) < set(tight.seen)  # NaN, and what is larger than 100
    assert set(tight.missed) < set(loose.missed)
    assert f"misses {len(loose.missed)}" in str(loose)


def test_another_experts_rows_pass_only_what_is_too_wide() -> None:
    reports = [
        tolerance_report(
            "moe_w4a16", layer()[1], contract="grouped", atol=atol, rtol=0.0, **{**arguments(), "w13": dense}
        )
        for dense in [arguments()["w13"].dequantize().bfloat16()]
        for atol in (1e-6, 1e3)
    ]
    assert [report.passes["another expert's rows"] for report in reports] == [False, True]
    assert all(report.why_no_faults for report in reports)


def test_a_share_of_elements_that_need_not_be_close() -> None:
    problem, out = linear()
    wrong = out.clone()
    wrong[0, 0], wrong[0, 1] = 99.0, torch.nan
    strict, loose = (
        tolerance_report("int4_linear", wrong, **{**problem.args, "contract": "grouped"}, share=share)
        for share in (0.0, 2.5 / out.numel())
    )
    assert strict.atol == float("inf")
    assert loose.atol == tolerance_report("int4_linear", out, contract="grouped", share=0.0, **problem.args).atol
    assert "of the elements free" in str(loose)
    with pytest.raises(NotJudged, match="share: got 1, must be from 0 to below 1"):
        tolerance_report("int4_linear", out, share=1, contract="grouped", **problem.args)


def test_every_integration_has_a_page_and_a_patch_of_few_lines() -> None:
    folder = ROOT / "integrations"
    patches = sorted(folder.glob("*.patch"))
    assert len(patches) == 6
    table = (folder / "README.md").read_text()
    for patch in patches:
        lines = patch.read_text().splitlines()
        added = [line for line in lines if line.startswith("+") and not line.startswith("+++")]
        assert 0 < len(added) <= 6
        assert any("moeracle import" in line for line in added)
        _is_unified(lines)
        page = patch.with_suffix(".md")
        assert patch.name in page.read_text()
        assert f"({page.name})" in table
        named = re.findall(r"client=\"([\w.]+)\"", patch.read_text())
        assert all(name in CLIENTS for name in named)


def _is_unified(lines: list[str]) -> None:
    """Each hunk has as many lines, before and after, as its header says, and lies where the ones before leave it."""
    assert [line[:6] for line in lines[:2]] == ["--- a/", "+++ b/"]
    assert lines[0][6:] == lines[1][6:]
    headers = [i for i, line in enumerate(lines) if line.startswith("@@")]
    assert len(headers) > 1
    moved = 0
    for start, end in zip(headers, [*headers[1:], len(lines)], strict=True):
        found = re.fullmatch(r"@@ -(\d+),(\d+) \+(\d+),(\d+) @@.*", lines[start])
        assert found is not None
        body = lines[start + 1 : end]
        before, after = (sum(line[0] in kept for line in body) for kept in (" -", " +"))
        assert [int(found[2]), int(found[4])] == [before, after]
        assert int(found[3]) == int(found[1]) + moved
        assert {line[0] for line in body} <= set(" +-")
        moved += after - before


def test_a_tolerance_on_integers_is_refused() -> None:
    ids = torch.tensor([[0, 1], [1, 0]])
    from moeracle import ref

    with pytest.raises(NotJudged, match="no tolerance can be put on it"):
        tolerance_report("moe_align_block_size", ref.moe_align_block_size(ids, 2, 2), ids, 2, 2)


def test_the_comparisons_of_others_raise() -> None:
    problem, out = linear()
    a, b = torch.zeros(8), torch.zeros(8)
    assert testing.checkAllclose(a, b) == 0
    for wrong in (b + 1, b * torch.nan, b.double(), torch.zeros(1)):
        with pytest.raises(AssertionError):
            testing.checkAllclose(a, wrong)
    assert testing.check_all_close(a, torch.tensor([1.0, *[0.0] * 7]), tol_err_ratio=0.2) == 0.125
    with pytest.raises(NotJudged):
        testing.check_all_close(torch.zeros(0), torch.zeros(0))
    judged = {"op": "int4_linear", "inputs": problem.args, "contract": "grouped"}
    testing.assert_close(out, out * 0, atol=9, **judged)  # the output is judged: what the test expected is not asked
    assert testing.check_all_close(out * 0, out, **judged) == 0
    with pytest.raises(AssertionError, match="FAIL"):
        testing.assert_close(out.flip(1), out.flip(1), **judged, save=False, explain=False)
    with pytest.raises(AssertionError):
        testing.assert_close(a, a + 1)
