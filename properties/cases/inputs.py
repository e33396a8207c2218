"""Pieces of a problem that several ops share: strided rows, expert maps, exact recipes."""

from __future__ import annotations

import torch

from ..common.generator import FORMATS, Bits, to_tensor
from .case import Case

EXACT = ("integers", "samesign", "sweep")  # every order of accumulation gives the same result
DYADIC_STEPS = 3  # router weights 1/2, 1/4, 1/8 where sums must be exact
GAP = 8  # elements between the rows of a strided x, holding NaN


def local_experts(case: Case) -> int:
    """Experts on this rank: the first half of them under ep2, all otherwise."""
    return (case.E + 1) // 2 if "ep2" in case.flags else case.E


def expert_map(case: Case) -> torch.Tensor | None:
    """int32 [E]: e for the first half of the experts and -1 for the others under ep2; None otherwise."""
    if "ep2" not in case.flags:
        return None
    mapping = torch.arange(case.E, dtype=torch.int32)
    mapping[local_experts(case) :] = -1
    return mapping


def rows_of(bits: Bits, case: Case) -> torch.Tensor:
    """Return the case's x, with NaN between the rows if it is strided."""
    return strided(to_tensor(bits, FORMATS[case.dtype]), case)


def strided(x: torch.Tensor, case: Case) -> torch.Tensor:
    """Cut x out of a wider buffer whose other columns are NaN, if the case says so."""
    if "strided" not in case.flags:
        return x
    wide = torch.full((x.shape[0], x.shape[1] + GAP), float("nan"), dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]
