"""Pieces of a problem that several ops share: strided rows, expert maps, exact recipes."""

from __future__ import annotations

import torch

from ..common.generator import FORMATS, Bits, to_tensor
from .case import Case
from .optable import EXACT as EXACT
from .placement import experts_here

DYADIC_STEPS = 3  # router weights 1/2, 1/4, 1/8 where sums must be exact
GAP = 8  # elements between the rows of a strided x, holding NaN


def expert_map(case: Case) -> torch.Tensor | None:
    """int32 [E]: each expert's number on this rank, -1 for one elsewhere; None where no word of the case places any."""
    here = experts_here(case.E, case.flags, case.seed)
    if here is None:
        return None
    mapping = torch.full((case.E,), -1, dtype=torch.int32)
    mapping[here] = torch.arange(len(here), dtype=torch.int32)
    return mapping


def as_given(case: Case, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return topk_ids [T, k] and router weights as the case says they come: int64 ids, views of wider rows."""
    ids = ids.long() if "int64" in case.flags else ids
    return (_sliced(ids), _sliced(weights)) if "slices" in case.flags else (ids, weights)


def _sliced(values: torch.Tensor) -> torch.Tensor:
    """Cut [T, k] out of rows of k + 3; what lies between holds ids of nobody, or NaN."""
    wide = values.new_full((values.shape[0], values.shape[1] + 3), torch.nan if values.is_floating_point() else 1 << 30)
    wide[:, : values.shape[1]] = values
    return wide[:, : values.shape[1]]


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
