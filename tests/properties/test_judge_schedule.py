"""Judging under a declared schedule: dot products have one legal value, whatever else of a layer stays an interval."""

import pytest
import torch

from moeracle.properties.case import Case
from moeracle.properties.judge import judge
from moeracle.ref.accumulate_tensor_core import AMPERE, HOPPER, fused_dot

LAYER = "moe_w4a16/T9-E4-k2-H512-I128-G32/{}/exllama-sym/zipf1/normal/s7"
RULES = "grouped,schedule=wgmma.k16.sm90"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def layer(problem, core, dtype):
    """The stages of a layer whose GEMMs run on one matrix unit, slot by slot."""
    a = problem.args
    (T, k), ids = a["topk_ids"].shape, a["topk_ids"].flatten().tolist()
    dense = {name: a[name].dequantize(torch.float32).to(dtype) for name in ("w13", "w2")}
    h = torch.stack([fused_dot(a["x"][r // k][None], dense["w13"][e], core)[0] for r, e in enumerate(ids)]).to(dtype)
    half = h.shape[1] // 2
    silu = torch.nn.functional.silu(h[:, :half].float()).to(dtype).float()
    act = (silu * h[:, half:].float()).to(dtype)
    y = torch.stack([fused_dot(act[r][None], dense["w2"][e], core)[0] for r, e in enumerate(ids)]).to(dtype)
    out = (y.float().view(T, k, -1) * a["topk_weights"].view(T, k, 1)).sum(1).to(dtype)
    return {"h": h, "a": act, "y": y, "out": out}


@pytest.mark.parametrize("name", DTYPES)
def test_every_dot_of_a_layer_has_one_legal_value(name):
    problem = Case.parse(LAYER.format(name)).build()
    stages = layer(problem, HOPPER, DTYPES[name])
    verdict = judge(problem, stages, RULES)
    assert verdict.ok
    exact = {s.stage: s.exact == s.judged for s in verdict.stages}
    assert exact["h"]
    assert exact["y"]
    assert judge(problem, stages["out"], RULES).ok  # what it did not store stays an interval
    loose = {s.stage: s.exact == s.judged for s in judge(problem, stages, "grouped").stages}
    assert not loose["h"]


def test_another_unit_is_illegal_though_every_interval_holds_it():
    problem = Case.parse(LAYER.format("fp16")).build()
    stages = layer(problem, AMPERE, torch.float16)
    assert judge(problem, stages, "grouped").ok
    verdict = judge(problem, stages, RULES)
    assert (verdict.status, verdict.stage) == ("illegal", "h")


@pytest.mark.parametrize("stage", ["h", "y"])
def test_one_ulp_of_one_element_is_illegal(stage):
    problem = Case.parse(LAYER.format("bf16")).build()
    stages = layer(problem, HOPPER, torch.bfloat16)
    stages[stage].view(torch.int16)[4, 100] ^= 1
    verdict = judge(problem, stages, RULES)
    found = {s.stage: s.illegal for s in verdict.stages}
    assert found[stage] == 1
    assert verdict.status == "illegal"
