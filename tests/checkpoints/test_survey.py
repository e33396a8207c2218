"""`moeracle checkpoint show`: what it recognises, and every contradiction planted in a small file."""

from __future__ import annotations

import json

import pytest
import torch

from moeracle.checkpoints import load_checkpoint
from moeracle.checkpoints.survey import survey
from moeracle.cli import main
from moeracle.ref.weights.layouts import SEQUENTIAL
from support.checkpoints import (
    AWQ,
    BARE_AUTO_ROUND,
    COMPRESSED,
    GPTQ_V1,
    GPTQ_V2,
    SHARED,
    awq,
    compressed,
    gptq,
    layer_of,
    words,
    write,
)


def gptq_v2(made):
    return gptq(made, v1=False)


def problems(folder):
    return survey(load_checkpoint(folder)).problems


CLEAN = {
    "v1": (gptq, GPTQ_V1), "v2": (gptq_v2, GPTQ_V2), "bare auto_round": (gptq_v2, BARE_AUTO_ROUND), "awq": (awq, AWQ),
    "compressed": (compressed, COMPRESSED),
    "auto_awq": (awq, {**BARE_AUTO_ROUND, "packing_format": "auto_round:auto_awq"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAN)
def test_a_right_file_has_no_problem(tmp_path, name):
    pack, config = CLEAN[name]
    assert problems(write(tmp_path, layer_of(pack, experts=4)["tensors"], config)) == []


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not on this machine")
def test_real_files_have_no_problem():
    folders = sorted(folder for folder in SHARED.iterdir() if folder.is_dir())
    assert len(folders) >= 9
    assert {folder.name: problems(folder) for folder in folders} == {folder.name: [] for folder in folders}


def sequential_awq(made):
    return awq(made, SEQUENTIAL)


def awq_with_sequential_zeros(made):
    return {**awq(made), "qzeros": words(made.zero.mT)}


def reversed_order(made):
    return gptq(made, order=torch.arange(made.codes.shape[1] - 1, -1, -1) // 32)


PLANTED = {
    "v2 called v1": (gptq_v2, GPTQ_V1, {}, "zero points are read one too high (F06)"),
    "v1 called v2": (gptq, GPTQ_V2, {}, "zero points are read one too low (F06)"),
    "v1 in bare auto_round": (gptq, BARE_AUTO_ROUND, {}, "zero points are read one too low (F06)"),
    "symmetric v2 called v1": (
        gptq_v2, {**GPTQ_V1, "sym": True}, {"asym": False}, "every zero point 9: read as v1, their words say v2"
    ),
    "linear words called AWQ": (sequential_awq, AWQ, {}, "the words are not in AWQ's order (F08)"),
    "zeros not interleaved": (awq_with_sequential_zeros, AWQ, {}, "zero points are read interleaved, but fit"),
    "AWQ called GPTQ": (awq, GPTQ_V1, {}, "awq by their tensors' shapes, the config says gptq"),
    "GPTQ called AWQ": (gptq, AWQ, {}, "gptq by their tensors' shapes, the config says awq"),
    "act-order undeclared": (reversed_order, GPTQ_V1, {}, "in act-order by g_idx, desc_act is false"),
    "group size": (gptq, {**GPTQ_V1, "group_size": 16}, {}, "groups of 32 by their tensors, 16 by the config"),
    "bits": (gptq, {**GPTQ_V1, "bits": 8}, {}, "4 bits by their tensors, 8 by the config"),
    "symmetric": (gptq, {**GPTQ_V1, "sym": True}, {}, "other zero points than the middle, the config"),
    "skipped": (gptq, {**GPTQ_V1, "dynamic": {r"-:.*\.up_proj": {}}}, {}, "quantized, the config says skipped"),
    "no config": (gptq, None, {}, "has no quantization_config"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_contradiction_is_named(tmp_path, name):
    pack, config, options, message = PLANTED[name]
    found = problems(write(tmp_path, layer_of(pack, experts=4, **options)["tensors"], config))
    assert any(message in text for text in found), found


def test_a_layer_that_was_not_quantized(tmp_path):
    layer = layer_of(gptq)
    module = "model.layers.0.mlp.experts.1.up_proj"
    tensors = {name: t for name, t in layer["tensors"].items() if not name.startswith(module)}
    tensors[f"{module}.weight"] = layer["made"][module].weight().half()
    found = problems(write(tmp_path, tensors, GPTQ_V1))
    assert any("up_proj is fp16, the config says quantized" in text for text in found), found


def test_stored_15s_and_scales_are_counted(tmp_path):
    layer = layer_of(gptq, experts=1)
    tensors, module = layer["tensors"], "model.layers.0.mlp.experts.0.gate_proj"
    tensors[f"{module}.qzeros"][0, 0] = -1
    scales = tensors[f"{module}.scales"]
    scales[0, :3], scales[0, 3:5], scales[0, 5], scales[0, 6] = -scales[0, :3], 0, 2e-6, float("inf")
    found = survey(load_checkpoint(write(tmp_path, tensors, GPTQ_V1)))
    facts = next(f for f in found.facts if f.module == module)
    assert (facts.stored_15s, facts.negative, facts.zeros, facts.subnormal, facts.nonfinite) == (8, 3, 2, 1, 1)
    assert any("8 stored zero points of all ones" in text and module in text for text in found.problems)


def test_dtypes_that_surprise(tmp_path):
    tensors = {**layer_of(gptq)["tensors"], "model.layers.0.mlp.gate.weight": torch.ones(2, 64)}
    notes = survey(load_checkpoint(write(tmp_path, tensors, GPTQ_V1, dtype="bfloat16"))).notes
    assert any("router: model.layers.0.mlp.gate is F32 in a BF16 model" in note for note in notes)
    assert any("scales of 6 linears are F16 in a BF16 model" in note for note in notes)


def test_two_config_files_that_disagree(tmp_path):
    folder = write(tmp_path, layer_of(gptq)["tensors"], GPTQ_V1)
    (folder / "quantize_config.json").write_text(json.dumps({**GPTQ_V1, "bits": 8}))
    assert problems(folder) == ["quantize_config.json: bits is 8, config.json says 4 and wins"]


def test_a_damaged_tensor_is_a_problem_and_the_rest_is_shown(tmp_path, capsys):
    tensors = layer_of(gptq)["tensors"]
    name = "model.layers.0.mlp.experts.0.gate_proj.qzeros"
    tensors[name] = tensors[name][:1]
    assert main(["checkpoint", "show", str(write(tmp_path, tensors, GPTQ_V1))]) == 1
    out = capsys.readouterr().out
    assert "PROBLEM: model.layers.0.mlp.experts.0.gate_proj.qzeros: has shape [1, 4], must be [2, 4] as gptq" in out
    assert "expert down" in out


def test_show_writes_json_and_a_page(tmp_path, capsys):
    folder = write(tmp_path / "<b>x", layer_of(gptq_v2)["tensors"], GPTQ_V1)
    json_file, page = tmp_path / "shown.json", tmp_path / "shown.html"
    assert main(["checkpoint", "show", str(folder), "--json", str(json_file), "--html", str(page)]) == 1
    shown = json.loads(json_file.read_text())
    assert [row["kind"] for row in shown["rows"]] == ["expert down", "expert gate", "expert up"]
    assert shown["expert_layers"] == [0]
    assert len(shown["problems"]) == 1
    text = page.read_text()
    assert "read one too high" in text
    assert "<b>x" not in text
    assert "http:" not in text
    assert "https:" not in text
    assert "PROBLEM: codes lie" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent: is not there"),
        (["{folder}", "--zeros", "carry"], "zeros: got 'carry', must be one of"),
        (["{folder}", "--json", "{folder}"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    folder = write(tmp_path / "x", layer_of(gptq)["tensors"], GPTQ_V1)
    assert main(["checkpoint", "show", *(a.format(folder=folder) for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
