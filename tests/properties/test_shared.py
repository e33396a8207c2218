"""shared_expert and tiny_dot: what the judge allows, what laws and faults see, in every contract of the gate."""

from __future__ import annotations

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.fault_matrix.hunt import hunt_fault
from moeracle.properties.faults import FAULTS
from moeracle.properties.hunt.hunt import hunt
from moeracle.properties.judge import judge
from moeracle.properties.simulate import Simulation, simulated_kernel
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.contracts.contract import contract
from moeracle.ref.ops.shared_expert import shared_expert
from moeracle.ref.ops.tiny_dot import tiny_dot

GATED = Case.parse("shared_expert/T9-H96-I64-G32/bf16/exllama-sym/-/normal+gate/s1")
TINY = Case.parse("tiny_dot/T40-K96/bf16/-/-/normal+sigmoid/s1")
OWN = ("F140", "F141", "F142", "F143", "F144", "F145", "F146")


def kernel(op, fn, rules=None):
    made = simulated_kernel(op, rules)
    object.__setattr__(made, "fn", fn)
    return made


@pytest.mark.parametrize(
    "rules",
    ["grouped,accumulator=fp32", "grouped,gate=unfused", "grouped,gate=fp32", "megakernel,accumulator=fp32", "wmma"],
)
def test_legal_kernels_of_every_contract(rules):
    result = hunt(simulated_kernel("shared_expert", rules), profile="smoke", examples=8, seed=3)
    assert result.status == "legal", result.failures[0].text()
    assert len(result.law_checks) >= 4


@pytest.mark.parametrize(
    ("rules", "order"),
    [
        (None, "matmul"),
        ("grouped", "matmul"),
        ("grouped,accumulator=truncating", "truncating"),
        ("grouped,batch_invariant=true", "sequential"),
    ],
)
def test_legal_tiny_dots(rules, order):
    made = simulated_kernel("tiny_dot", rules, order)
    result = hunt(made, profile="smoke", examples=8, seed=3)
    assert result.status == "legal", result.failures[0].text()
    laws = record_of("tiny_dot").laws
    asked = {law.__name__ for law in laws if law.promise is None or getattr(made.contract, law.promise)}
    assert set(result.law_checks) == asked
    assert (len(asked) == len(laws)) == made.contract.batch_invariant
    assert OPS["tiny_dot"].default_contract == "grouped,accumulator=fp32"


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_reference_is_legal_only_under_its_own_rounding(dtype):
    problem = GATED.replace(dtype=dtype, T=33).build()
    a = problem.args
    weights = [w.dequantize().to(a["x"].dtype) for w in (a["w_gate_up"], a["w_down"])]
    for rounding in ("fused", "unfused"):
        out = shared_expert(a["x"], *weights, a["gate_weight"], rounding=rounding, dtype=torch.float64)
        assert judge(problem, out, f"grouped,gate={rounding}").ok
    sim = Simulation("grouped,accumulator=fp32")
    stages = sim.shared_expert(*a.values())
    assert judge(problem, stages, "grouped").ok
    verdicts = {g: judge(problem, stages, f"grouped,gate={g}", explain=False) for g in ("unfused", "fp32")}
    assert all(v.status == "illegal" and v.stage == "out" for v in verdicts.values())


def test_stages_are_judged_each_from_the_one_before():
    problem = GATED.build()
    stages = Simulation("grouped,accumulator=fp32").shared_expert(*problem.args.values())
    for name in ("h", "a", "y", "out"):
        wrong = {k: v.clone() for k, v in stages.items()}
        wrong[name][3, 5] *= 1.05
        verdict = judge(problem, wrong, "grouped")
        assert verdict.status == "illegal"
        assert verdict.stage == name
        assert "token 3" in verdict.text()
    assert judge(problem, {"out": stages["out"], "b": stages["a"]}).tier == "shape"
    assert judge(problem, {"a": stages["a"]}).tier == "shape"


def test_a_failure_names_its_fault():
    verdict = run_trial(FAULTS["F144"].kernel("shared_expert"), GATED)
    assert verdict.status == "illegal"
    assert "F144" in verdict.text()


@pytest.mark.parametrize("id", OWN)
def test_own_faults_are_seen(id):
    fault = FAULTS[id]
    run, _ = hunt_fault(fault.kernel(fault.ops[0]), 0)
    assert run.seen


@pytest.mark.parametrize(("op", "id"), [("tiny_dot", "F39"), ("tiny_dot", "F42"), ("shared_expert", "F31")])
def test_common_faults_are_seen(op, id):
    assert hunt_fault(FAULTS[id].kernel(op), 1)[0].seen


def test_faults_are_none_where_the_contract_has_them():
    assert FAULTS["F143"].why_not("shared_expert", "grouped,gate=fp32") is not None
    assert FAULTS["F142"].why_not("shared_expert", "et_batched") is not None
    assert contract("grouped,gate=unfused").differences(contract("grouped")) == ["gate: unfused, fused"]
    with pytest.raises(ValueError, match="gate: got 'fuse', must be one of"):
        contract("grouped,gate=fuse")


def law(op, name):
    return next(check for check in record_of(op).laws if check.__name__ == name)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("law_no_gate_weight_halves", lambda x, up, down, g: shared(x, up, down, g if g is None or g.any() else None)),
        ("law_gates_of_both_signs_add_up", lambda x, up, down, g: shared(x, up, down, None if g is None else g.abs())),
        ("law_permuting_tokens", lambda x, up, down, g: shared(x, up, down, g)[[0] * len(x)]),
    ],
)
def test_laws_of_the_gate_are_broken_by_what_breaks_them(name, fault):
    check = law("shared_expert", name)
    right, wrong = check(kernel("shared_expert", shared), GATED), check(kernel("shared_expert", fault), GATED)
    assert right is not None
    assert right.ok
    assert wrong.status == "illegal"
    assert name in wrong.stage


def shared(x, up, down, g):
    return Simulation("grouped,accumulator=fp32").shared_expert(x, up, down, g)["out"]


def test_law_of_the_sigmoid_is_broken_by_another_function():
    check = law("tiny_dot", "law_sigmoids_of_both_signs_add_up")
    hard = lambda x, w, s: (tiny_dot(x, w) > 0.5).to(x.dtype) if s else tiny_dot(x, w).to(x.dtype)
    right = lambda x, w, s: tiny_dot(x, w, sigmoid=s).to(x.dtype)
    odd = lambda x, w, s: (tiny_dot(x, w) + 2.0**-6).to(x.dtype)
    plain = TINY.replace(flags=frozenset())
    assert check(kernel("tiny_dot", right), TINY).ok
    assert check(kernel("tiny_dot", right), plain).ok
    assert check(kernel("tiny_dot", hard), TINY).status == "illegal"
    assert check(kernel("tiny_dot", odd), plain).status == "illegal"


def test_exact_gates_are_half_one_or_nothing():
    problem = GATED.replace(data="integers", T=64).build()
    assert problem.exact
    dots = problem.args["x"].double() @ problem.args["gate_weight"].double()
    assert set(torch.sigmoid(dots).float().tolist()) <= {0.0, 0.5, 1.0}
    assert problem.args["gate_weight"].abs().max() == 128
