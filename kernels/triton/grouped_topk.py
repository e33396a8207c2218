"""The best groups of experts of each token, then the k best experts inside them, lowest id first among equals."""

from __future__ import annotations

import torch

from moeracle.kernels.triton.tiles import pow2_at_least
from moeracle.kernels.triton.triton_import import tl, triton


@triton.jit
def grouped_topk_kernel(
    logits_ptr, bias_ptr, weights_ptr, ids_ptr, num_groups, size, topk_group, top_k, factor, stride_t, stride_e,
    SIGMOID: tl.constexpr, BIAS: tl.constexpr, TWO: tl.constexpr, RENORMALIZE: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_TOPK: tl.constexpr,
):  # fmt: skip
    """One program: one token, its experts as [BLOCK_G groups, BLOCK_S experts each]; TWO: a group's two best count."""
    t = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    slot = tl.arange(0, BLOCK_TOPK)
    mask = (g < num_groups)[:, None] & (s < size)[None, :]
    e = g[:, None] * size + s[None, :]
    none = BLOCK_G * BLOCK_S  # above every id
    logits = tl.load(logits_ptr + t * stride_t + e * stride_e, mask=mask, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        score = 1.0 / (1.0 + tl.exp(-logits))
    else:
        score = tl.exp(logits - tl.max(tl.max(logits, axis=1), axis=0))
        score = score / tl.sum(tl.sum(score, axis=1), axis=0)
    # NaN scores, of one expert or of a row without a finite softmax, count as 0.
    score = tl.where((score >= 0.0) & (score <= 1.0), score, 0.0)
    choice = score
    if BIAS:
        choice = score + tl.load(bias_ptr + e, mask=mask, other=0.0)
    choice = tl.where(mask, choice, float("-inf"))
    of_group = tl.max(choice, axis=1)
    if TWO:
        first = tl.min(tl.where(choice == of_group[:, None], s[None, :], BLOCK_S), axis=1)
        second = tl.max(tl.where(s[None, :] == first[:, None], float("-inf"), choice), axis=1)
        of_group = tl.where(g < num_groups, of_group + second, float("-inf"))
    kept = g < 0
    for _ in range(0, topk_group):
        best = tl.max(of_group, axis=0)
        group = tl.min(tl.where(of_group == best, g, BLOCK_G), axis=0)
        kept = kept | (g == group)
        of_group = tl.where(g == group, float("-inf"), of_group)
    choice = tl.where(kept[:, None], choice, float("-inf"))
    weights = tl.zeros((BLOCK_TOPK,), dtype=tl.float32)
    ids = tl.zeros((BLOCK_TOPK,), dtype=tl.int32)
    for j in range(0, top_k):
        best = tl.max(tl.max(choice, axis=1), axis=0)
        chosen = tl.min(tl.min(tl.where(choice == best, e, none), axis=1), axis=0)
        weight = tl.sum(tl.sum(tl.where(e == chosen, score, 0.0), axis=1), axis=0)
        weights = tl.where(slot == j, weight, weights)
        ids = tl.where(slot == j, chosen, ids)
        choice = tl.where(e == chosen, float("-inf"), choice)
    if RENORMALIZE:
        total = tl.sum(weights, axis=0)
        weights = weights / tl.where(total > 0.0, total, 1.0)
    tl.store(weights_ptr + t * top_k + slot, weights * factor, mask=slot < top_k)
    tl.store(ids_ptr + t * top_k + slot, ids, mask=slot < top_k)


def grouped_topk(
    logits: torch.Tensor,
    correction_bias: torch.Tensor | None,
    num_groups: int,
    topk_group: int,
    top_k: int,
    scoring: str,
    renormalize: bool,
    routed_scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each token's best groups of experts, then its k best experts inside them.

    s = softmax or sigmoid of logits[t];  c = s + correction_bias;  a group's score: its largest c, or under a bias the
    sum of its two largest;  ids = the k largest c of the topk_group best groups, lowest id first among equals;
    weights = s[ids], / sum(s[ids]) if renormalize, * routed_scaling_factor

    Args:
        logits: [T, E], bf16, fp16 or fp32; scores that are NaN count as 0.
        correction_bias: fp32 [E], contiguous and finite, or None.
        num_groups: divides E; a group is E / num_groups consecutive experts.
        topk_group: 1..num_groups.
        top_k: 1..topk_group * E / num_groups.
        scoring: "softmax" or "sigmoid".
        renormalize: divide by the sum of the k weights; a sum of 0 divides by 1.
        routed_scaling_factor: multiplies the weights, once.
    Returns:
        weights fp32 [T, k], ids int32 [T, k]; fp32 throughout, relative error of a few 2^-23.
    Raises:
        ValueError: an argument of another shape, or out of its range.
    Source: docs/formats.md section 3.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, must be [T, E]")
    T, E = logits.shape
    if num_groups < 1 or E % num_groups:
        raise ValueError(f"num_groups: got {num_groups}, must divide E = {E}")
    if not 1 <= topk_group <= num_groups:
        raise ValueError(f"topk_group: got {topk_group}, must be in 1..{num_groups}")
    size = E // num_groups
    if not 1 <= top_k <= topk_group * size:
        raise ValueError(f"top_k: got {top_k}, must be in 1..{topk_group * size}, the experts that are kept")
    if scoring not in ("softmax", "sigmoid"):
        raise ValueError(f"scoring: got {scoring!r}, must be softmax or sigmoid")
    if correction_bias is not None and correction_bias.shape != (E,):
        raise ValueError(f"correction_bias: got shape {tuple(correction_bias.shape)}, must be ({E},)")
    weights = torch.empty(T, top_k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(T, top_k, dtype=torch.int32, device=logits.device)
    if T:
        grouped_topk_kernel[(T,)](
            logits, logits if correction_bias is None else correction_bias, weights, ids, num_groups, size, topk_group,
            top_k, float(routed_scaling_factor), *logits.stride(), SIGMOID=scoring == "sigmoid",
            BIAS=correction_bias is not None, TWO=correction_bias is not None and size > 1,
            RENORMALIZE=bool(renormalize), BLOCK_G=pow2_at_least(num_groups), BLOCK_S=pow2_at_least(size),
            BLOCK_TOPK=pow2_at_least(top_k),
        )  # fmt: skip
    return weights, ids
