"""What is derived: legal under every contract, different where contracts differ, as worked by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.cases.optable import OPS, ZERO_LAYOUT
from moeracle.properties.cases.record import record_of
from moeracle.properties.golden.catalogue import LITERALS, items
from moeracle.properties.golden.compare import compare_all
from moeracle.properties.golden.derive import derive
from moeracle.properties.golden.reference import run_reference
from moeracle.properties.golden.tensors import as_output
from moeracle.properties.judge import judge
from moeracle.ref.contracts.contract import PRESETS, contract

LAYER = "moe_w4a16/T4-E4-k2-H32-I32-G16/{}/exllama-v1/ignored/{}/s11"


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "int8_lm_head"])
def test_a_derived_layer_is_legal_and_its_neighbour_is_not(name: str) -> None:
    problem = Case.parse(LAYER.format("bf16", "normal")).build()
    stages = derive(problem, contract(name))
    assert set(stages) == set(contract(name).stores)
    assert judge(problem, stages, name, explain=False).status == "legal"
    # Three values away in one element of any stage is illegal, but where partial sums are rounded to D.
    if contract(name).accumulator == "dtype":
        return
    for stage in stages:
        moved = {key: t.clone() for key, t in stages.items()}
        at = moved[stage].abs().float().flatten().argmax()
        moved[stage].view(torch.int16).flatten()[at] += 3
        assert judge(problem, moved, name, explain=False).status == "illegal", stage


def test_contracts_that_round_differently_give_other_bits() -> None:
    problem = Case.parse(LAYER.format("bf16", "normal")).build()
    of = {name: derive(problem, contract(name)) for name in ("grouped", "wvsplitk", "et_batched", "marlin", "gptq_awq")}
    assert compare_all({"h": of["grouped"]["h"]}, {"h": of["wvsplitk"]["h"]})  # weights cast, or exact
    assert compare_all({"a": of["grouped"]["a"]}, {"a": of["et_batched"]["a"]})  # silu rounded, or not
    assert compare_all({"y": of["grouped"]["y"]}, {"y": of["marlin"]["y"]})  # router weight in the sum, or in D
    assert compare_all({"y": of["marlin"]["y"]}, {"y": of["gptq_awq"]["y"]})  # in D after the store, or in fp32 before
    same = derive(problem, contract("grouped,accumulator=fp32,depth=64"))
    assert compare_all(of["grouped"], same) == []  # who adds, and in which order, changes nothing


def test_sums_in_fp32_and_slot_by_slot_differ() -> None:
    problem = Case.parse("moe_unpermute/T9-E6-k3-K32/bf16/-/uniform/normal/s1").build()
    assert compare_all(derive(problem, contract("grouped")), derive(problem, contract("gptq_awq")))


@pytest.mark.parametrize("name", LITERALS)
def test_a_literal_is_what_derivation_reference_and_judge_say(name: str) -> None:
    literal = LITERALS[name]
    problem, expected = literal.problem(), literal.expected()
    assert compare_all(expected, derive(problem, contract(literal.contract))) == []
    assert compare_all(expected, run_reference(problem)) == []
    assert judge(problem, as_output(problem.case.op, expected), literal.contract).status == "legal"


@pytest.mark.parametrize("name", LITERALS)
def test_a_literal_is_judged_element_by_element(name: str) -> None:
    literal = LITERALS[name]
    problem, expected = literal.problem(), literal.expected()
    for part, tensor in expected.items():
        wrong = {key: t.clone() for key, t in expected.items()}
        at = int(tensor.abs().float().flatten().nan_to_num(0).argmax())
        wrong[part].flatten()[at] += 1 if not tensor.is_floating_point() else tensor.abs().max() / 8
        verdict = judge(problem, as_output(problem.case.op, wrong), literal.contract, explain=False)
        assert verdict.status == "illegal", part


def test_the_catalogue_holds_what_it_must() -> None:
    every = items()
    assert {LITERALS[i.literal].case.partition("/")[0] for i in every if i.literal} == set(OPS)
    texts = [i.case for i in every if not i.literal]
    assert len(set(texts)) == len(texts)
    assert len({(i.op, i.name) for i in every}) == len(every)
    assert max(len(i.name) for i in every) < 150  # with .safetensors a file name everywhere
    for op in ("unpack_int4", "dequantize_int4", "int4_linear", "moe_w4a16"):
        forms = {text.split("/")[3].partition("+")[0] for text in texts if text.startswith(op)}
        assert forms == {f"{layout}-{zero}" for layout, zeros in ZERO_LAYOUT.items() for zero in zeros}
    of_layer = [c for i in every if i.op == "moe_w4a16" for c in i.contracts]
    assert set(of_layer) == {name for name in PRESETS if "@" not in name} - {"int8_lm_head"}
    whole = " ".join(texts)
    for border in (
        "/T0-",
        "/empty/",
        "/ignored/",
        "subnormal",
        "ties",
        "nonfinite",
        "+ep2",
        "/bf16/",
        "/fp16/",
        "/T1-",
    ):
        assert border in whole, border


def test_references_that_no_contract_changes_agree_with_the_derivation() -> None:
    fixed = {op for op in OPS if record_of(op).no_rounding_to_choose}
    same_everywhere = [item for item in items() if item.op in fixed and item.contracts == ("grouped",)]
    assert {item.op for item in same_everywhere} == fixed
    for item in same_everywhere:
        problem = item.problem()
        assert compare_all(derive(problem, contract("grouped")), run_reference(problem)) == [], item.case


def test_what_cannot_be_one_value_is_said() -> None:
    problem = Case.parse("int4_linear/T1-N8-K8-G8/bf16/exllama-sym/-/normal/s1").build()
    problem.args["x"][0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        derive(problem, contract("grouped"))
    with pytest.raises(ValueError, match="golden: op"):
        derive(dataclasses.replace(problem, case=_NoOp()), contract("grouped"))  # type: ignore[arg-type]


class _NoOp:
    op = "rope"


@pytest.mark.parametrize("op", OPS)
def test_what_is_too_large_is_refused_at_once(op: str) -> None:
    sizes = dict(T=1 << 14, E=1 << 11, k=8, N=1 << 13, K=1 << 14, H=1 << 13, I=1 << 13, V=1 << 14, G=128, B=16)
    sizes = {**OPS[op].plain_sizes, **sizes}
    case = Case.of(op, **{letter: sizes[letter] for letter in OPS[op].dims})
    if op in ("moe_align_block_size",):  # nothing is multiplied
        assert record_of(op).cost(case) < 1 << 20
        return
    problem = Problem(case, {})
    with pytest.raises(ValueError, match="too large to derive"):
        derive(problem, contract("grouped"))
    assert max(record_of(op).cost(Case.parse(item.case)) for item in items() if item.op == op) < 2_000_000
