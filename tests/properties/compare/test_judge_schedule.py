"""Judging under a declared schedule: dot products have one legal value, whatever else of a layer stays an interval."""

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.judge import judge
from moeracle.ref.bitmodels.tensor_core import AMPERE, HOPPER, fused_dot

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
    verdict = judge(problem, stages, RULES, explain=False)
    assert (verdict.status, verdict.stage) == ("illegal", "h")


@pytest.mark.parametrize("stage", ["h", "y"])
def test_one_ulp_of_one_element_is_illegal(stage):
    problem = Case.parse(LAYER.format("bf16")).build()
    stages = layer(problem, HOPPER, torch.bfloat16)
    stages[stage].view(torch.int16)[4, 100] ^= 1
    verdict = judge(problem, stages, RULES, explain=False)
    found = {s.stage: s.illegal for s in verdict.stages}
    assert found[stage] == 1
    assert verdict.status == "illegal"


def test_each_gemm_of_a_layer_is_held_to_its_own_schedule():
    problem = Case.parse(LAYER.format("bf16")).build()
    stages = layer(problem, HOPPER, torch.bfloat16)
    a, (T, k) = problem.args, problem.args["topk_ids"].shape
    down = a["w2"].dequantize(torch.float32).to(torch.bfloat16)
    ids = a["topk_ids"].flatten().tolist()
    y = torch.stack([fused_dot(stages["a"][r][None], down[e], AMPERE)[0] for r, e in enumerate(ids)]).bfloat16()
    total = torch.zeros(T, y.shape[1])
    for j in range(k):  # slot after slot, fused
        term = y.view(T, k, -1)[:, j].double() * a["topk_weights"][:, j, None].double()
        total = (total.double() + term).float()
    mixed = {**stages, "y": y, "out": total.bfloat16()}
    own = "gemm2_schedule=mma.m16n8k16.sm80,sum_schedule=fma"
    verdict = judge(problem, mixed, f"{RULES},{own}")
    assert verdict.ok
    assert {s.stage for s in verdict.stages if s.exact == s.judged} == {"h", "y", "out"}
    assert judge(problem, mixed, RULES, explain=False).stage == "y"
    assert judge(problem, stages, f"{RULES},{own}", explain=False).stage == "y"
    mixed["out"].view(torch.int16)[2, 3] ^= 1
    illegal = judge(problem, mixed, f"{RULES},{own}", explain=False)
    assert (illegal.status, illegal.stage) == ("illegal", "out")


def test_an_int8_head_is_held_to_scales_that_enter_group_by_group():
    problem = Case.parse("int8_lm_head/T3-V8-K256-G32/fp16/-/-/cancelling+bias/s2").build()
    x, codes, scale, bias = problem.args.values()
    acc = torch.zeros(3, 8)
    for g in range(8):
        part = fused_dot(x[:, 32 * g : 32 * g + 32], codes[:, 32 * g : 32 * g + 32].half(), HOPPER)
        acc = (acc.double() + part.double() * scale[:, g].double()).float()
    out = (acc + bias.float()).half()
    rules = "int8_lm_head,accumulator=tensor_core,schedule=wgmma.k16.sm90/t32/fused"
    verdict = judge(problem, out, rules)
    assert verdict.ok
    assert verdict.stages[0].exact == verdict.judged
    other = out.clone()
    other.view(torch.int16)[1, 2] ^= 1
    assert judge(problem, other, rules, explain=False).status == "illegal"
    assert judge(problem, other, "int8_lm_head,accumulator=tensor_core").ok


def test_a_tiny_dot_and_a_gate_have_schedules_of_their_own():
    problem = Case.parse("tiny_dot/T4-K64/bf16/-/-/cancelling/s3").build()
    x, w, _ = problem.args.values()
    acc = torch.zeros(4, 16)
    for k in range(0, 64, 16):
        acc = acc + x[:, k : k + 16].float() * w[k : k + 16].float()
    for n in (8, 4, 2, 1):
        acc = acc[:, :n] + acc[:, n : 2 * n]
    rules = "grouped,accumulator=fp32,schedule=fma/t16/tree16-halves/held1"
    assert judge(problem, acc.bfloat16(), rules).ok
    wrong = acc.bfloat16()
    wrong.view(torch.int16)[1, 0] ^= 1
    assert judge(problem, wrong, rules, explain=False).status == "illegal"
