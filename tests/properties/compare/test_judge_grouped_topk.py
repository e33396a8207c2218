"""Groups: what every fp32 router may choose is legal, what surely comes first may not be left behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.cases.changes import with_args
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.compare.grouped_topk import choice_of, clear_rows
from moeracle.properties.judge import judge

FLAGS = ((), ("bias",), ("sigmoid", "renorm"), ("bias", "sigmoid", "renorm", "scaled"))
T = torch.Tensor


def problem_of(logits: T, bias: T | None = None, *, g: int = 2, m: int = 1, k: int = 1, **args: object) -> Problem:
    """Return a case's problem with these logits [T, E] and bias [E]."""
    case = Case.of("grouped_topk", T=len(logits), E=logits.shape[1], k=k, g=g, m=m, dtype="fp32")
    return with_args(case.build(), logits=logits, correction_bias=bias, **args)


def answer(problem: Problem, ids: list[list[int]]) -> tuple[T, T]:
    """Return these ids with the weights that they ought to have: plain softmax scores."""
    chosen = torch.tensor(ids)
    return torch.softmax(problem.args["logits"].double(), 1).float().gather(1, chosen), chosen.int()


@pytest.mark.parametrize("data", OPS["grouped_topk"].data)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_the_reference_in_fp32_and_in_fp64_is_legal(dtype: str, data: str) -> None:
    record = record_of("grouped_topk")
    for seed, (E, g, m, k) in enumerate([(8, 4, 2, 2), (64, 8, 3, 6), (12, 4, 1, 3), (5, 5, 2, 2), (9, 1, 1, 9)]):
        for flags in FLAGS:
            case = Case.of("grouped_topk", T=17, E=E, k=k, g=g, m=m, dtype=dtype, data=data, seed=seed, flags=flags)
            problem = case.build()
            verdict = judge(problem, record.as_output(record.reference(problem, torch.float32)))
            assert verdict.ok, verdict.text()


def test_near_ties_leave_a_choice_of_groups_and_of_experts_and_ties_do_not() -> None:
    near = 1 + 2.0**-23
    logits = torch.tensor([[1.0, 0.0, near, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, near, 0.0, 0.0]])
    problem = problem_of(logits)
    for ids, legal in (
        ([[0], [0], [0]], True),
        ([[2], [0], [1]], True),
        ([[0], [2], [0]], False),  # equal groups: the first
        ([[1], [0], [0]], False),  # a surely worse expert
        ([[0], [0], [2]], False),  # a surely worse group
    ):
        assert judge(problem, answer(problem, ids), explain=False).ok == legal, ids


def test_a_biased_group_counts_its_two_best_and_the_bias_is_not_in_the_weights() -> None:
    problem = problem_of(torch.zeros(1, 4), torch.tensor([0.5, 0.5, -0.5, 0.75]))
    assert judge(problem, answer(problem, [[0]]), explain=False).ok
    assert not judge(problem, answer(problem, [[3]]), explain=False).ok
    assert not judge(problem, (torch.tensor([[0.75]]), torch.tensor([[0]]).int()), explain=False).ok


def test_more_groups_than_are_kept_are_refused() -> None:
    problem = problem_of(torch.tensor([[4.0, 3.0, 3.5, 0.0]]), k=2)
    assert judge(problem, answer(problem, [[0, 1]]), explain=False).ok
    assert not judge(problem, answer(problem, [[0, 2]]), explain=False).ok


@pytest.mark.parametrize("change", [lambda i: i * 0, lambda i: i + 100, lambda i: i - 100])
def test_ids_twice_or_out_of_range_are_refused(change: Callable[[T], T]) -> None:
    problem = problem_of(torch.randn(3, 8), k=3, g=4, m=2)
    weights, ids = record_of("grouped_topk").reference(problem, torch.float32).values()
    assert judge(problem, (weights, ids), explain=False).ok
    assert not judge(problem, (weights, change(ids)), explain=False).ok


def test_rows_that_leave_no_choice_are_known() -> None:
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 4.0, 2.0, 1.0], [4.0, 4 + 2.0**-21, 2.0, 1.0]])
    choice = choice_of(logits, None, 2, "softmax")
    assert clear_rows(choice, ties=True).tolist() == [True, True, False]
    assert clear_rows(choice, ties=False).tolist() == [True, False, False]


@pytest.mark.parametrize(("dims", "message"), [
    ({"g": 3, "m": 1}, "case dimensions: got g = 3, must be one of 1, 2, 4, 8 beside T2-E8-k4-m1"),
    ({"g": 4, "m": 1}, "case dimensions: got m = 1, must be one of 2, 3, 4 beside T2-E8-k4-g4"),
])  # fmt: skip
def test_groups_that_do_not_fit_are_refused(dims: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Case.of("grouped_topk", T=2, E=8, k=4, **dims)


def test_the_bias_of_a_case_ties_where_its_logits_do() -> None:
    case = Case.of("grouped_topk", T=2, E=64, k=4, g=8, m=4, flags=("bias",))
    assert case.build().args["correction_bias"].unique().numel() > 16
    assert dataclasses.replace(case, data="ties").build().args["correction_bias"].unique().numel() == 4
