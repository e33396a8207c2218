"""Routing by groups of experts, as DeepSeek's models do; special values and ties as in topk_softmax.py."""

from __future__ import annotations

import torch

from ..errors import require, unknown
from .topk_softmax import check_logits, chosen_weights, finite_scores, largest

SCORING = ("softmax", "sigmoid")


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
        logits: [T, E], bf16, fp16, fp32 or fp64; T may be 0; non-finite rows as in topk_softmax.py's docstring.
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
    T, E = check_logits(logits, top_k, dtype)
    require(num_expert_group >= 1, f"num_expert_group: got {num_expert_group}, must be at least 1")
    require(E % num_expert_group == 0, f"num_expert_group: got {num_expert_group}, must divide E = {E}")
    require(1 <= topk_group <= num_expert_group, f"topk_group: got {topk_group}, must be 1..{num_expert_group}")
    size = E // num_expert_group
    require(
        top_k <= topk_group * size, f"top_k: got {top_k}, must be 1..{topk_group * size}, the experts that are kept"
    )
    if scoring not in SCORING:
        raise unknown("scoring", scoring, SCORING)
    scores = finite_scores(logits, scoring, dtype)
    choice = scores
    if bias is not None:
        require(bias.shape == (E,), f"bias: got shape {tuple(bias.shape)}, must be ({E},)")
        require(bool(bias.isfinite().all()), "bias: got a value that is not finite, must be finite")
        choice = scores + bias.to(dtype)
    grouped = choice.reshape(T, num_expert_group, size)
    best = grouped.sort(dim=-1, descending=True).values
    group_scores = best[..., 0] if bias is None or size == 1 else best[..., 0] + best[..., 1]
    kept = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, largest(group_scores, topk_group), True)
    ids = largest(grouped.masked_fill(~kept[..., None], -torch.inf).reshape(T, E), top_k)
    return chosen_weights(scores, ids, renormalize, routed_scaling_factor), ids.to(torch.int32)
