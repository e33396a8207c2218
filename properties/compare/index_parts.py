"""What the judges of integer results share: taking a tuple apart, demanding equal bits, telling what differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..cases.case import Problem
from ..cases.optable import Result
from ..cases.record import record_of
from ..common.guard import different_bits
from ..common.verdict import StageResult, Verdict, failed
from .error_map import failure_maps
from .shapes import wrong_tensor


def take(verdict: Verdict, problem: Problem, output: Any) -> list[torch.Tensor] | None:
    """Return the output's tensors, or None after failing the verdict for their number, shape, dtype or device."""
    record = record_of(problem.case.op)
    shapes = record.shapes(problem)
    got = list(output) if isinstance(output, (tuple, list)) else None
    if got is None or len(got) != len(shapes):
        what = "None" if output is None else type(output).__name__ if got is None else f"{len(got)} values"
        failed(verdict, "shape", "", f"returned {what}, must return ({', '.join(shapes)})")
        return None
    for (name, shape), value in zip(shapes.items(), got, strict=True):
        if not isinstance(value, torch.Tensor):
            what = "None" if value is None else type(value).__name__
            failed(verdict, "shape", name, f"{name}: got {what}, must be a tensor")
            return None
        complaint = wrong_tensor(name, value, shape, record.result_dtype(name, problem.case), problem.device)
        if complaint:
            failed(verdict, "shape", name, complaint)
            return None
    return got


def same(verdict: Verdict, stage: str, got: torch.Tensor, expected: torch.Tensor, note: str = "") -> bool:
    """Demand equal bits; on a difference fail the verdict with the first place."""
    got, expected = got.cpu(), expected.cpu()
    wrong = different_bits(got, expected)
    illegal = int(wrong.sum())
    verdict.stages.append(StageResult(stage, got.numel(), illegal, got.numel()))
    if not illegal:
        return True
    verdict.illegal_at[stage] = wrong
    at = tuple(wrong.nonzero()[0].tolist())
    first = f"{illegal:,} of {got.numel():,} elements illegal; first {stage}[{', '.join(map(str, at))}]"
    reason = f"{first}: got {got[at].item()}, legal {expected[at].item()}"
    failed(verdict, "bits", stage, reason, *([note] if note else []))
    verdict.maps = failure_maps(
        stage, wrong.float().reshape(1 if wrong.ndim < 2 else len(wrong), -1), "row", unit="wrong"
    )
    return False


def tally_mask(
    verdict: Verdict, result: Result, wrong: torch.Tensor, tier: str, tell: Callable[[int, int], str]
) -> None:
    """Add a stage from a mask of illegal elements; on its first failure say where and what.

    Args:
        result: the stage's name, and what a row and a column are called.
        wrong: bool [rows, columns].
        tell: (row, column) to "got …, legal …".
    """
    illegal, stage, axes = int(wrong.sum()), result.name, result.axes
    verdict.stages.append(StageResult(stage, wrong.numel(), illegal))
    if illegal:
        verdict.illegal_at[stage] = wrong
    if not illegal or verdict.status != "legal":
        return
    i, j = wrong.nonzero()[0].tolist()
    first = f"first {stage}[{axes[0]} {i}, {axes[1]} {j}]: {tell(i, j)}"
    rows = int(wrong.any(1).sum())
    place = f"in {rows:,} of {wrong.shape[0]:,} {axes[0]}s"
    failed(verdict, tier, stage, f"{illegal:,} of {wrong.numel():,} elements illegal; {first}", place)
    verdict.maps = failure_maps(stage, wrong.float(), axes[0], unit="wrong")
