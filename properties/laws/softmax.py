"""How far two legal softmaxes may be apart: which rows nobody can mistake, and the tolerance of their weights."""

from __future__ import annotations

import torch

CLEAR_GAP = 2.0**-9  # of logits: far above what any fp32 softmax of 4096 experts can confuse
DEEPEST = 80.0  # below the row's largest logit scores are still normal fp32 numbers


def clear_rows(logits: torch.Tensor, top_k: int, *, ties: bool) -> torch.Tensor:
    """Return bool [T]: rows whose k best experts, and their order, no legal kernel can mistake.

    Their logits lie apart, or (with `ties`) are equal, when the lower id goes first; rows without a finite softmax have
    ids 0..k-1.
    """
    l = logits.double()
    best = l.sort(dim=1, descending=True).values[:, : top_k + 1]
    gap = best[:, :-1] - best[:, 1:]
    apart = (gap >= CLEAR_GAP) | ((gap == 0) & ties)
    finite = l.isfinite().all(1)
    clamped = without_softmax(l)
    return (finite & apart.all(1) & (best[:, 0] - best[:, -1] < DEEPEST)) | (clamped & ties)


def without_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Return bool [T]: rows that hold NaN or +inf, or nothing but -inf; their scores are 0."""
    return ~logits.amax(1).isfinite()  # amax passes NaN on


def topk_tolerance(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return how far two legal kernels' weights may be apart: each has (8 + depth) 2^-23 + E 2^-24 relative, twice if
    renormalized, and k more roundings."""
    k, E = weights.shape[1], logits.shape[1]
    relative = 2 * ((8 + DEEPEST) * 2.0**-23 + E * 2.0**-24) + (k + 2) * 2.0**-24
    return weights.double().abs() * 2 * relative + 2.0**-148
