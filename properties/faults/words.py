"""Faults of weights that are more than a layout: act-order, short groups, other scales, biases, codes of 8 bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from moeracle.ref.weights.layouts import unpack_int4

from ..simulate.weights import one
from .base import ARITHMETIC, ASYMMETRIC, PACKED, ROUTED, SCALED, fault, pull

T = torch.Tensor


@fault("F240", "act-order ignored: column k takes the scale and the zero point of group k // G", ops=SCALED, stage="h",
       source=ARITHMETIC, step="columns", weights=("act",))  # fmt: skip
def order_ignored(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return torch.arange(w.K) // w.G


@fault("F241", "act-order: every expert's columns take the groups of the first one's", ops=ROUTED, stage="h",
       source=ARITHMETIC, step="columns", weights=("act",))  # fmt: skip
def order_of_first_expert(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, 0, which)


@fault("F242", "a short last group takes the scale of the group before it", ops=SCALED, stage="h",
       source=ARITHMETIC, step="scale_group", weights=("short",))  # fmt: skip
def short_group_takes_the_one_before(sim: Any, base: Any, K: int, G: int, which: str) -> T:
    return base(K, G, which).clamp(max=max(0, K // G - 1))


@fault("F243", "zero points read one too high: those of GPTQ v2, or of another format, as v1's", ops=SCALED, stage="h",
       source=pull("vllm-project/vllm", 38966), step="zeros", zeros=ASYMMETRIC)  # fmt: skip
def zero_point_one_too_high(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which) + 1


@fault("F244", "words that are stored K first read as if N came first", ops=PACKED, stage="h",
       source=ARITHMETIC, step="codes", layout="exllama_k")  # fmt: skip
def rows_and_columns_of_words(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    packed = one(w, e).packed
    return unpack_int4(packed.contiguous().reshape(packed.mT.shape), "exllama")


@fault("F245", "scales of the other 16-bit type read bit by bit as the activations' type", ops=SCALED, stage="h",
       source=ARITHMETIC, step="load", weights=("scale16",))  # fmt: skip
def scales_of_another_type(sim: Any, base: Any, w: Any, e: int | None, dtype: torch.dtype, which: str) -> Any:
    return base(replace(w, scale=w.scale.contiguous().view(dtype)), e, dtype, which)


@fault("F246", "bias of the first expert added to every expert's rows", ops=ROUTED, stage="h",
       source=ARITHMETIC, step="expert_bias", weights=("bias",))  # fmt: skip
def bias_of_first_expert(sim: Any, base: Any, w: Any, e: int, which: str) -> T:
    return base(w, 0, which)


@fault("F247", "biases of experts left out", ops=ROUTED, stage="h",
       source=ARITHMETIC, step="expert_bias", weights=("bias",))  # fmt: skip
def bias_of_experts_left_out(sim: Any, base: Any, w: Any, e: int, which: str) -> T:
    return torch.zeros_like(base(w, e, which))


@fault("F248", "8-bit codes cut to their low four bits", ops=PACKED, stage="h",
       source=ARITHMETIC, step="codes", weights=("w8",))  # fmt: skip
def codes_cut_to_nibbles(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which) & 15


@fault("F249", "int4's zero point 8 subtracted from 8-bit codes in place of 128", ops=SCALED, stage="h",
       source=ARITHMETIC, step="zeros", zeros=("sym",), weights=("w8",))  # fmt: skip
def middle_of_nibbles(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return torch.full_like(base(w, e, which), 8.0)


@fault("F259", "signed bytes read as unsigned codes: the top bit is the wrong way round", ops=PACKED, stage="h",
       source=ARITHMETIC, step="codes", layout="int8", weights=("w8",))  # fmt: skip
def signed_bytes_as_codes(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which) ^ 128
