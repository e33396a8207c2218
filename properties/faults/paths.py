"""Faults of one path among several, and of the small ops: a case that takes another path does not show them."""

from __future__ import annotations

from typing import Any

import torch

from .base import ARITHMETIC, GEMMS, PACKED, fault, only_before_dot, only_stored_rne, pull
from .moe import ACTIVATED, only_silu
from .routing import LM_HEAD, QUANTIZER, ROUTER

T = torch.Tensor
BIASED = ("int4_linear", "int8_lm_head")


@fault("F175", "nibbles read as two's complement of what was stored", ops=PACKED, stage="h", source=ARITHMETIC,
       step="codes")  # fmt: skip
def twos_complement(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which) ^ 8


@fault("F176", "bits of every nibble reversed", ops=PACKED, stage="h", source=ARITHMETIC, step="codes")
def reversed_bits(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    u = base(w, e, which)
    return (u & 1) << 3 | (u & 2) << 1 | (u & 4) >> 1 | (u & 8) >> 3


@fault("F177", "bias of the first column added to all of them", ops=BIASED, stage="out", source=ARITHMETIC, step="bias")
def first_bias(sim: Any, base: Any, acc: T, bias: T) -> T:
    return base(acc, bias[:1].expand_as(bias))


@fault("F178", "bias left out", ops=BIASED, stage="out", source=ARITHMETIC, step="bias")
def no_bias(sim: Any, base: Any, acc: T, bias: T) -> T:
    return acc


@fault("F179", "bias added after the sum was rounded, which is rounded again", ops=BIASED, stage="out",
       source=ARITHMETIC, step="bias", dtypes=("bf16",))  # fmt: skip
def bias_after_store(sim: Any, base: Any, acc: T, bias: T) -> T:
    return base(acc.to(bias.dtype).float(), bias)


@fault("F180", "gate clamped at 7, another model's limit", ops=ACTIVATED, stage="a", source=ARITHMETIC, step="halves",
       not_under=only_silu)  # fmt: skip
def clamped_gate(sim: Any, base: Any, h: T) -> tuple[T, T]:
    gate, up = base(h)
    return gate.clamp(max=7.0), up


@fault("F181", "exponential of silu in fp16: it overflows at 11", ops=ACTIVATED, stage="a", source=ARITHMETIC,
       step="silu")  # fmt: skip
def silu_in_fp16(sim: Any, base: Any, gate: T) -> T:
    return gate / (1 + torch.exp(-gate).half().float())


@fault("F182", "gate and up swapped in the last 16 columns", ops=ACTIVATED, stage="a", source=ARITHMETIC,
       step="halves")  # fmt: skip
def swapped_tail(sim: Any, base: Any, h: T) -> tuple[T, T]:
    gate, up = base(h)
    last = torch.arange(gate.shape[1]) >= gate.shape[1] - 16
    return torch.where(last, up, gate), torch.where(last, gate, up)


@fault("F183", "relu in place of silu", ops=ACTIVATED, stage="a", source=ARITHMETIC, step="silu", not_under=only_silu)
def relu(sim: Any, base: Any, gate: T) -> T:
    return gate.clamp(min=0)


@fault("F184", "up left out: silu of the gate alone", ops=ACTIVATED, stage="a", source=ARITHMETIC, step="product")
def no_up(sim: Any, base: Any, silu: T, up: T, dtype: torch.dtype) -> T:
    return silu


@fault("F185", "softmax without the largest logit subtracted: it overflows", ops=ROUTER, stage="ids",
       source=ARITHMETIC, step="scores")  # fmt: skip
def softmax_overflows(sim: Any, base: Any, logits: T) -> T:
    powers = torch.exp(logits.float())
    scores = powers / powers.sum(1, keepdim=True)
    return torch.where(scores.isfinite(), scores, 0.0)


@fault("F186", "experts chosen by the size of a logit, its sign forgotten", ops=ROUTER, stage="ids", source=ARITHMETIC,
       step="scores")  # fmt: skip
def signless(sim: Any, base: Any, logits: T) -> T:
    return base(logits.abs())


@fault("F187", "ids in ascending order beside weights in descending order", ops=ROUTER, stage="ids", source=ARITHMETIC,
       step="topk_softmax")  # fmt: skip
def ids_sorted(sim: Any, base: Any, logits: T, top_k: int, renormalize: bool) -> tuple[T, T]:
    weights, ids = base(logits, top_k, renormalize)
    return weights, ids.sort(1).values


@fault("F188", "renormalized by the largest weight in place of their sum", ops=ROUTER, stage="weights",
       source=ARITHMETIC, step="renormalized")  # fmt: skip
def by_the_largest(sim: Any, base: Any, weights: T) -> T:
    return weights / weights.amax(1, keepdim=True).clamp(min=1e-30)


@fault("F189", "experts past the last whole 32 never chosen", ops=ROUTER, stage="ids", source=ARITHMETIC, step="scores")
def whole_warps(sim: Any, base: Any, logits: T) -> T:
    scores = base(logits).clone()
    E = scores.shape[1]
    if E > 32:
        scores[:, E // 32 * 32 :] = 0
    return scores


@fault("F190", "quantizer divides by 128 in place of 127", ops=QUANTIZER, stage="scale", source=ARITHMETIC,
       step="int8_scale")  # fmt: skip
def by_128(sim: Any, base: Any, amax: T, dtype: torch.dtype) -> T:
    return base(amax, dtype) * (127 / 128)


@fault("F191", "quantizer forgets negative weights in the largest of a group", ops=QUANTIZER, stage="codes",
       source=ARITHMETIC, step="int8_codes")  # fmt: skip
def negative_clamped(sim: Any, base: Any, w: T, scale: T, dtype: torch.dtype) -> T:
    return base(w, scale, dtype).clamp(min=-100)


@fault("F192", "lm_head: codes read as unsigned", ops=LM_HEAD, stage="out", source=ARITHMETIC, step="lm_codes")
def unsigned_codes(sim: Any, base: Any, codes: T) -> T:
    codes = base(codes)
    return torch.where(codes < 0, codes + 256, codes)


@fault("F193", "lm_head: scales of the next row", ops=LM_HEAD, stage="out", source=ARITHMETIC, step="lm_scales")
def next_rows_scales(sim: Any, base: Any, scale: T) -> T:
    return base(scale).roll(-1, 0)


@fault("F194", "stores round halves away from zero in place of to even", stage="out", source=ARITHMETIC, step="store",
       ops=("int4_linear", "silu_and_mul", "moe_unpermute", "int8_lm_head"), dtypes=("bf16",),
       not_under=only_stored_rne)  # fmt: skip
def halves_away(sim: Any, base: Any, value: T, dtype: torch.dtype, stage: str) -> T:
    if stage not in sim.contract.stores:
        return base(value, dtype, stage)
    return ((value.float().contiguous().view(torch.int32) + 0x8000) & ~0xFFFF).view(torch.float32).to(dtype)


@fault("F195", "weights formed in fp16 for bf16 activations", ops=GEMMS, stage="h",
       source=pull("vllm-project/vllm", 34577), step="cast", dtypes=("bf16",), not_under=only_before_dot)  # fmt: skip
def weights_in_fp16(sim: Any, base: Any, values: T, dtype: torch.dtype) -> T:
    return base(values.half().float(), dtype)


@fault("F196", "every second row tile reads the first one's rows", ops=GEMMS, stage="h", source=ARITHMETIC,
       step="operand")  # fmt: skip
def rows_of_the_first_tile(sim: Any, base: Any, a: T, which: str) -> T:
    a = base(a, which)
    row = torch.arange(len(a))
    return a[torch.where(row // 4 % 2 == 1, row - 4, row)]
