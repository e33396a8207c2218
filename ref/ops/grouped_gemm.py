"""Rows sorted by expert times int4 matrices, one expert after another; each is dequantized only while it is used."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from ..errors import require
from ..weights.weight import Int4Weight
from .int4_linear import check_columns


def expert_spans(expert_offsets: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield (expert, first row, row after the last) for each expert that has rows.

    Args:
        expert_offsets: int [E+1], non-decreasing; expert e owns rows offsets[e] to offsets[e+1]-1.
    """
    offsets = expert_offsets.tolist()
    for e, (start, stop) in enumerate(pairwise(offsets)):
        if stop > start:
            yield e, start, stop


def grouped_gemm(
    x: torch.Tensor, w: Int4Weight, expert_offsets: torch.Tensor, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Multiply expert-contiguous rows by their expert's matrix.

    y[row] = W[e] x[row] (+ bias[e]) for expert_offsets[e] <= row < expert_offsets[e+1]

    Args:
        x: [R, K], rows sorted by expert, as moe_permute leaves them.
        w: Int4Weight of shape [E, N, K].
        expert_offsets: int64 [E+1]; rows at and after expert_offsets[E] belong to no local expert.
        dtype: what to compute and return in, torch.float32 or torch.float64.
    Returns:
        [R, N] in `dtype`; rows of no expert are zero. Error as int4_linear's.
    Raises:
        ValueError: x's columns are not w's K, or expert_offsets is not [E+1].
    Source: the grouped path of github.com/ROCm/vllm/pull/970.
    """
    R, E, N = x.shape[0], w.E, w.N
    check_columns(x, w)
    require(E is not None, f"w: got shape {w.shape}, must be [E, N, K]")
    require(
        expert_offsets.shape == (E + 1,) if E is not None else False,
        f"expert_offsets: got shape {tuple(expert_offsets.shape)}, must be [E+1={(E or 0) + 1}]",
    )
    y = torch.zeros(R, N, dtype=dtype, device=x.device)
    spans = list(expert_spans(expert_offsets))
    matrix = w.matrices([e for e, _, _ in spans], dtype)
    for e, start, stop in spans:
        torch.matmul(x[start:stop].to(dtype), matrix(e).T, out=y[start:stop])
        if w.bias is not None:
            y[start:stop] += w.bias[e].to(dtype)
    return y
