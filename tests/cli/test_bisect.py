"""`moeracle bisect stages` and `config`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CASE = "moe_w4a16/T4-E3-k2-H64-I64-G32/bf16/exllama-sym/uniform/normal/s3"

LAYER = """
import os
import torch
import moeracle


def weights(w, e, dtype):
    matrix = w.expert(e)
    scale = matrix.scale.float()
    {scale}
    return ((matrix.codes().float() - 8) * scale.repeat_interleave(matrix.G, 1)).to(dtype).float()


@moeracle.kernel("moe_w4a16", layout="exllama", contract="grouped")
def fused(x, w13, w2, topk_weights, topk_ids):
    T, k = topk_ids.shape
    out = torch.zeros(T, w2.N)
    for t in range(T):
        for j in range(k):
            e = int(topk_ids[t, j])
            if e < 0:
                continue
            h = (x[t].float() @ weights(w13, e, x.dtype).T).to(x.dtype)
            gate, up = h.float().chunk(2)
            a = (({silu}).to(x.dtype).float() * up).to(x.dtype)
            out[t] += (a.float() @ weights(w2, e, x.dtype).T).to(x.dtype).float() * topk_weights[t, j]
    return out.to(x.dtype)
"""
SINGLE = """
@moeracle.kernel("silu_and_mul", contract="grouped")
def silu(h):
    gate, up = h.float().chunk(2, 1)
    return (({silu}).to(h.dtype).float() * up).to(h.dtype)
"""


SILU = "gate / (1 + torch.exp(-gate))"
STEEPER = "gate / (1 + torch.exp(-1.005 * gate))"


def layer(scale: str = "", silu: str = SILU, single: bool = False) -> str:
    return LAYER.format(scale=scale, silu=silu) + (SINGLE.format(silu=silu) if single else "")


def test_a_fused_kernel_is_convicted_and_the_probes_are_shown(cli, write, tmp_path: Path) -> None:
    target = write(layer(silu=STEEPER))
    done = cli("bisect", "stages", target, "--case", CASE, "--json", "found.json")
    assert done.code == 1, done.err
    lines = done.out.splitlines()
    assert any(line.startswith("small gates") and "WRONG" in line for line in lines)
    assert sum("  right  " in line for line in lines) > 25
    assert "first wrong stage: activation" in done.out
    assert "known fault: F38 slope of silu off by 0.5 %" in done.out
    assert any(line.startswith("smallest case: moe_w4a16/T1-") for line in lines)
    found = json.loads(Path("found.json").read_text())
    assert (found["kind"], found["format_version"]) == ("moeracle bisect stages", 1)
    assert found["kernel"]["stage"] == "activation"
    assert found["kernel"]["fault"]["id"] == "F38"
    assert found["kernel"]["probes"][-1]["passed"] is False
    assert found["single_kernels"] is None


def test_single_kernels_of_the_target_are_judged_in_turn(cli, write) -> None:
    target = write(layer(silu=STEEPER, single=True))
    done = cli("bisect", "stages", target, "--case", CASE, "--shrink", "0")
    assert done.code == 1, done.err
    assert "first wrong of them: activation" in done.out
    assert "first wrong stage: activation" in done.out


def test_a_legal_kernel_convicts_nobody(cli, write) -> None:
    done = cli("bisect", "stages", write(layer(single=True)), "--case", CASE)
    assert (done.code, done.err) == (0, "")
    assert "nothing is wrong with this case" in done.out
    assert "WRONG" not in done.out


def test_a_case_that_the_kernel_does_not_take_is_unjudged(cli, write) -> None:
    done = cli("bisect", "stages", write(layer()), "--case", CASE.replace("exllama", "gptq"))
    assert done.code == 3
    assert "nothing could be judged" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "moe_w4a16/T4"], "case: got 2 fields"),
        (["--case", CASE.replace("moe_w4a16", "int4_linear").replace("T4-E3-k2-H64-I64", "T4-N64-K64")], "error: "),
        (["--case", CASE, "--device", "tpu"], "device: got 'tpu'"),
        (["--case", CASE, "--json", "nowhere/f.json"], "nowhere/f.json: cannot be written"),
        ([], "--case"),
    ],
)
def test_mistakes_are_one_line(cli, write, arguments: list[str], message: str) -> None:
    done = cli("bisect", "stages", write(layer()), *arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_two_kernels_of_one_op_must_be_told_apart(cli, write) -> None:
    twice = layer() + layer().replace("def fused", "def other")
    done = cli("bisect", "stages", write(twice), "--case", CASE)
    assert done.code == 2
    assert "2 kernels for op moe_w4a16; name one: my_kernels.py:NAME of fused, other" in done.err
    done = cli("bisect", "stages", write(layer() + layer()), "--case", CASE)
    assert "2 kernels for op moe_w4a16; all named fused; must have names of their own" in done.err


SETTINGS = 'scale = scale.roll(-1, 1) if os.environ.get("SPLIT") == "4" else scale'


def test_the_smallest_set_of_settings_is_found(judged, write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPLIT", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    target = write(layer(scale=SETTINGS))
    good, bad = ["--good", "OTHER=a"], ["--bad", "OTHER=b", "--bad", "SPLIT=4"]
    done = judged("bisect", "config", target, "--case", CASE, *good, *bad, "--repeat", "1", "--json", "found.json")
    assert done.code == 1, done.err
    assert "  SPLIT: not set -> '4'" in done.out
    assert "OTHER:" not in done.out
    assert "these as in GOOD: it is legal" in done.out
    assert "first wrong stage: scale" in done.out
    assert "known fault: F29" in done.out
    found = json.loads(Path("found.json").read_text())
    assert found["minimal"] == ["SPLIT"]
    assert found["stages"]["kernel"]["stage"] == "scale"
    assert len(found["tried"]) <= 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--good", "SPLIT=1", "--bad", "SPLIT"], "--bad: got 'SPLIT', must be KEY=VALUE"),
        (["--good", "A=1", "--good", "A=2", "--bad", "A=3"], "--good: got A twice"),
        (["--good", "A=1", "--bad", "A=1"], "--bad: got the same settings as --good"),
        (["--good", "tile.block_m=16", "--bad", "tile.block_m=32"], "takes no config=Tile"),
    ],
)
def test_settings_that_cannot_be_searched_are_one_line(cli, write, settings: list[str], message: str) -> None:
    done = cli("bisect", "config", write(layer()), "--case", CASE, "--repeat", "1", *settings)
    assert done.code == 2
    assert message in done.err.strip().splitlines()[-1]


def test_the_table_of_faults(cli) -> None:
    done = cli("bisect", "faults", "--fault", "F44", "--kind", "stored", "--json", "table.json")
    assert done.code == 0, done.err
    assert "stored: 1 right of 1" in done.out
    [planted] = json.loads(Path("table.json").read_text())["planted"]
    assert (planted["expected"], planted["found"], planted["verdict"]) == ("gemm2", "gemm2", "right")
    assert cli("bisect", "faults", "--kind", "stoerd").code == 2
