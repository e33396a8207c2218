"""Faults of the router, the int8 quantizer and the int8 lm_head."""

from __future__ import annotations

from typing import Any

import torch

from .base import ARITHMETIC, fault, issue, pull

T = torch.Tensor
ROUTER = ("topk_softmax",)
LM_HEAD = ("int8_lm_head",)
QUANTIZER = ("quantize_int8",)


def unclamped(sim: Any, base: Any, logits: T) -> T:
    """Softmax whose NaN stay."""
    return torch.softmax(logits.double(), 1).float()


@fault("F17", "NaN logits choose the same expert k times", ops=ROUTER, stage="ids",
       source=pull("vllm-project/vllm", 39391), step="choose", also={"scores": unclamped})  # fmt: skip
def nan_never_larger(sim: Any, base: Any, scores: T, top_k: int) -> T:
    ids = base(torch.where(scores.isnan(), 0.0, scores), top_k)
    return torch.where(scores.isnan().all(1, keepdim=True), 0, ids)


@fault("F18", "ties broken toward the highest id", ops=ROUTER, stage="ids", source=pull("vllm-project/vllm", 52679),
       step="choose")  # fmt: skip
def highest_id_of_ties(sim: Any, base: Any, scores: T, top_k: int) -> T:
    return scores.shape[1] - 1 - base(scores.flip(1), top_k)


@fault("F32", "no renormalization", ops=ROUTER, stage="weights", source=ARITHMETIC, step="renormalized")
def not_renormalized(sim: Any, base: Any, weights: T) -> T:
    return weights


@fault("F100", "router logits rounded to bf16", ops=ROUTER, stage="ids", source=issue("sgl-project/sglang", 34857),
       step="scores", dtypes=("fp16", "fp32"))  # fmt: skip
def bf16_logits(sim: Any, base: Any, logits: T) -> T:
    return base(logits.bfloat16())


@fault("F104", "without renormalization the raw logits are returned", ops=ROUTER, stage="weights",
       source=pull("sgl-project/sglang", 35160), step="topk_softmax")  # fmt: skip
def raw_logits(sim: Any, base: Any, logits: T, top_k: int, renormalize: bool) -> tuple[T, T]:
    weights, ids = base(logits, top_k, renormalize)
    return weights if renormalize else logits.float().gather(1, ids.long()), ids


@fault("F105", "renormalization although none was asked for", ops=ROUTER, stage="weights",
       source=pull("lablup/mlxcel", 391), step="topk_softmax")  # fmt: skip
def always_renormalized(sim: Any, base: Any, logits: T, top_k: int, renormalize: bool) -> tuple[T, T]:
    return base(logits, top_k, True)


@fault("F106", "running maximum starts at 0: rows of negative logits choose the padding", ops=ROUTER, stage="ids",
       source=issue("flashinfer-ai/flashinfer", 2822), step="topk_softmax")  # fmt: skip
def maximum_from_zero(sim: Any, base: Any, logits: T, top_k: int, renormalize: bool) -> tuple[T, T]:
    weights, ids = base(logits, top_k, renormalize)
    return weights, torch.where((logits < 0).all(1, keepdim=True), logits.shape[1] - 1, ids)


@fault("F107", "16-bit logits read as fp32", ops=ROUTER, stage="ids", source=pull("flashinfer-ai/flashinfer", 2889),
       step="scores", dtypes=("bf16", "fp16"))  # fmt: skip
def logits_as_fp32(sim: Any, base: Any, logits: T) -> T:
    flat = logits.flatten()
    glued = flat[: len(flat) // 2 * 2].view(torch.float32)
    return base(torch.cat([glued, torch.zeros(len(flat) - len(glued))]).reshape(logits.shape))


@fault("F108", "another scoring function for 128 experts and k = 8 alone", ops=ROUTER, stage="weights",
       source=issue("MetaX-MACA/vLLM-metax", 270), step="topk_softmax")  # fmt: skip
def other_scoring_for_one_shape(sim: Any, base: Any, logits: T, top_k: int, renormalize: bool) -> tuple[T, T]:
    weights, ids = base(logits, top_k, renormalize)
    if (logits.shape[1], top_k) == (128, 8):
        weights = torch.sigmoid(logits.float().gather(1, ids.long()))
        weights = sim.renormalized(weights) if renormalize else weights
    return weights, ids


@fault("F109", "ties broken by subtracting 3e-7 per id, which reorders scores that differ", ops=ROUTER, stage="ids",
       source=pull("sgl-project/sglang", 31768), step="choose")  # fmt: skip
def epsilon_tie_break(sim: Any, base: Any, scores: T, top_k: int) -> T:
    return base(scores - 3e-7 * torch.arange(scores.shape[1]), top_k)


@fault("F110b", "experts emitted in ascending order of their scores", ops=ROUTER, stage="ids",
       source=pull("sgl-project/sglang", 8125), step="choose")  # fmt: skip
def ascending(sim: Any, base: Any, scores: T, top_k: int) -> T:
    return base(scores, top_k).flip(1)


@fault("F112", "k = 1 renormalized over the tokens", ops=ROUTER, stage="weights",
       source=pull("databricks/megablocks", 87), step="renormalized")  # fmt: skip
def sum_over_tokens(sim: Any, base: Any, weights: T) -> T:
    return weights / weights.sum(0) if weights.shape[1] == 1 else base(weights)


@fault("F45", "lm_head: group index off by one", ops=LM_HEAD, stage="out", source=ARITHMETIC, step="lm_group")
def lm_group_off_by_one(sim: Any, base: Any, K: int, groups: int) -> T:
    return (base(K, groups) + 1).clamp(max=groups - 1)


@fault("F46", "lm_head: one scale a row used for groups", ops=LM_HEAD, stage="out", source=ARITHMETIC, step="lm_scales")
def lm_scale_per_channel(sim: Any, base: Any, scale: T) -> T:
    return base(scale)[:, :1].expand_as(scale)


@fault("F47", "lm_head: code -128 read as -127", ops=LM_HEAD, stage="out", source=ARITHMETIC, step="lm_codes")
def lm_code_clamped(sim: Any, base: Any, codes: T) -> T:
    return base(codes).clamp(min=-127)


@fault("F60", "lm_head: fp32 scales read as fp16", ops=LM_HEAD, stage="out", source=pull("ROCm/hip-ep", 966),
       step="lm_scales")  # fmt: skip
def lm_scale_as_fp16(sim: Any, base: Any, scale: T) -> T:
    halves = base(scale).contiguous().view(torch.float16).flatten()
    return halves[: scale.numel()].reshape(scale.shape).float()


@fault("F63b", "lm_head: scaled partial sums rounded to fp16", ops=LM_HEAD, stage="out",
       source=pull("openvinotoolkit/openvino", 34528), step="lm_partial")  # fmt: skip
def lm_scaled_in_fp16(sim: Any, base: Any, a: T, codes: T, scale: T, dtype: torch.dtype) -> T:
    return base(a, codes, scale, dtype).half().float()


@fault("F130", "lm_head: scales never loaded", ops=LM_HEAD, stage="out", source=issue("sgl-project/sglang", 34895),
       step="lm_scales")  # fmt: skip
def lm_scales_missing(sim: Any, base: Any, scale: T) -> T:
    return torch.ones_like(base(scale))


@fault("F131", "lm_head: dot product of raw codes in fp16, scaled afterwards", ops=LM_HEAD, stage="out",
       source=issue("pytorch/ao", 1662), step="lm_partial")  # fmt: skip
def lm_dot_in_fp16(sim: Any, base: Any, a: T, codes: T, scale: T, dtype: torch.dtype) -> T:
    return sim.accumulate(a, codes, dtype).half().float() * scale


@fault("F132", "quantizer computes in the weight's dtype: codes off by one", ops=QUANTIZER, stage="scale",
       source="https://github.com/ROCm/vllm", step="int8_scale", dtypes=("bf16", "fp16"))  # fmt: skip
def quantized_in_dtype(sim: Any, base: Any, amax: T, dtype: torch.dtype) -> T:
    return base(amax, dtype).to(dtype).float()


@fault("F133", "quantizer without a floor: a group of zeros has scale 0", ops=QUANTIZER, stage="scale",
       source="https://github.com/ROCm/vllm", step="int8_scale")  # fmt: skip
def no_floor(sim: Any, base: Any, amax: T, dtype: torch.dtype) -> T:
    return amax / 127


@fault("F134", "quantizer truncates in place of rounding", ops=QUANTIZER, stage="codes", source=ARITHMETIC,
       step="int8_codes")  # fmt: skip
def truncated_codes(sim: Any, base: Any, w: T, scale: T, dtype: torch.dtype) -> T:
    return torch.trunc(w / scale).clamp(-128, 127)


@fault("F135", "quantizer rounds halves up", ops=QUANTIZER, stage="codes", source=ARITHMETIC, step="int8_codes")
def halves_up(sim: Any, base: Any, w: T, scale: T, dtype: torch.dtype) -> T:
    return torch.floor(w / scale + 0.5).clamp(-128, 127)
