"""`moeracle checkpoint quantize-head`: the numbers, against a plain calculation, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeracle.checkpoints.head import head_errors
from moeracle.cli import main
from moeracle.ref import quantize_int8
from support.checkpoints import write


def head(V=48, K=256):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(V, K, generator=generator) * torch.rand(V, K // 32, generator=generator).repeat_interleave(32, 1)
    return w.bfloat16()


def test_the_numbers_are_those_of_a_plain_calculation():
    w, x = head(), torch.randn(40, 256, generator=torch.Generator().manual_seed(1))
    found = {(e.group_size, e.quantizer): e for e in head_errors(w, x, (32, -1, 96))}
    assert {group for group, _ in found} == {32, -1}  # 96 does not divide K
    codes, scale = quantize_int8(w, 32)
    back = codes.double() * scale.double().repeat_interleave(32, 1)
    exact, got = x.double() @ w.double().mT, x.double() @ back.mT
    of = found[32, "fp32"]
    assert of.weight_rms == pytest.approx(
        float((back - w.double()).square().mean().sqrt() / w.double().square().mean().sqrt()), rel=1e-4
    )
    assert of.logit_rms == pytest.approx(float((got - exact).square().mean().sqrt() / exact.std()), rel=1e-3)
    assert of.changed == int((got.argmax(1) != exact.argmax(1)).sum())
    assert of.bytes == pytest.approx((1 + 4 / 32) / 2)
    assert of.logit_rms < found[-1, "fp32"].logit_rms
    assert of.logit_rms < found[32, "weight dtype"].logit_rms
    assert of.changed <= of.at_risk


def test_a_changed_best_token_is_counted():
    """Rows 0 and 1 differ by less than a step of int8 beside the large 127 in column 0."""
    w = torch.zeros(4, 32)
    w[:, 0] = 127.0
    w[0, 1], w[1, 1] = 0.4, 0.45
    x = torch.zeros(1, 32)
    x[0, 1] = 1.0
    (error,) = head_errors(w, x, (-1,))
    assert (error.changed, error.at_risk, error.tokens) == (1, 1, 1)


def test_the_command(tmp_path, capsys):
    folder = write(tmp_path / "m", {"lm_head.weight": head()}, None, dtype="bfloat16")
    save_file({"hidden": torch.randn(8, 256), "ids": torch.zeros(3)}, tmp_path / "x.safetensors")
    out, saved = tmp_path / "h.json", tmp_path / "h.safetensors"
    command = [
        "checkpoint",
        "quantize-head",
        str(folder),
        "--as",
        "int8:g64",
        "--activations",
        str(tmp_path / "x.safetensors"),
    ]
    assert main([*command, "--json", str(out), "--save", str(saved)]) == 0
    text = capsys.readouterr().out
    assert "lm_head [48, 256] bfloat16; 8 tokens" in text
    assert text.index("int8:g64 ") < text.index("int8:g32 ")
    assert len(json.loads(out.read_text())["errors"]) == 8
    codes, scale = quantize_int8(head(), 64)
    assert torch.equal(load_file(saved)["lm_head.codes"], codes)
    assert torch.equal(load_file(saved)["lm_head.scale"], scale)


def test_a_tied_head_is_the_embedding(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = write(tmp_path / "m", {"model.embed_tokens.weight": head()}, None)
    plot = tmp_path / "h.png"
    assert main(["checkpoint", "quantize-head", str(folder), "--tokens", "4", "--plot", str(plot)]) == 0
    assert "model.embed_tokens" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--as", "int4"], "option: got 'int4'"),
        (["--as", "int8:g48"], "group_size is 48, must be one of"),
        (["--as", ""], "as: got '', must be int8 or int8:gN"),
        (["--activations", "{tmp}/x.safetensors"], "holds 0 tensors of [T, 256], must hold one"),
        (["--activations", "{tmp}/x.bin"], "is pickled"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    folder = write(tmp_path / "m", {"lm_head.weight": head()}, None)
    save_file({"x": torch.ones(2, 3)}, tmp_path / "x.safetensors")
    assert main(["checkpoint", "quantize-head", str(folder), *(a.format(tmp=tmp_path) for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
