"""The judge of float results: walk an output in the pieces of its op's `bands` and tally each against its Band."""

from __future__ import annotations

import torch

from moeracle.ref.contracts.contract import JUDGED, Contract

from ..cases.case import Problem
from ..cases.record import record_of
from .shapes import Output
from .statistics import errors_of
from .tally import Tally

ROWS_AT_ONCE = 512
ROWS_ON_A_GPU = 1 << 12  # there, launches are what takes time


def all_rows(x: torch.Tensor) -> torch.Tensor:
    """Return int64 [R]: the rows of a matrix, on its device."""
    return torch.arange(x.shape[0], device=x.device)


def pieces(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split rows into runs that are worked on together, to bound memory."""
    return rows.split(ROWS_AT_ONCE if rows.device.type == "cpu" else ROWS_ON_A_GPU)


def promises_exact(problem: Problem) -> bool:
    """Say whether sums are worth checking for exactness: the recipe promises it, or each sum has one term.

    The bands check each element; this only keeps that check away from data on which it never succeeds.
    """
    return problem.exact or problem.case.data == "onehot"


def sums_may_overflow(problem: Problem, rules: Contract) -> bool:
    """Say whether a sum that a kernel scales only afterwards may exceed fp32, although the scaled one does not."""
    x = problem.args.get("x")
    late = rules.weight in ("post", "hoisted") or rules.one_group == "after_sum"
    if x is None or x.numel() == 0 or not late:
        return False
    code = record_of(problem.case.op).largest_code(rules, x.dtype, (1 << problem.case.bits) - 1)
    return float(x.abs().amax()) * x.shape[1] * code >= 2.0**127


def tally_of(problem: Problem, outputs: Output, rules: Contract, sample: int, stage: str = "out") -> Tally:
    """Return the empty Tally of a stage, with what its errors may look like and other experts' answers."""
    errors = errors_of(problem.case, rules, stage)
    record = record_of(problem.case.op)
    other_experts, saturates = record.other_experts(problem, stage), record.saturates(problem.case, stage)
    got = outputs[stage].reshape(-1, outputs[stage].shape[-1])
    got = got if got.is_floating_point() else got.float()
    return Tally(stage, got, rules.of_stage(stage, got.dtype), sample, errors, other_experts, saturates)


def tallied(
    problem: Problem, outputs: Output, rules: Contract, sample: int, *, to_first_illegal: bool = False
) -> list[Tally]:
    """Judge an output: each stage that the kernel stored, from the last one that it stored before.

    Args:
        problem: of an op with floats.
        outputs: by stage; their shapes are right.
        sample: Tally's.
        to_first_illegal: look no further than the first piece with an illegal element.
    Returns:
        One Tally a stage.
    """
    record = record_of(problem.case.op)
    rules = record.as_judged(rules)
    tallies = {name: tally_of(problem, outputs, rules, sample, name) for name in JUDGED if name in outputs}
    for stage, rows, first_column, band in record.judged_bands(problem, rules, outputs, exact=promises_exact(problem)):
        if stage in tallies:
            tallies[stage].visit(rows, band, first_column)
            if to_first_illegal and tallies[stage].result.illegal:
                break
    return list(tallies.values())
