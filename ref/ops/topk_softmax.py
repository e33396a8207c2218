"""Routing: from router logits to the k experts of each token and their weights.

Special values first. A *score* that is not finite becomes 0, so no expert is ever chosen twice:

    topk_softmax, grouped_topk(softmax)   a NaN or a +inf anywhere in the row, or -inf everywhere: every score is 0,
                                          hence ids 0..k-1 and weights 0. -inf beside finite logits: score 0 there.
    topk_sigmoid, grouped_topk(sigmoid)   only the NaN expert scores 0; sigmoid(+inf) = 1, sigmoid(-inf) = 0.
    renormalize with a sum of 0           the sum counts as 1: the weights stay 0.
    topk_then_softmax                     nothing is clamped: NaN ranks with +inf, and the row's weights are NaN.

Ties go to the lowest id everywhere (groups too), by a stable sort: `torch.topk` leaves them unspecified. Scores are
computed in fp64 and rounded once to `dtype`, so a row's result depends neither on the other rows nor on the number of
threads (torch's fp32 sigmoid does depend on both, through its vector tails).

Sources: https://github.com/vllm-project/vllm/pull/39391 (clamped scores), /pull/52679 (ties);
https://github.com/pytorch/executorch (top-k before softmax).
"""

from __future__ import annotations

import torch

from ..errors import require
from ..rounding import round_to

LOGIT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def topk_softmax(
    logits: torch.Tensor, top_k: int, *, renormalize: bool, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the k most probable experts of each token, by a softmax over all E.

        s = softmax(logits[t]);  ids = the k largest s, descending;  weights = s[ids], or s[ids] / sum(s[ids])

    Args:
        logits: [T, E], bf16, fp16, fp32 or fp64; T may be 0; non-finite rows as in the module's docstring.
        top_k: 1..E.
        renormalize: divide by the sum of the k scores, in slot order, without epsilon.
        dtype: of scores and weights, torch.float32 or torch.float64. Ties are ties of scores in this dtype.
    Returns:
        weights [T, k] `dtype`, each rounded once as a score and once more if renormalized; ids [T, k] int32, distinct.
    Raises:
        ValueError: logits not [T, E] floating point, top_k outside 1..E, or another dtype.
    Source: https://github.com/vllm-project/vllm/pull/39391
    """
    check_logits(logits, top_k, dtype)
    scores = finite_scores(logits, "softmax", dtype)
    ids = largest(scores, top_k)
    return chosen_weights(scores, ids, renormalize, 1.0), ids.to(torch.int32)


def topk_sigmoid(
    logits: torch.Tensor, top_k: int, *, renormalize: bool, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the k experts of largest sigmoid(logit), each scored on its own.

        s = sigmoid(logits[t]);  ids = the k largest s, descending;  weights = s[ids], or s[ids] / sum(s[ids])

    Args, Returns, Raises: as `topk_softmax`. Large logits saturate: in fp32 every logit above about 17.4 scores 1, and
    those experts tie.
    Source: https://github.com/vllm-project/vllm/pull/39391
    """
    check_logits(logits, top_k, dtype)
    scores = finite_scores(logits, "sigmoid", dtype)
    ids = largest(scores, top_k)
    return chosen_weights(scores, ids, renormalize, 1.0), ids.to(torch.int32)


def topk_then_softmax(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the k largest logits, then take the softmax over those k alone, in the model's dtype (executorch).

        ids = the k largest logits[t], descending;  weights = D(softmax(logits[t][ids]))      D = logits.dtype

    Without rounding this equals topk_softmax(renormalize=True); with it, the weights need not sum to 1.

    Args:
        logits: [T, E], bf16, fp16 or fp32. A NaN ranks with +inf (the lower id first, whichever it is); a row that
            picks either has NaN weights.
        top_k: 1..E.
    Returns:
        weights [T, k] fp32 that hold values of D, each correctly rounded; ids [T, k] int32, distinct.
    Raises:
        ValueError: as `topk_softmax`; logits in fp64.
    Source: https://github.com/pytorch/executorch, examples/models/qwen3_5_moe/model.py and
        backends/cuda/triton/kernels/topk.py
    """
    check_logits(logits, top_k, torch.float32)
    require(logits.dtype != torch.float64, "logits: got torch.float64, must be bf16, fp16 or fp32, the model's dtype")
    wide = logits.to(torch.float64)
    ids = largest(torch.where(wide.isnan(), torch.inf, wide), top_k)
    weights = round_to(torch.softmax(wide.gather(1, ids), dim=-1), logits.dtype)
    return weights.to(torch.float32), ids.to(torch.int32)


def check_logits(logits: torch.Tensor, top_k: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return (T, E) of legal arguments, or raise."""
    require(logits.ndim == 2, f"logits: got shape {tuple(logits.shape)}, must be [T, E]")
    require(logits.dtype in LOGIT_DTYPES, f"logits: got {logits.dtype}, must be bf16, fp16, fp32 or fp64")
    require(dtype in (torch.float32, torch.float64), f"dtype: got {dtype}, must be torch.float32 or torch.float64")
    T, E = logits.shape
    require(1 <= top_k <= E, f"top_k: got {top_k}, must be 1..{E}, the number of experts")
    return T, E


def finite_scores(logits: torch.Tensor, scoring: str, dtype: torch.dtype) -> torch.Tensor:
    """Scores [T, E] in `dtype`, all finite: one rounding of the fp64 score, 0 where that is NaN."""
    wide = logits.to(torch.float64)
    scores = torch.softmax(wide, dim=-1) if scoring == "softmax" else torch.sigmoid(wide)
    return torch.where(scores.isfinite(), scores, 0.0).to(dtype)


def largest(x: torch.Tensor, k: int) -> torch.Tensor:
    """Ids int64 [T, k] of the k largest, descending, ties to the lowest id: what k argmax passes would choose."""
    return torch.sort(x, dim=-1, descending=True, stable=True).indices[:, :k]


def chosen_weights(scores: torch.Tensor, ids: torch.Tensor, renormalize: bool, factor: float) -> torch.Tensor:
    """The chosen scores, renormalized and scaled in fp64 and rounded once to the scores' dtype."""
    weights = scores.gather(1, ids).to(torch.float64)
    if renormalize:
        total = torch.zeros_like(weights[:, :1])
        for j in range(ids.shape[1]):  # slot order: torch's own sum may add in another order for another T
            total = total + weights[:, j : j + 1]
        weights = weights / torch.where(total > 0, total, 1.0)
    return (weights * factor).to(scores.dtype)
