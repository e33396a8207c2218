"""When two answers agree: equal bits, but for softmax and quotients, which legal kernels approximate."""

from __future__ import annotations

from ..cases.case import Problem
from ..cases.record import record_of
from .bench import Bench, Results


def agree(bench: Bench, problem: Problem, got: Results, expected: Results, on: str, *, ties: bool = True) -> None:
    """Demand that two answers to `problem` agree.

    Args:
        problem: what both answer.
        got, expected: results in token order.
        on: what `got` was computed from.
        ties: equal logits may be compared: False where experts have changed their names, so that ties break otherwise.
    """
    for part in record_of(problem.case.op).agreement(problem, got, expected, ties=ties):
        bench.demand(part.name, part.right, part.got, part.expected, part.axes, part.where, on)
