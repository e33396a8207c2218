"""Diagnosis: each planted fault is named, other conventions are told apart, and what nobody knows is not guessed."""

import json
import re
from dataclasses import replace

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.cost import operations
from moeracle.properties.cases.optable import OPS
from moeracle.properties.diagnose import MOST_IN_ALL, MOST_WORK, NONE, diagnose, why_not, work
from moeracle.properties.diagnose.candidates import candidates
from moeracle.properties.faults import FAULTS
from moeracle.properties.faults.gemm import truncated_in_a_wave
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.judge import explain, judge
from moeracle.properties.simulate import SimulatedKernel, Simulation, simulated_kernel
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.contracts.contract import contract

LAYER = Case.parse("moe_w4a16/T9-E5-k2-H96-I160-G32/bf16/exllama-sym/uniform/normal/s40")
LINEAR = Case.parse("int4_linear/T9-N96-K96-G32/bf16/exllama-sym/-/normal/s41")
FIRST_FIFTY = [f"F{n:02d}" for n in range(1, 51)]
LATER = [id for id in FAULTS if id not in FIRST_FIFTY]
# Found by what it writes into, or keeps for the next call, not by its output, which is right in a call of its own.
WITHOUT_WRONG_OUTPUT = {"F123", "F165"}
# In the case that finds them these have, to the last bit, the output of another fault, which has the lower id.
EQUIVALENT = {"F25c": "F25", "F51": None, "F110": "F34", "F157": "F156", "F175": "F56"}

KNOWN = {}  # verdicts on outputs in which a fault does not show


def planted(id, seed, order):
    """Return the explained verdict of a fault, in the layer if it may befall it, on the first case that finds it."""
    fault = FAULTS[id]
    op = "moe_w4a16" if "moe_w4a16" in fault.ops else fault.ops[0]
    for case in must_run(fault.kernel(op)):
        case = case.replace(seed=case.seed + 1000 * seed)
        verdict = run_trial(fault.kernel(op, order=order), case, known=KNOWN)
        if verdict.status == "illegal":
            return verdict
    raise AssertionError(f"{id} is not found on any of the fixed cases")


def named(ids, seed, order):
    """Return what each fault was named instead, of those that were not named as themselves."""
    wrong = {}
    for id in ids:
        verdict = planted(id, seed, order)
        found = verdict.diagnosis
        if not (found and found["sure"] and found["id"] == id):
            wrong[id] = (found or {}).get("id"), (found or {}).get("equals", ()), verdict.summary[-1]
    return wrong


@pytest.fixture
def names_alone(monkeypatch):
    """Leave out which contracts would have let a failure pass: a third of the work, and no part of a name."""
    monkeypatch.setattr(explain, "_would_pass", lambda *args: "not asked")


def test_the_fifty_faults_are_named(names_alone):
    """45 are asked for; all 50 were named with each of six seeds, in the same order of accumulation and in others."""
    wrong = named(FIRST_FIFTY, 11, "matmul")
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize(("seed", "order"), [(12, "reversed"), (13, "hopper")])
def test_the_kernel_may_add_in_another_order_than_the_simulations(seed, order, names_alone):
    assert not named(["F02", "F07", "F27", "F29", "F36", "F39", "F41", "F42", "F43"], seed, order)


def test_later_faults_are_named_or_share_their_name_with_an_equivalent_one(names_alone):
    """Every second one, to save time, and those with an equivalent."""
    ids = {*LATER[::2], *EQUIVALENT} - WITHOUT_WRONG_OUTPUT
    wrong = named(sorted(ids), 13, "matmul")
    for id, (instead, equals, line) in list(wrong.items()):
        if id in EQUIVALENT and id in equals and EQUIVALENT[id] in (instead, None):
            assert id in line
            del wrong[id]
    assert len(wrong) <= 1, wrong


def changed(case, step, fn, rules="grouped"):
    simulation = Simulation(rules).replace_step(step, fn)
    return SimulatedKernel(case.op, "changed", getattr(simulation, case.op), contract(rules))


def line(verdict):
    assert verdict.status == "illegal"
    lines = verdict.text().splitlines()
    passing = [i for i, text in enumerate(lines) if text.startswith("  would pass at: ")]
    at = [i for i, text in enumerate(lines) if text.startswith("  looks like: ")]
    assert at == [len(lines) - 2]  # after "would pass at", before "replay"
    assert passing in ([len(lines) - 3], [])
    json.dumps(verdict.as_dict())
    return lines[at[0]].removeprefix("  looks like: ")


@pytest.mark.parametrize("case", [LAYER, LINEAR])
@pytest.mark.parametrize(
    ("step", "fn", "words"),
    [
        ("zeros", lambda sim, base, *args: base(*args) + 1, "zero point one too large"),
        ("zeros", lambda sim, base, *args: base(*args) - 1, "F06 "),
        (
            "codes",
            lambda sim, base, w, *rest: base(w, *rest).reshape(w.K, w.N).T,
            ("weight read as if [K, N]", "words of layout 'exllama' read as 'awq'"),
        ),
        ("scale_group", lambda sim, base, K, G, which: torch.arange(K) // 16 % (K // G), NONE),
    ],
)
def test_conventions_are_told(case, step, fn, words):
    assert line(run_trial(changed(case, step, fn), case)).startswith(words)


def test_another_contract_and_other_slots_are_told():
    kernel = SimulatedKernel("moe_w4a16", "k", Simulation("marlin").moe_w4a16, contract("gptq_awq"))
    assert line(run_trial(kernel, LAYER)).startswith("contract 'marlin' kept in place of 'gptq_awq' (explains ")
    swap = lambda sim, base, out, stage: base(out, stage).reshape(-1, 2, out.shape[1]).flip(1).flatten(0, 1)
    only_h = lambda sim, base, out, stage: swap(sim, base, out, stage) if stage == "h" else base(out, stage)
    assert line(run_trial(changed(LAYER, "stored", only_h), LAYER)).startswith(
        "rows of a token's slots in reverse order"
    )


def test_a_kernel_that_stores_nothing_in_between_is_diagnosed_end_to_end():
    fn = FAULTS["F29"].kernel("moe_w4a16", order="reversed").fn
    kernel = SimulatedKernel("moe_w4a16", "fused", lambda *args: fn(*args)["out"], contract("grouped"))
    assert line(run_trial(kernel, LAYER)).startswith("F29 scale taken from the next group (explains ")


def test_narrowed_parts_of_k_are_named_under_every_contract_that_does_not_have_them():
    """As vLLM ships moe_q_gemm_rdna3: parts of 256, the zero point hoisted, rounded to D, added in any order."""
    case = Case.parse("int4_linear/T4-N32-K1536-G128/bf16/exllama-sym/-/integers/s2")
    kernel = simulated_kernel("int4_linear", "vllm@0.33:moe_gemm_rdna3")
    assert run_trial(kernel, case).ok
    for rules in ("grouped,weight=hoisted", "grouped,weight=hoisted,deterministic=false", "wmma", "wvsplitk"):
        verdict = run_trial(replace(kernel, contract=contract(rules)), case)
        assert verdict.tier == ("bits" if "deterministic" in rules else "determinism")
        # Where the order of the atomics is all that shows, F13, split-K through 16-bit atomics, is the same outputs.
        assert re.match(r"looks like: F(201|13) .*F201|looks like: F201", verdict.summary[-1]), rules


@pytest.mark.parametrize(("shifted", "width"), [(True, 16), (False, 4)])
def test_sums_truncated_in_a_wave_are_named_of_a_kernel_that_scales_after_them(shifted, width):
    """As clang 19 compiles vLLM's wvSplitK_int4: a lane has the sums of its own inputs, scaled group by group."""
    case = Case.parse("int4_linear/T2-N24-K512-G64/fp16/exllama-sym/-/normal/s3")
    lanes = lambda sim, base, a, w, dtype: truncated_in_a_wave(
        512, width, lambda at: base(a[:, at], w.inputs(at), dtype), shifted
    )
    said = line(run_trial(changed(case, "dot_part", lanes, "wvsplitk"), case))
    assert said.startswith("F171 partial sums truncated to integers (explains 4")


@pytest.mark.parametrize("order", ["sequential", "pairwise", "hopper", "lanes"])
def test_legal_kernels_get_no_diagnosis(order):
    verdict = run_trial(simulated_kernel("moe_w4a16", order=order), LAYER)
    assert verdict.ok
    assert verdict.diagnosis is None
    assert verdict.summary == []
    problem = LAYER.build()
    outputs = simulated_kernel("moe_w4a16", order=order).fn(*problem.args.values())
    legal = torch.zeros(outputs["h"].shape, dtype=torch.bool)
    assert diagnose(problem, outputs, contract("grouped"), "h", legal) is None


@pytest.mark.parametrize("stage", ["h", "a", "y", "out"])
@pytest.mark.parametrize("seed", [0, 1])
def test_noise_looks_like_none_of_the_known_faults(stage, seed):
    problem = LAYER.build()
    outputs = Simulation("grouped").moe_w4a16(*problem.args.values())
    draw = torch.Generator().manual_seed(seed)
    hit = torch.rand(outputs[stage].shape, generator=draw) < 0.05
    noise = 1 + 0.1 * torch.randn(outputs[stage].shape, generator=draw)
    outputs[stage] = torch.where(hit, outputs[stage] * noise, outputs[stage].float()).to(outputs[stage].dtype)
    verdict = judge(problem, outputs)
    assert verdict.stage == stage
    assert line(verdict) == NONE
    assert verdict.diagnosis is None or not verdict.diagnosis["sure"]


def test_a_fault_among_noise_is_not_named_and_half_a_fault_is_not_either():
    """A candidate answers for what it predicts where the kernel is right, too."""
    problem = LAYER.build()
    outputs = Simulation("grouped").moe_w4a16(*problem.args.values())
    wrong = FAULTS["F29"].kernel("moe_w4a16").fn(*problem.args.values())["h"]
    outputs["h"][::2] = wrong[::2]
    verdict = judge(problem, outputs)
    assert line(verdict) == NONE
    assert verdict.diagnosis["id"] == "F29"
    assert verdict.diagnosis["explained"] == verdict.diagnosis["of"]  # all that is wrong, but it predicts twice as much
    assert 0.4 < verdict.diagnosis["share"] < 0.6


def test_a_large_case_says_why_nobody_looked():
    case = Case.parse("int4_linear/T64-N1024-K2048-G128/bf16/exllama-sym/-/normal/s1")
    problem = case.build()
    assert work(problem) > MOST_WORK
    text = line(judge(problem, torch.zeros(64, 1024, dtype=torch.bfloat16)))
    assert text.startswith("not looked for: the case takes ")
    assert text.endswith("shrink it")


def test_many_small_experts_say_why_nobody_looked():
    """Each expert's weight costs its calls, however small it is: these would take 12 s, not 3."""
    case = Case.parse("moe_w4a16/T64-E64-k8-H64-I64-G32/bf16/exllama-sym/uniform/normal/s40")
    problem = case.build()
    assert work(problem) < MOST_WORK
    assert 100 * operations(case) > MOST_IN_ALL
    text = line(judge(problem, {"out": torch.zeros(64, 64, dtype=torch.bfloat16)}))
    assert text.startswith("not looked for: ")
    assert f"operations, more than {MOST_IN_ALL:,}; shrink it" in text


@pytest.mark.parametrize("op", OPS)
def test_every_fixed_case_is_small_enough(op):
    kernel = simulated_kernel(op)
    for case in must_run(kernel):
        assert why_not(case.build(), len(candidates(case, kernel.contract))) is None, case


def test_a_slow_machine_gives_the_same_names(leap_an_hour_a_look):
    kernel = FAULTS["F29"].kernel("moe_w4a16")
    usual = line(run_trial(kernel, LAYER))
    leap_an_hour_a_look()
    assert line(run_trial(kernel, LAYER)) == usual
    assert usual.startswith("F29 scale taken from the next group (explains ")
