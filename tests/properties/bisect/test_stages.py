"""A bisection names the right stage of planted faults, of fused kernels too, and convicts nobody who is legal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from moeracle.properties.bisect.isolate import Bench, hidden
from moeracle.properties.bisect.matrix import FUSED, ONE_OP, STORED, fused, plant_and_bisect, question
from moeracle.properties.bisect.stages import bisect_stages
from moeracle.properties.bisect.suspects import INPUTS, OTHER_STAGES, STAGES
from moeracle.properties.bisect.truth import stage_in_op, stage_of
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.faults import FAULTS
from moeracle.properties.judge import explain
from moeracle.properties.simulate import SimulatedKernel, simulated_kernel
from moeracle.properties.trial.trial import run_trial

CASE = "moe_w4a16/T9-E5-k2-H96-I160-G32/bf16/exllama-sym/uniform/normal/s0"
SMALL = "moe_w4a16/T4-E3-k2-H64-I80-G16/bf16/{}/uniform/normal/s0"
# A few of each stage; `moeracle bisect faults` does all of them (docs/bisect.md has the table).
IN_FUSED = (
    "F08", "F21", "F29", "F43", "F62", "F76", "F09", "F01", "F10", "F27", "F88", "F90", "F38",
    "F127", "F44", "F124", "F14", "F16", "F248", "F259",
)  # fmt: skip
IN_STORED = ("F22", "F74", "F73", "F76", "F44", "F95", "F82", "F10")
IN_ONE_OP = (
    ("F92", "int4_linear"), ("F248", "int4_linear"), ("F249", "int4_linear"), ("F14", "padded_gemm"),
    ("F36", "grouped_gemm"), ("F62", "dequantize_int4"),
    ("F08", "unpack_int4"), ("F259", "unpack_int4"), ("F37", "silu_and_mul"), ("F134", "quantize_int8"),
    ("F17", "topk_softmax"),
    ("F45", "int8_lm_head"), ("F47", "int8_lm_head"), ("F131", "int8_lm_head"), ("F92", "int8_lm_head"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _stages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out which contracts would have let a failure pass: a third of the work, and no part of any stage."""
    monkeypatch.setattr(explain, "_would_pass", lambda *args: "not asked")


def small_case(id: str) -> Case | None:
    """Return a case of half the usual size on which the fault shows, or None."""
    for form in ("exllama-sym", "awq-asym", "gptq-v1"):
        kernel, case = fused(FAULTS[id].kernel("moe_w4a16")), Case.parse(SMALL.format(form))
        if kernel.why_not(case) is None and run_trial(kernel, case, explain=False).status == "illegal":
            return case
    return None


@pytest.mark.parametrize("id", IN_FUSED)
def test_a_fused_kernel_with_a_fault_is_convicted_of_the_right_stage(id: str) -> None:
    found = plant_and_bisect(FAULTS[id], "moe_w4a16", FUSED, small_case(id))
    assert found is not None
    assert (found.found, found.also) == (found.expected, found.also), f"{id} by {found.probe!r} on {found.case}"
    assert found.probe, "convicted by a question, not by default"


@pytest.mark.parametrize("id", IN_STORED)
def test_a_stored_stage_is_named_and_the_part_of_it(id: str) -> None:
    found = plant_and_bisect(FAULTS[id], "moe_w4a16", STORED, small_case(id))
    assert found is not None
    assert (found.stored_found, found.found) == (FAULTS[id].stage, found.expected), f"{id} by {found.probe!r}"


@pytest.mark.parametrize(("id", "op"), IN_ONE_OP)
def test_kernels_of_one_op_are_bisected_too(id: str, op: str) -> None:
    found = plant_and_bisect(FAULTS[id], op, ONE_OP)
    assert found is not None
    assert found.found == found.expected, f"{id} in {op} by {found.probe!r} on {found.case}"


def test_two_faults_that_give_the_same_outputs_are_said_to() -> None:
    found = plant_and_bisect(FAULTS["F74"], "moe_w4a16", FUSED)  # rows of w13 in another order, or h read in another
    assert found is not None
    assert {found.found, found.also} == {"activation", "unpack"}
    assert found.verdict == "tied"


@pytest.mark.parametrize(
    ("contract", "order", "text"),
    [
        ("megakernel_sum", "tiles32", SMALL.format("awq-asym")),
        ("moe_wna16", "chains", SMALL.format("exllama-sym")),
        ("grouped,weight_rounding=rtz,store_rounding=rtz", "matmul", SMALL.format("gptq-v1").replace("bf16", "fp16")),
        ("marlin", "random1", "moe_w4a16/T4-E2-k2-H64-I64-G-1/bf16/gptq-v1+pad32/uniform/normal/s3"),
    ],
)
def test_no_question_convicts_a_legal_kernel(contract: str, order: str, text: str) -> None:
    report = question(fused(simulated_kernel("moe_w4a16", contract, order)), Case.parse(text))
    assert len(report.probes) >= 35
    assert [(p.name, p.detail) for p in report.probes if not p.passed] == []


def test_a_legal_case_is_not_bisected() -> None:
    report = bisect_stages(simulated_kernel("moe_w4a16"), Case.parse(CASE))
    assert (report.verdict.status, report.stage, report.probes, report.smallest) == ("legal", "", [], None)


def test_every_fault_has_a_stage() -> None:
    for fault in FAULTS.values():
        for op in fault.ops:
            assert stage_in_op(fault, op) in (*STAGES, *OTHER_STAGES, *OPS), f"{fault.id} in {op}"
    assert {stage_of(fault) for fault in FAULTS.values() if "moe_w4a16" in fault.ops} == {*STAGES, INPUTS}


def test_the_case_is_shrunk_and_fails_at_the_same_stage(leap_an_hour_a_look: Callable[..., None]) -> None:
    case = Case.parse("moe_w4a16/T7-E4-k2-H64-I64-G32/bf16/exllama-sym/zipf1/outliers/s2")
    leap_an_hour_a_look()
    report = bisect_stages(FAULTS["F44"].kernel("moe_w4a16"), case)
    assert report.smallest is not None
    assert (report.smallest.status, report.smallest.stage) == ("illegal", "y")
    least = Case.parse(report.smallest.case)
    assert (least.T, least.E, least.k, least.routing, least.data) == (1, 1, 1, "uniform", "normal")
    assert report.fault is not None
    assert report.fault["id"] == "F44"


def kernel_of(fn: Any) -> SimulatedKernel:
    return replace(simulated_kernel("moe_w4a16"), fn=fn, name="mine")


def test_a_kernel_that_raises_has_no_stage() -> None:
    def fn(*args: Any) -> Any:
        raise RuntimeError("no such grid")

    report = bisect_stages(kernel_of(fn), Case.parse(CASE))
    assert (report.verdict.tier, report.stage) == ("call", "")
    assert any("does not get as far" in note for note in report.notes)


def test_what_no_probe_shows_in_isolation_is_said() -> None:
    right = simulated_kernel("moe_w4a16").fn

    def fn(x: torch.Tensor, *args: Any) -> Any:
        out = right(x, *args)["out"]
        return {"out": out * 1.5 if len(x) == 9 and bool((x[0] != x[0, 0]).any()) and len(x[0].unique()) > 8 else out}

    report = bisect_stages(kernel_of(fn), Case.parse(CASE), shrink_seconds=0)
    assert report.verdict.status == "illegal"
    assert report.stage == ""
    assert any("does not show in isolation" in note for note in report.notes)


def test_a_bench_packs_what_it_says() -> None:
    case = Case.parse("moe_w4a16/T2-E2-k1-H32-I32-G16/bf16/awq-asym+pad8/uniform/normal/s0")
    bench = Bench(simulated_kernel("moe_w4a16"), case, simulated_kernel("moe_w4a16").contract)
    layer = hidden(bench, -3.0, 0.5, unit=4)
    w13 = bench.problem(layer).args["w13"]
    values = w13.dequantize(torch.float64)[0]
    assert values[4].unique().tolist() == [-3.0]
    assert values[32 + 4].unique().tolist() == [0.5]
    assert values.count_nonzero() == 2 * 32
    assert w13.packed.stride(1) == 64 // 8 + 8


def test_a_sum_that_only_goes_wrong_for_many_tokens_is_the_reduction() -> None:
    right = simulated_kernel("moe_w4a16").fn

    def fn(x: torch.Tensor, w13: Any, w2: Any, weights: torch.Tensor, ids: torch.Tensor) -> Any:
        late = torch.arange(len(x))[:, None] >= 16
        return {"out": right(x, w13, w2, torch.where(late, weights[:, :1], weights), ids)["out"]}

    case = Case.parse("moe_w4a16/T17-E2-k2-H32-I32-G32/bf16/exllama-sym/uniform/normal/s20")
    report = bisect_stages(kernel_of(fn), case, shrink_seconds=0)
    assert (report.verdict.status, report.stage) == ("illegal", "reduction")
    assert report.probes[-1].name == "sum over slots, 130 tokens"


@pytest.mark.parametrize(
    ("op", "text"),
    [
        ("int4_linear", "int4_linear/T5-N1-K8-G-1/bf16/exllama-sym/-/normal/s0"),
        ("int8_lm_head", "int8_lm_head/T5-V1-K96-G32/bf16/-/-/normal/s0"),
        ("dequantize_int4", "dequantize_int4/N1-K32-G32/bf16/exllama-sym/-/normal/s0"),
    ],
)
def test_a_kernel_of_one_column_is_bisected(op: str, text: str) -> None:
    simulated = simulated_kernel(op)
    wrong = replace(simulated, fn=lambda *args: simulated.fn(*args) * 1.5)
    report = bisect_stages(wrong, Case.parse(text), shrink_seconds=0)
    assert report.stage
    assert report.probes


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda out: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda out: exit("bye"), "raised SystemExit: bye"),
        (lambda out: None, "returned None"),
        (lambda out: out[:1], "got shape"),
    ],
)
def test_a_kernel_that_gives_a_question_no_answer_is_told_so(answer: Any, said: str) -> None:
    simulated = simulated_kernel("int4_linear")
    wrong = replace(simulated, fn=lambda x, *args: (
        answer(out) if len(x) == 130 else out * 1.5 if len(x) == 9 else out)
        if (out := simulated.fn(x, *args)) is not None else None)  # fmt: skip
    case = Case.parse("int4_linear/T9-N16-K64-G32/bf16/exllama-sym/-/normal/s1")
    report = bisect_stages(wrong, case, shrink_seconds=0)
    assert (report.verdict.status, report.stage) == ("illegal", "gemm1")
    (note,) = [note for note in report.notes if "got no answer" in note][:1]
    assert said in note
    assert "T130" in note


def test_a_fault_that_the_whole_case_refutes_is_not_named_for_its_smallest_one() -> None:
    simulated = simulated_kernel("int4_linear")
    wrong = replace(simulated, fn=lambda *args: simulated.fn(*args) * 1.01)
    case = Case.parse("int4_linear/T5-N64-K96-G32/bf16/exllama-sym/-/normal/s1")
    report = bisect_stages(wrong, case)
    assert report.smallest is not None
    assert report.smallest.illegal == 1
    assert report.fault is None
