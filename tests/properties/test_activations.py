"""Activations other than silu through the harness: no false alarm, every fault seen and named, laws that can fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moeracle.properties.cases.case import Case
from moeracle.properties.common.verdict import Verdict
from moeracle.properties.faults import FAULTS
from moeracle.properties.golden.derive import derive
from moeracle.properties.hunt.must_run import must_run, spread
from moeracle.properties.infer import infer
from moeracle.properties.judge import judge
from moeracle.properties.laws.activation import law_beyond_the_limit
from moeracle.properties.simulate import SimulatedKernel, simulated_kernel
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.activation import ACTIVATIONS
from moeracle.ref.contracts.contract import contract

NEW = [f"F{number}" for number in range(220, 236)]
CASE = "silu_and_mul/T9-I40/{}/-/-/{}/s3"


def judged(kernel: SimulatedKernel, count: int) -> Iterator[Verdict]:
    for case in spread([case for case in must_run(kernel) if kernel.why_not(case) is None], count):
        yield run_trial(kernel, case, explain=True)


@pytest.mark.parametrize("name", [*ACTIVATIONS[1:], "silu/alpha1.5/limit10/up1"])
@pytest.mark.parametrize(("op", "count"), [("silu_and_mul", 12), ("moe_w4a16", 3), ("shared_expert", 3)])
def test_a_right_kernel_is_legal(op: str, count: int, name: str) -> None:
    for more in ("", ",silu=fp32") if op == "silu_and_mul" else ("",):
        kernel = simulated_kernel(op, f"grouped,activation={name}{more}")
        verdicts = list(judged(kernel, count))
        assert len(verdicts) == count
        assert [v.reason for v in verdicts if v.status != "legal"] == []


@pytest.mark.parametrize("id", NEW)
def test_a_fault_is_seen_and_named(id: str) -> None:
    fault = FAULTS[id]
    kernel = fault.kernel("silu_and_mul")
    problem = Case.parse(
        CASE.format("fp16" if id in ("F232", "F233") else "bf16", "outliers").replace("T9", "T99")
    ).build()
    verdict = judge(problem, kernel.fn(*problem.args.values()), kernel.contract)
    assert verdict.status == "illegal"
    assert f"looks like: {id} " in verdict.text()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_derived_is_legal_and_its_neighbours_are_not(name: str) -> None:
    for dtype, data in (("bf16", "outliers"), ("fp16", "outliers")):
        problem = Case.parse(CASE.format(dtype, data)).build()
        out = derive(problem, contract(f"grouped,activation={name}"))["out"]
        legal = [
            n for n in ACTIVATIONS if judge(problem, out, f"grouped,activation={n}", explain=False).status == "legal"
        ]
        assert legal == [name]


@pytest.mark.parametrize("name", ["swigluoai", "swiglustep"])
def test_the_law_of_the_limit_sees_a_limit_that_leaks(name: str) -> None:
    case = Case.parse(CASE.format("bf16", "outliers"))
    right = simulated_kernel("silu_and_mul", f"grouped,activation={name}")
    verdict = law_beyond_the_limit(right, case)
    assert verdict is not None
    assert verdict.status == "legal"
    wrong = FAULTS["F229"].kernel("silu_and_mul", f"grouped,activation={name}")
    verdict = law_beyond_the_limit(wrong, case)
    assert verdict is not None
    assert verdict.status == "illegal"
    assert law_beyond_the_limit(simulated_kernel("silu_and_mul"), case) is None


@pytest.mark.parametrize("name", ["gelu_tanh", "swigluoai", "silu/alpha1.5/limit10/up1"])
def test_infer_finds_the_activation(name: str) -> None:
    found = infer(simulated_kernel("silu_and_mul", f"grouped,activation={name},silu=fp32"), dtype="bf16")
    assert found.explained
    assert str(found.contract.activation) == name
    assert contract(found.text).activation == found.contract.activation


@pytest.mark.parametrize(
    "rules",
    [
        "grouped,router_weight=input",
        "grouped,router_weight=input_dtype,activation=swigluoai",
        "gptq_awq,activation=gelu",
    ],
)
def test_a_layer_with_every_option_together(rules: str) -> None:
    """Experts elsewhere in any order, ids that are ignored, int64 and cut out of wider rows, weights on the input."""
    flags = "ignored+epany+int64+slices/normal+strided"
    case = Case.parse(f"moe_w4a16/T9-E6-k2-H64-I64-G32/bf16/exllama-sym/{flags}/s3")
    assert run_trial(simulated_kernel("moe_w4a16", rules, layout="exllama"), case).status == "legal"
    for id in ("F156", "F157", "F34", "F121"):
        named = id == "F121" and "gelu" in rules
        verdict = run_trial(FAULTS[id].kernel("moe_w4a16", rules), case, explain=named)
        assert verdict.status == "illegal"
        assert not named or f"looks like: {id} " in verdict.text()
