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

Sources: https://github.com/vllm-project/vllm/pull/39391 (clamped scores), /pull/52679 (ties), /pull/24119 (factor
applied once); https://github.com/pytorch/executorch (top-k before softmax).
"""

from __future__ import annotations

import torch

from ..errors import require, unknown
from ..rounding import round_to

SCORING = ("softmax", "sigmoid")
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
    _check(logits, top_k, dtype)
    scores = _scores(logits, "softmax", dtype)
    ids = _largest(scores, top_k)
    return _weights(scores, ids, renormalize, 1.0), ids.to(torch.int32)


def topk_sigmoid(
    logits: torch.Tensor, top_k: int, *, renormalize: bool, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the k experts of largest sigmoid(logit), each scored on its own.

        s = sigmoid(logits[t]);  ids = the k largest s, descending;  weights = s[ids], or s[ids] / sum(s[ids])

    Args, Returns, Raises: as `topk_softmax`. Large logits saturate: in fp32 every logit above about 17.4 scores 1, and
    those experts tie.
    Source: https://github.com/vllm-project/vllm/pull/39391
    """
    _check(logits, top_k, dtype)
    scores = _scores(logits, "sigmoid", dtype)
    ids = _largest(scores, top_k)
    return _weights(scores, ids, renormalize, 1.0), ids.to(torch.int32)


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
    _check(logits, top_k, torch.float32)
    require(logits.dtype != torch.float64, "logits: got torch.float64, must be bf16, fp16 or fp32, the model's dtype")
    wide = logits.to(torch.float64)
    ids = _largest(torch.where(wide.isnan(), torch.inf, wide), top_k)
    weights = round_to(torch.softmax(wide.gather(1, ids), dim=-1), logits.dtype)
    return weights.to(torch.float32), ids.to(torch.int32)


def grouped_topk(
    logits: torch.Tensor,
    top_k: int,
    *,
    num_expert_group: int,
    topk_group: int,
    renormalize: bool,
    scoring: str = "softmax",
    bias: torch.Tensor | None = None,
    routed_scaling_factor: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose groups of experts first, then the k best experts inside them (DeepSeek).

        s = softmax or sigmoid of logits[t];  c = s + bias (or s)
        group score = the sum of the group's two largest c if there is a bias, else its largest c
        ids = the k largest c inside the topk_group best groups, descending in c
        weights = s[ids] (never c), / sum(s[ids]) if renormalize, then * routed_scaling_factor

    Args:
        logits: [T, E], bf16, fp16, fp32 or fp64; T may be 0; non-finite rows as in the module's docstring.
        top_k: 1..topk_group * E / num_expert_group.
        num_expert_group: consecutive groups of equal size; divides E.
        topk_group: groups kept, 1..num_expert_group.
        renormalize: divide by the sum of the k unbiased scores, without epsilon.
        scoring: "softmax" over all E, or "sigmoid".
        bias: [E], finite, added in `dtype`, or None. A group of one expert counts its one biased score.
        routed_scaling_factor: finite; multiplied in here, once, and by nobody after.
        dtype: of scores and weights, torch.float32 or torch.float64.
    Returns:
        weights [T, k] `dtype`, each rounded once as a score and once after renormalizing and scaling together;
        ids [T, k] int32, distinct. With a bias the weights need not descend.
    Raises:
        ValueError: as `topk_softmax`; E not a multiple of num_expert_group; topk_group or top_k out of range; another
            scoring; bias of another shape or not finite.
    Source: https://github.com/vllm-project/vllm/pull/24119
    """
    T, E = _check(logits, top_k, dtype)
    require(num_expert_group >= 1, f"num_expert_group: got {num_expert_group}, must be at least 1")
    require(E % num_expert_group == 0, f"num_expert_group: got {num_expert_group}, must divide E = {E}")
    require(1 <= topk_group <= num_expert_group, f"topk_group: got {topk_group}, must be 1..{num_expert_group}")
    size = E // num_expert_group
    require(
        top_k <= topk_group * size, f"top_k: got {top_k}, must be 1..{topk_group * size}, the experts that are kept"
    )
    if scoring not in SCORING:
        raise unknown("scoring", scoring, SCORING)
    scores = _scores(logits, scoring, dtype)
    choice = scores
    if bias is not None:
        require(bias.shape == (E,), f"bias: got shape {tuple(bias.shape)}, must be ({E},)")
        require(bool(bias.isfinite().all()), "bias: got a value that is not finite, must be finite")
        choice = scores + bias.to(dtype)
    grouped = choice.reshape(T, num_expert_group, size)
    best = grouped.sort(dim=-1, descending=True).values
    group_scores = best[..., 0] if bias is None or size == 1 else best[..., 0] + best[..., 1]
    kept = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, _largest(group_scores, topk_group), True)
    ids = _largest(grouped.masked_fill(~kept[..., None], -torch.inf).reshape(T, E), top_k)
    return _weights(scores, ids, renormalize, routed_scaling_factor), ids.to(torch.int32)


def _check(logits: torch.Tensor, top_k: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return (T, E) of legal arguments, or raise."""
    require(logits.ndim == 2, f"logits: got shape {tuple(logits.shape)}, must be [T, E]")
    require(logits.dtype in LOGIT_DTYPES, f"logits: got {logits.dtype}, must be bf16, fp16, fp32 or fp64")
    require(dtype in (torch.float32, torch.float64), f"dtype: got {dtype}, must be torch.float32 or torch.float64")
    T, E = logits.shape
    require(1 <= top_k <= E, f"top_k: got {top_k}, must be 1..{E}, the number of experts")
    return T, E


def _scores(logits: torch.Tensor, scoring: str, dtype: torch.dtype) -> torch.Tensor:
    """Scores [T, E] in `dtype`, all finite: one rounding of the fp64 score, 0 where that is NaN."""
    wide = logits.to(torch.float64)
    scores = torch.softmax(wide, dim=-1) if scoring == "softmax" else torch.sigmoid(wide)
    return torch.where(scores.isfinite(), scores, 0.0).to(dtype)


def _largest(x: torch.Tensor, k: int) -> torch.Tensor:
    """Ids int64 [T, k] of the k largest, descending, ties to the lowest id: what k argmax passes would choose."""
    return torch.sort(x, dim=-1, descending=True, stable=True).indices[:, :k]


def _weights(scores: torch.Tensor, ids: torch.Tensor, renormalize: bool, factor: float) -> torch.Tensor:
    """The chosen scores, renormalized and scaled in fp64 and rounded once to the scores' dtype."""
    weights = scores.gather(1, ids).to(torch.float64)
    if renormalize:
        total = torch.zeros_like(weights[:, :1])
        for j in range(ids.shape[1]):  # slot order: torch's own sum may add in another order for another T
            total = total + weights[:, j : j + 1]
        weights = weights / torch.where(total > 0, total, 1.0)
    return (weights * factor).to(scores.dtype)
