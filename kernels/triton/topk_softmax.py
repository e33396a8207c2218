"""Softmax over all experts, then the k most probable ones, lowest id first among equals."""

from __future__ import annotations

import torch

from moeracle.kernels.triton.tiles import pow2_at_least
from moeracle.kernels.triton.triton_import import tl, triton


@triton.jit
def choose(
    logits_ptr, t, T, E, top_k, stride_t, stride_e, RENORMALIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E:
    tl.constexpr, BLOCK_TOPK: tl.constexpr,
):  # fmt: skip
    """Return tokens t's weights and ids [BLOCK_T, BLOCK_TOPK], and which experts they are, bool [BLOCK_T, BLOCK_E].

    t is int64 [BLOCK_T]. Slots from top_k on hold 0; tokens from T on choose something, too.
    """
    e = tl.arange(0, BLOCK_E)
    slot = tl.arange(0, BLOCK_TOPK)
    mask = (t < T)[:, None] & (e < E)[None, :]
    logits = tl.load(logits_ptr + t[:, None] * stride_t + e[None, :] * stride_e, mask=mask, other=float("-inf"))
    logits = logits.to(tl.float32)
    score = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    score = score / tl.sum(score, axis=1)[:, None]
    # A row with NaN, +inf or nothing but -inf has NaN scores; as zeros they choose ids 0..k-1 and nothing twice.
    # Lanes beyond E score 0 and lose every tie, since the lowest id wins and k <= E.
    score = tl.where((score >= 0.0) & (score <= 1.0), score, 0.0)
    weights = tl.zeros((BLOCK_T, BLOCK_TOPK), dtype=tl.float32)
    ids = tl.zeros((BLOCK_T, BLOCK_TOPK), dtype=tl.int32)
    total = tl.zeros((BLOCK_T,), dtype=tl.float32)
    for j in range(0, top_k):
        best = tl.max(score, axis=1)
        chosen = tl.min(tl.where(score == best[:, None], e[None, :], BLOCK_E), axis=1)
        weights = tl.where((slot == j)[None, :], best[:, None], weights)
        ids = tl.where((slot == j)[None, :], chosen[:, None], ids)
        total += best
        score = tl.where(e[None, :] == chosen[:, None], -1.0, score)
    if RENORMALIZE:
        weights = weights / tl.where(total > 0.0, total, 1.0)[:, None]
    return weights, ids, score < 0.0


@triton.jit
def store_choice(weights_ptr, ids_ptr, weights, ids, t, T, top_k, BLOCK_TOPK: tl.constexpr):
    """Store what `choose` returned, to [T, k]."""
    slot = tl.arange(0, BLOCK_TOPK)
    mask = (t < T)[:, None] & (slot < top_k)[None, :]
    tl.store(weights_ptr + t[:, None] * top_k + slot[None, :], weights, mask=mask)
    tl.store(ids_ptr + t[:, None] * top_k + slot[None, :], ids, mask=mask)


@triton.jit
def topk_softmax_kernel(
    logits_ptr, weights_ptr, ids_ptr, T, E, top_k, stride_t, stride_e, RENORMALIZE: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_TOPK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_T tokens."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    weights, ids, _ = choose(logits_ptr, t, T, E, top_k, stride_t, stride_e, RENORMALIZE, BLOCK_T, BLOCK_E, BLOCK_TOPK)
    store_choice(weights_ptr, ids_ptr, weights, ids, t, T, top_k, BLOCK_TOPK)


def topk_softmax(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each token's k most probable experts.

    s = softmax(logits[t]);  ids = the k largest s, descending, lowest id first among equals;  weights = s[ids]

    Args:
        logits: [T, E], bf16, fp16 or fp32; a row with NaN or +inf gives ids 0..k-1 and weights 0.
        top_k: 1..E.
        renormalize: divide by the sum of the k weights, in slot order; a sum of 0 divides by 1.
    Returns:
        weights fp32 [T, k], ids int32 [T, k]; fp32 throughout, relative error of a few 2^-23.
    Raises:
        ValueError: logits is not [T, E], or top_k is outside 1..E.
    Source: docs/formats.md section 3.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, must be [T, E]")
    T, E = logits.shape
    if not 1 <= top_k <= E:
        raise ValueError(f"top_k: got {top_k}, must be in 1..{E}")
    weights = torch.empty(T, top_k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(T, top_k, dtype=torch.int32, device=logits.device)
    block_t = 4 if logits.device.type == "cuda" else 64
    if T:
        topk_softmax_kernel[(triton.cdiv(T, block_t),)](
            logits, weights, ids, T, E, top_k, *logits.stride(), RENORMALIZE=bool(renormalize), BLOCK_T=block_t,
            BLOCK_E=pow2_at_least(E), BLOCK_TOPK=pow2_at_least(top_k),
        )  # fmt: skip
    return weights, ids
