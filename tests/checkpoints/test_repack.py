"""`moeracle checkpoint repack`: every bit in another format, or a refusal that says which one is lost."""

from __future__ import annotations

import json

import pytest
import torch

from moeracle.checkpoints import load_checkpoint, repack
from moeracle.checkpoints.diff import diff
from moeracle.checkpoints.encode import TARGETS
from moeracle.checkpoints.files import TensorFiles
from moeracle.checkpoints.survey import survey
from moeracle.cli import main
from support.checkpoints import AWQ, COMPRESSED, GPTQ_V1, GPTQ_V2, awq, compressed, gptq, layer_of, write


def gptq_v2(made):
    return gptq(made, v1=False)


SOURCES = {
    "gptq": (gptq, GPTQ_V1),
    "gptq_v2": (gptq_v2, GPTQ_V2),
    "awq": (awq, AWQ),
    "compressed-tensors": (compressed, COMPRESSED),
}
OTHERS = {
    "lm_head.weight": torch.randn(8, 64).half(),
    "model.norm.weight": torch.ones(64),
    "model.layers.0.mlp.gate.weight": torch.ones(2, 64),
}


def source(folder, name, others=OTHERS, **options):
    pack, config = SOURCES[name]
    return write(folder, {**layer_of(pack, **options)["tensors"], **others}, config)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", SOURCES)
def test_from_every_format_to_every_format(tmp_path, name, to):
    a, out = source(tmp_path / "a", name), tmp_path / "b"
    assert main(["checkpoint", "repack", str(a), "--to", to, "--out", str(out)]) == 0
    before, after = load_checkpoint(a), load_checkpoint(out)
    found = diff(before, after)
    assert (found.compared, found.differences, found.only_a, found.only_b) == (9, [], [], [])
    assert survey(after).problems == []
    assert torch.equal(after.files.read("model.norm.weight"), OTHERS["model.norm.weight"])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("layout", ["exllama", "nibble_pairs", "compressed_tensors"])
def test_a_kernels_layout(tmp_path, layout):
    a, out = source(tmp_path / "a", "awq"), tmp_path / "b"
    assert main(["checkpoint", "repack", str(a), "--to", layout, "--out", str(out)]) == 0
    files = TensorFiles(out, ["model.safetensors"])
    weight = repack.read_layout(files, json.loads((out / "layout.json").read_text()), "layers.0.w13")
    expected = load_checkpoint(a).layer(0).experts().w13
    assert weight.layout == layout
    assert torch.equal(weight.dequantize(), expected.dequantize())


def change(tensors, part, edit):
    for name in tensors:
        if name.endswith(part):
            tensors[name] = edit(tensors[name])
    return tensors


LOSSY = {
    "zero point 0": ("gptq_v2", "qzeros", torch.zeros_like, "gptq", "zero points 0, which v1 stores as all ones"),
    "bf16 scales": ("compressed-tensors", "weight_scale", lambda t: t.bfloat16() * 2.0**-30, "awq", "bfloat16 scales"),
    "act-order": ("gptq", "g_idx", lambda t: t.flip(0), "awq", "act-order (g_idx), which AWQ has no tensor for"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSY)
def test_what_would_lose_bits_is_refused_and_nothing_is_written(tmp_path, capsys, name):
    kind, part, edit, to, message = LOSSY[name]
    pack, config = SOURCES[kind]
    a = write(tmp_path / "a", change(layer_of(pack)["tensors"], part, edit), config)
    assert main(["checkpoint", "repack", str(a), "--to", to, "--out", str(tmp_path / "b")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert f"{to} would lose it" in err
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_act_order_survives_where_there_is_a_tensor_for_it(tmp_path):
    tensors = change(layer_of(gptq)["tensors"], "g_idx", lambda t: t.flip(0))
    a = write(tmp_path / "a", tensors, {**GPTQ_V1, "desc_act": True})
    for to in ("gptq_v2", "compressed-tensors"):
        assert main(["checkpoint", "repack", str(a), "--to", to, "--out", str(tmp_path / to)]) == 0
        assert diff(load_checkpoint(a), load_checkpoint(tmp_path / to)).differences == []


def test_a_copy_that_reads_back_otherwise_is_not_kept(tmp_path, monkeypatch):
    """Planted: a writer that drops the last bit of the first code."""
    a = source(tmp_path / "a", "gptq")
    right = repack.TARGETS["awq"]

    def wrong(w, symmetric):
        parts = right.encode(w, symmetric)
        return {**parts, "qweight": parts["qweight"] ^ 1}

    monkeypatch.setitem(repack.TARGETS, "awq", type(right)(right.why_not, wrong, right.config))
    with pytest.raises(ValueError, match="reads back otherwise than it was; nothing was kept"):
        repack.repack(load_checkpoint(a), "awq", tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_large_ones_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(repack, "SHARD_BYTES", 4000)
    a = source(tmp_path / "a", "gptq")
    done = repack.repack(load_checkpoint(a), "compressed-tensors", tmp_path / "b")
    assert done.files > 2
    assert diff(load_checkpoint(a), load_checkpoint(tmp_path / "b")).differences == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "gptqv2", "--out", "{new}"], "did you mean 'gptq_v2'"),
        (["--to", "awq", "--out", "{folder}"], "is there already, must be a new folder"),
        (["--to", "awq", "--out", "{new}/x/y"], "is not there"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    folder = source(tmp_path / "a", "gptq")
    given = [a.format(folder=folder, new=tmp_path / "new") for a in arguments]
    assert main(["checkpoint", "repack", str(folder), *given]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_nothing_to_repack(tmp_path, capsys):
    folder = write(tmp_path / "a", {"x.weight": torch.ones(2, 2)}, None)
    assert main(["checkpoint", "repack", str(folder), "--to", "awq", "--out", str(tmp_path / "b")]) == 2
    assert "holds no quantized weight" in capsys.readouterr().err
