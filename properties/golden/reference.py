"""The library's own reference op on a Problem: run in fp64 and rounded once, in the shape that a kernel returns."""

from __future__ import annotations

import torch

from ..cases.case import Problem
from ..cases.record import record_of


def run_reference(problem: Problem) -> dict[str, torch.Tensor]:
    """Return the reference op's results by name; floats are computed in fp64 and rounded once to the case's dtype."""
    return record_of(problem.case.op).reference(problem, torch.float64)
