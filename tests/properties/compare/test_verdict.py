"""The failure's text: one order, nothing after the replay line, and what it claims is true."""

import json
import re
import shlex

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.common.verdict import Verdict, failed, replay_command
from moeracle.properties.judge import judge
from moeracle.properties.judge.explain import _tolerance
from moeracle.properties.trial.trial import run_trial
from support.simulate import Simulated

LAYER = Case.parse("moe_w4a16/T6-E3-k2-H64-I64-G16/bf16/exllama-sym/uniform/normal/s3")


def failing(rules="grouped", kept="wvsplitk", stages="hay", case=LAYER):
    problem = case.build()
    return problem, judge(problem, Simulated("moe_w4a16", kept, stages=stages).fn(*problem.args.values()), rules)


def test_the_text_has_designs_lines_in_designs_order():
    _, verdict = failing()
    verdict.kernel = "my_moe"
    first, count, place, passing, like, replay = verdict.text("my_kernels.py").splitlines()
    assert first == f"[moe_w4a16] my_moe  {LAYER}  FAIL  tier=interval stage=h"
    number = r"-?[\d.e-]+"
    shown = rf"worst h\[token \d, slot \d, n \d+\]: got {number}, legal \[{number}, {number}\] \([\d,]+ ulp outside\)"
    assert re.fullmatch(rf"  \d+ of 1,536 elements illegal; {shown}", count)
    assert re.fullmatch(r"  first bad column \d+, \d+% of the 1,536 elements", place)
    assert re.match(r"  would pass at: (contract '[\w@.:]+' \| )+atol=", passing)
    assert like.startswith("  looks like: contract 'wvsplitk' kept in place of 'grouped' (explains ")
    assert replay == f"  replay: moeracle check my_kernels.py --case {LAYER}"


def test_the_worst_element_and_the_counts_are_those_of_the_output():
    problem = LAYER.build()
    output = Simulated("moe_w4a16", stages="hay").fn(*problem.args.values())
    output["y"][7, 9] += 1.0
    output["y"][7, 10] += 2.0
    verdict = judge(problem, output)
    assert (verdict.stage, verdict.illegal) == ("y", 2 + verdict.stages[-1].illegal)
    assert "2 of 768 elements illegal; worst y[token 3, slot 1, n 10]" in verdict.summary[0]
    assert f"got {float(output['y'][7, 10]):.8g}, legal" in verdict.summary[0]
    assert verdict.summary[1] == "first bad column 9, every element of columns 9-10 of row 7"


@pytest.mark.parametrize(("kept", "others"), [("wvsplitk", ["wmma"]), ("marlin", []), ("et_batched", [])])
def test_a_kernel_that_keeps_another_contract_is_told_which(kept, others):
    """Judged as a kernel that stores h, y and out only, so that every preset may allow it."""
    rules = "gptq_awq" if kept != "wvsplitk" else "grouped"
    _, verdict = failing(rules, kept, {"wvsplitk": "hay", "marlin": "hay", "et_batched": "hay"}[kept])
    named = re.findall(r"contract '([^']+)'", verdict.summary[2])
    assert kept in named
    assert set(others) <= set(named)
    assert rules not in named
    for name in named:  # what is named does allow it
        problem = LAYER.build()
        output = Simulated("moe_w4a16", kept, stages="hay").fn(*problem.args.values())
        assert judge(problem, output, name).status in ("legal", "vacuous")


def test_the_tolerance_named_hides_the_fault_and_none_smaller_of_two_digits_does():
    problem = Case.of("int4_linear", T=8, N=32, K=64, G=32).build()
    right = Simulated("int4_linear").fn(*problem.args.values())
    for error, words in ((0.034, ""), (1000.0, " (vacuous: zeros pass too)")):
        wrong = right.clone()
        wrong[2, 3] += error
        text = judge(problem, wrong).summary[2]
        atol, remark = re.search(r"\| atol=(\S+)(.*)", text).groups()
        exact = problem.args["x"].double() @ problem.args["w"].dequantize().bfloat16().double().T
        largest = float((wrong.double() - exact).abs().max())
        assert largest <= float(atol) <= 1.1 * largest
        assert remark == words
    assert "no contract" in text


def test_zeros_fail_and_the_tolerance_that_hides_them_is_called_vacuous():
    problem = LAYER.build()
    verdict = judge(problem, torch.zeros(6, 64, dtype=torch.bfloat16))
    assert verdict.illegal > 0.9 * verdict.judged
    assert verdict.summary[2].endswith("(vacuous: zeros pass too)")
    assert "contract 'grouped'" not in verdict.summary[2]


def test_tolerances_are_rounded_up():
    assert _tolerance(0.0314, 10.0) == "atol=0.032"
    assert _tolerance(0.031, 10.0) == "atol=0.031"
    assert _tolerance(9.96, 100.0) == "atol=10"
    assert _tolerance(123456.0, 1e9) == "atol=1.3e+05"
    assert _tolerance(0.5, 0.5) == "atol=0.5 (vacuous: zeros pass too)"
    assert _tolerance(float("inf"), 1.0) == "no atol"


def test_nan_is_hidden_by_no_tolerance():
    problem = LAYER.build()
    verdict = judge(problem, torch.full((6, 64), torch.nan, dtype=torch.bfloat16))
    assert verdict.tier == "nonfinite"
    assert verdict.summary[2] == "would pass at: no contract | no atol"


def test_other_endings_are_one_line():
    verdict = Verdict("int4_linear", "case", "k", status="skipped", reason="K must be even")
    assert verdict.text("t.py") == "[int4_linear] k  case  skipped  K must be even"
    assert failed(Verdict("op", "c"), "call", "", "raised E").text("a b.py").splitlines() == [
        "[op]  c  FAIL  tier=call",
        "  raised E",
        "  replay: moeracle check 'a b.py' --case c",
    ]
    assert shlex.split(replay_command("a b.py", str(LAYER)))[-1] == str(LAYER)


def test_a_verdict_is_json_and_knows_its_sums():
    _, verdict = failing()
    plain = verdict.as_dict()
    json.dumps(plain)
    assert plain["judged"] == sum(s["judged"] for s in plain["stages"]) == 1536 + 768 + 768 + 384
    assert plain["illegal"] == verdict.illegal > 0
    assert not verdict.ok
    with pytest.raises(AssertionError, match="FAIL"):
        verdict.raise_if_illegal()
    run_trial(Simulated("moe_w4a16"), LAYER).raise_if_illegal()
