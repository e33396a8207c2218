"""Tensors of every op are judged by its record alone, saved and judged again; a wrong one is illegal there, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moeracle import NotJudged, assert_legal, judge_tensors
from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.simulate import simulation_of
from moeracle.ref.contracts.contract import contract
from moeracle.tensors.judge import judge_problem
from moeracle.tensors.saved import load

SIZES = {"T": 9, "E": 4, "k": 2, "N": 64, "K": 128, "G": 32, "H": 128, "I": 64, "V": 48, "B": 4, "g": 2, "m": 1}


def case_of(op: str, **more: Any) -> Case:
    dims = {letter: SIZES[letter] for letter in OPS[op].dims}
    flags = tuple(argument.flag for argument in OPS[op].arguments if argument.flag)
    return Case.of(op, seed=5, flags=flags, **dims, **more)


def legal_output(problem: Problem, rules: str) -> Any:
    made = getattr(simulation_of(problem.case.op, contract(rules)), problem.case.op)(*problem.args.values())
    return made


def rules_of(op: str) -> str:
    return OPS[op].default_contract


@pytest.mark.parametrize("op", OPS)
def test_a_right_output_is_legal_and_its_case_has_the_same_sizes(op: str) -> None:
    problem = case_of(op).build()
    verdict = judge_tensors(op, legal_output(problem, rules_of(op)), *problem.args.values(), contract=rules_of(op))
    assert verdict.ok, verdict.text()
    assert verdict.verdict.judged > 0
    own, drawn = verdict.problem.case, problem.case
    assert (own.dtype, own.layout, own.zero) == (drawn.dtype, drawn.layout, drawn.zero)
    if (
        not {"expert_offsets", "inv"} & problem.args.keys()
    ):  # whose tensors do not show the slots of a token, or the experts
        assert own.sizes == drawn.sizes
        assert own.flags == drawn.flags
    assert not bool(verdict.illegal.any())


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_output_is_illegal_saved_and_illegal_again(op: str, tmp_path: Path) -> None:
    problem, record = case_of(op).build(), record_of(op)
    output = legal_output(problem, rules_of(op))
    parts = dict(record.by_name(output) or {})
    name = record.results[-1].name
    wrong = parts[name].clone()
    first = wrong.reshape(-1)[:1]
    first.copy_(first + 3)
    assert not torch.equal(wrong, parts[name])
    parts[name] = wrong
    arguments = problem.args.values()
    with pytest.raises(AssertionError) as failure:
        assert_legal(
            op, record.as_output(parts), *arguments, contract=rules_of(op), save=tmp_path, name="mine", explain=False
        )
    lines = str(failure.value).splitlines()
    assert len(lines) <= 20
    assert lines[0].startswith(f"[{op}] mine  {op}/")
    path = next(tmp_path.iterdir())
    assert lines[-1] == f"  replay: moeracle judge {path}"
    again = judge_problem(*load(path)[:3], name=load(path)[3], explain=False)
    again.path = path
    assert again.text() == str(failure.value)
    assert bool(again.illegal.any())
    if record.has("bands"):
        inside = (again.lo <= again.outputs[again.stage]) & (again.outputs[again.stage] <= again.hi)
        known = ~again.lo.isnan()
        assert torch.equal(again.illegal[known], ~inside[known])


@pytest.mark.parametrize("op", OPS)
def test_every_tensor_of_the_wrong_shape_is_refused_by_its_name(op: str) -> None:
    problem, record = case_of(op).build(), record_of(op)
    output = legal_output(problem, rules_of(op))
    refused = 0
    for name, value in problem.args.items():
        free = "[P" in next(a.form for a in record.arguments if a.name == name)  # places may be left over
        if isinstance(value, torch.Tensor) and value.ndim and not free:
            longer = torch.cat([value, value[-1:]])
            with pytest.raises(NotJudged) as said:
                judge_tensors(op, output, contract=rules_of(op), **{**problem.args, name: longer})
            assert len(str(said.value).splitlines()) == 1
            refused += 1
    for name, value in (record.by_name(output) or {}).items():
        parts = {**record.by_name(output), name: torch.cat([value, value[-1:]])}
        with pytest.raises(NotJudged, match=f"^{name}: got shape"):
            judge_tensors(op, record.as_output(parts), *problem.args.values(), contract=rules_of(op))
        refused += 1
    assert refused
