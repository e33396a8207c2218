"""`check --checkpoint` and `bisect stages --checkpoint`: the file's weights are judged, and a replay has them again."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch

from moeracle.checkpoints.layer_data import expert_ids, open_layer
from moeracle.cli import main
from moeracle.properties.cases.case import Case
from support.checkpoints import COMPRESSED, GPTQ_V1, compressed, gptq, layer_of, write

KERNELS = """
from dataclasses import replace
import torch
import moeracle
from moeracle import ref

LAYER = dict(layout="exllama", contract="megakernel,weight=exact,accumulator=fp32,stores=out")

@moeracle.kernel("moe_w4a16", zeros=("sym", "unpacked"), **LAYER)
def right(x, w13, w2, topk_weights, topk_ids):
    return ref.moe_w4a16(x, w13, w2, topk_weights, topk_ids).to(x.dtype)

@moeracle.kernel("moe_w4a16", zeros=("sym", "unpacked"), **LAYER)
def positive(x, w13, w2, topk_weights, topk_ids):
    w13, w2 = replace(w13, scale=w13.scale.abs()), replace(w2, scale=w2.scale.abs())
    return ref.moe_w4a16(x, w13, w2, topk_weights, topk_ids).to(x.dtype)

@moeracle.kernel("moe_w4a16", zeros=("unpacked",), **LAYER)
def up_to_14(x, w13, w2, topk_weights, topk_ids):
    w13 = replace(w13, zero=w13.zero.clamp(max=14))
    return ref.moe_w4a16(x, w13, w2, topk_weights, topk_ids).to(x.dtype)

@moeracle.kernel("int4_linear", layout="gptq", contract="wvsplitk", zeros=("v1",))
def linear(x, w, bias):
    y = x.float() @ w.dequantize(torch.float32).T
    return (y if bias is None else y + bias.float()).to(x.dtype)

@moeracle.kernel("moe_w4a16", **LAYER)
def symmetric_only(x, w13, w2, topk_weights, topk_ids):
    return ref.moe_w4a16(x, w13, w2, topk_weights, topk_ids).to(x.dtype)

@moeracle.kernel("topk_softmax")
def router(logits, top_k, renormalize):
    return ref.topk_softmax(logits, top_k, renormalize=renormalize)
"""


@pytest.fixture
def target(tmp_path):
    file = tmp_path / "their_kernels.py"
    file.write_text(KERNELS)
    return str(file)


def negative(made):
    """Half of all scales negative, as AutoRound writes them: codes are mirrored so that weights stay."""
    scale, zero, codes = made.scale.clone(), made.zero, made.codes
    scale[::2] = -scale[::2]
    return compressed(made._replace(scale=scale, codes=codes, zero=zero), symmetric=True)


@pytest.fixture
def symmetric(tmp_path):
    groups = {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, "strategy": "group"}}}
    layer = layer_of(negative, experts=4, asym=False)
    return str(
        write(tmp_path / "sym", layer["tensors"], {**COMPRESSED, "config_groups": groups}, num_experts_per_tok=2)
    )


@pytest.fixture
def asymmetric(tmp_path):
    layer = layer_of(gptq, experts=3)
    for made in layer["made"].values():
        made.zero[::3] = 15
    tensors = {f"{m}.{part}": t for m, made in layer["made"].items() for part, t in gptq(made).items()}
    return str(write(tmp_path / "asym", tensors, GPTQ_V1))


SMOKE = ["--profile", "smoke", "--examples", "2", "--in-process"]


def test_a_right_kernel_is_legal_on_the_files_weights(target, asymmetric, capsys):
    assert main(["check", f"{target}:right", "--checkpoint", asymmetric, *SMOKE]) == 0
    out = capsys.readouterr().out
    assert "layer 0, 3 of 3 experts, H 64, I 32, G 32, with zero points, float16 scales" in out
    assert "legal" in out


def test_a_gemm_is_judged_on_the_first_experts_weights(target, asymmetric):
    assert main(["check", f"{target}:linear", "--checkpoint", asymmetric, "--experts", "2", *SMOKE]) == 0


@pytest.mark.parametrize(("name", "file"), [("positive", "symmetric"), ("up_to_14", "asymmetric")])
def test_a_kernel_that_only_real_weights_convict(target, name, file, request, tmp_path, capsys):
    folder = request.getfixturevalue(file)
    made = [
        "check",
        f"{target}:{name}",
        "--case",
        "moe_w4a16/T5-E4-k2-H64-I32-G32/fp16/exllama-unpacked/uniform/normal/s0",
    ]
    if name == "positive":  # made scales are positive: nothing to see
        assert main([*made[:-1], made[-1].replace("unpacked", "sym"), "--in-process"]) == 0
    report = tmp_path / "r.json"
    assert (
        main(["check", f"{target}:{name}", "--checkpoint", folder, "--experts", "0-2", *SMOKE, "--json", str(report)])
        == 1
    )
    out = capsys.readouterr().out
    replay = re.search(r"replay: moeracle (.*)", out)[1]
    assert f"--checkpoint {folder} --layer 0 --experts 0,1,2" in replay
    assert main([*shlex.split(replay), "--in-process"]) == 1
    first = json.loads(report.read_text())["kernels"][0]["failures"][0]
    assert first["text"].splitlines()[-1].endswith("--experts 0,1,2")
    assert f"{first['illegal']:,} of" in capsys.readouterr().out  # the same elements again


def test_bisect_stages_takes_the_weights_too(target, symmetric, capsys):
    case = "moe_w4a16/T5-E4-k2-H64-I32-G32/fp16/exllama-sym/uniform/normal/s0"
    command = ["bisect", "stages", f"{target}:positive", "--case", case]
    assert main(command) == 0
    assert main([*command, "--checkpoint", symmetric]) == 1
    assert "--layer 0 --experts 0,1,2,3" in capsys.readouterr().out


def test_kernels_that_cannot_are_left_out_and_said_so(target, asymmetric, capsys):
    assert main(["check", target, "--checkpoint", asymmetric, *SMOKE]) == 1  # positive and up_to_14 are wrong
    out = capsys.readouterr().out
    assert "not judged: [moe_w4a16] symmetric_only reads sym, but layer 0 has zero points other than 8" in out
    assert "not judged: [topk_softmax] router reads no int4 weight" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "1"], "layer: got 1, must be one of 0..0"),
        (["--experts", "0,3"], "experts: got '0,3', must be each once, of 0..2"),
        (["--experts", "1-"], "experts: got '1-', must be like 0,3,8-11 or all"),
        (
            ["--case", "moe_w4a16/T5-E4-k2-H64-I32-G32/fp16/exllama-sym/uniform/normal/s0"],
            "--case: layer 0 has other sizes than E 4",
        ),
    ],
)
def test_mistakes_are_one_line(target, asymmetric, capsys, arguments, message):
    assert main(["check", f"{target}:right", "--checkpoint", asymmetric, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_options_of_a_checkpoint_need_one(target, capsys):
    assert main(["check", target, "--layer", "0"]) == 2
    assert "--layer: got 0, but no --checkpoint" in capsys.readouterr().err
    assert main(["check", f"{target}:symmetric_only", "--checkpoint", "absent"]) == 2


@pytest.mark.parametrize(
    ("text", "count", "ids"),
    [
        (None, 3, (0, 1, 2)),
        (None, 64, (0, 8, 16, 24, 32, 40, 48, 56)),
        ("all", 3, (0, 1, 2)),
        ("2,0", 3, (2, 0)),
        ("1-2", 3, (1, 2)),
    ],
)
def test_which_experts_a_text_means(text, count, ids):
    assert expert_ids(text, count) == ids


def test_the_weights_of_a_case_are_the_files(asymmetric):
    data = open_layer(asymmetric, 0, "2,1")
    case = Case.parse("moe_w4a16/T3-E2-k1-H64-I32-G32/bf16/gptq-v1/uniform/normal/s0")
    with data.supplying():
        problem = case.build()
    w13, w2 = problem.args["w13"], problem.args["w2"]
    assert (w13.layout, w13.zero_layout, w13.scale.dtype) == ("gptq", "gptq_v1", torch.bfloat16)
    file = data.checkpoint.layer(0).experts(2, 1)
    assert torch.equal(w13.codes(), file.w13.codes())
    assert torch.equal(w2.zeros(), file.w2.zeros())
    assert torch.equal(w2.scale, file.w2.scale.bfloat16())
    assert not torch.equal(case.build().args["w2"].codes(), w2.codes())
