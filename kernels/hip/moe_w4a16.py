"""One W4A16 MoE layer for a few tokens from the HIP kernels, three ways.

decode      moe_gemv, silu_and_mul, moe_gemv, moe_sum: h, a, y and out are stored       contract wvsplitk
fused       moe_gemv, silu_and_mul, moe_gemm2_reduce: h, a and out                      megakernel, silu=rounded
fused_silu  moe_gemv, moe_gemm2_reduce with silu: h and out; a is rounded once, in LDS  megakernel
fused_sum   as fused_silu, codes left at 128 + u and corrected by 136 * sum(a); bf16    megakernel_sum
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.weight_args import weight_args
from moeracle.kernels.hip.common import (
    MOST_ROWS,
    ZERO_KNOB,
    Knobs,
    blocks_for,
    decode_defines,
    dtype_defines,
    group_shift,
    knobs_for,
    lds_bytes,
    result,
    run,
    weight_words,
)
from moeracle.kernels.hip.padded_gemm import padded_gemm
from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

Stages = dict[str, torch.Tensor]
ELEMENTWISE = {"WAVES": 4}
PARTIALS = 2048  # floats of LDS for the slots' partial sums, as in moe_gemm2_reduce.hip


def silu_and_mul(h: torch.Tensor) -> torch.Tensor:
    """Return silu of the first half of the columns times the second half.

    a = D(D(silu(h[:, :I])) * h[:, I:])

    Args:
        h: [R, 2I], bf16 or fp16; R may be 0.
    Returns:
        [R, I] in h's dtype, rounded twice.
    """
    R, I = h.shape[0], h.shape[1] // 2
    rows = h if h.stride(1) == 1 else h.contiguous()
    a = torch.empty(R, I, dtype=h.dtype, device=h.device)
    grid = (-(-(R * I) // (ELEMENTWISE["WAVES"] * 32)),)
    run("silu_and_mul", ELEMENTWISE | dtype_defines(h.dtype), grid, 0, rows, a, R, I, strides=(rows.stride(0),))
    return a


def moe_sum(y: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of each token's slots: fp32, in slot order, one cast; slots of -1 are left out.

    Args:
        y: [T*k, N], in slot order.
        topk_weights: fp32 [T, k].
        topk_ids: int [T, k].
    """
    (T, k), N = topk_ids.shape, y.shape[1]
    out = torch.empty(T, N, dtype=y.dtype, device=y.device)
    grid = (-(-(T * N) // (ELEMENTWISE["WAVES"] * 32)),)
    tensors = (y, topk_weights.float().contiguous(), topk_ids.to(torch.int32).contiguous(), out)
    run("moe_sum", ELEMENTWISE | dtype_defines(y.dtype), grid, 0, *tensors, T, k, N, strides=())
    return out


def gemm2_reduce(
    x: torch.Tensor,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    fuse_silu: bool = False,
    decode: str = "truncate",
    knobs: Knobs | None = None,
    store32: bool = False,
) -> torch.Tensor:
    """Multiply each slot's row by its expert, by its router weight, and add a token's slots, in one launch.

    out[t] = D(sum_j topk_weights[t, j] * (a[t*k + j] . ((u - z) * s)[e])),  a = D(silu(gate) * up) with fuse_silu

    Args:
        x: a [T*k, I], or with fuse_silu h [T*k, 2I], in slot order.
        w2: Int4Weight [E, H, I], exllama words; I at most 28672 (LDS).
        topk_weights: fp32 [T, k].  topk_ids: int [T, k], -1 for a slot that does nothing.
        fuse_silu, decode, knobs, store32: see the module and int4_linear.
    Returns:
        [T, H] in x's dtype; nothing is rounded to D between a and out.
    Raises:
        ValueError: a size the kernel refuses, or shapes or dtypes that do not fit.
    Source: the fused decode launch of github.com/ROCm/vllm/pull/908, as a description.
    """
    (T, k), I = topk_ids.shape, w2.packed.shape[-1] * 8
    if x.shape != (T * k, I * (2 if fuse_silu else 1)):
        raise ValueError(f"x: got shape {tuple(x.shape)}, must be [{T * k}, {I * (2 if fuse_silu else 1)}]")
    args = weight_args(w2, x[:, :I], experts=True, name="w2")
    chosen = knobs_for("moe_gemm2_reduce", 1, args.K, args.G, PARTIALS * 4) | (knobs or {})
    words, word_expert, word_stride = weight_words(args, chosen["A_CHUNK"])
    stripe = chosen["WAVES"] * chosen["YTILE"]
    stripes, capacity = -(-args.N // stripe), PARTIALS // (k * stripe)
    if capacity < 1:
        raise ValueError(f"topk_ids: got k = {k}, must be at most {PARTIALS // stripe}: partial sums are in LDS")
    blocks = max(blocks_for(args.N, stripe, x.device), -(-stripes // capacity))
    out = result((T, args.N), x, store32)
    ids, weights = topk_ids.to(torch.int32).contiguous(), topk_weights.float().contiguous()
    defines = chosen | {"ZERO": ZERO_KNOB[args.zero_kind], "FUSE_SILU": int(fuse_silu)}
    macros = defines | decode_defines(decode, x.dtype) | dtype_defines(x.dtype, store32)
    tensors = (x.contiguous(), words, args.scale, args.zero, ids, weights, out)
    sizes = (args.N, args.K, group_shift(args.G, args.K), blocks, k)
    strides = (word_expert, word_stride, *args.strides[3:])
    run("moe_gemm2_reduce", macros, (blocks, T), lds_bytes(1, args.K, chosen), *tensors, *sizes, strides=strides)
    return out


def _gemm1(
    x: torch.Tensor, w13: Int4Weight, topk_ids: torch.Tensor, decode: str | None = None, chunk: int = 0
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor], int]:
    """Return h, the blocks of slots and their size; chunk: A_CHUNK instead of the data file's."""
    if x.shape[0] > MOST_ROWS:
        raise ValueError(f"x: got {x.shape[0]} rows, must be 1 to {MOST_ROWS} (these are decode kernels)")
    E, (T, k) = w13.packed.shape[0], topk_ids.shape
    B = block_size_for(T, k, E)
    blocks = moe_align_block_size(topk_ids, B, E)
    knobs = {"A_CHUNK": chunk} if chunk else None
    return padded_gemm(x, w13, *blocks, None, k, block_size=B, decode=decode, knobs=knobs), blocks, B


def fused_chunk(I: int, G: int) -> int:
    """Return A_CHUNK of both GEMMs of a fused layer: its one contract has one schedule."""
    return knobs_for("moe_gemm2_reduce", 1, I, G, PARTIALS * 4)["A_CHUNK"]


def block_size_for(T: int, top_k: int, E: int) -> int:
    """Return B for a few tokens: 1 while an expert sees one row at most on average, else 2 or 4."""
    per_expert = T * top_k / max(E, 1)
    return 1 if per_expert <= 1 else 2 if per_expert <= 2 else 4


def decode_stages(
    x: torch.Tensor, w13: Int4Weight, w2: Int4Weight, topk_weights: torch.Tensor, topk_ids: torch.Tensor
) -> Stages:
    """Run the layer with every stage stored.

    Args:
        x: [T, H], bf16 or fp16; T in 0..5.
        w13, w2: Int4Weight [E, 2I, H] (gate rows first) and [E, H, I], exllama words.
        topk_weights: fp32 [T, k].  topk_ids: int [T, k], -1 for a slot that does nothing.
    Returns:
        h [T*k, 2I], a [T*k, I], y [T*k, H] in slot order, and out [T, H].
    """
    h, blocks, B = _gemm1(x, w13, topk_ids)
    a = silu_and_mul(h)
    y = padded_gemm(a, w2, *blocks, None, 1, block_size=B)
    return {"h": h, "a": a, "y": y, "out": moe_sum(y, topk_weights, topk_ids)}


def fused_stages(
    x: torch.Tensor, w13: Int4Weight, w2: Int4Weight, topk_weights: torch.Tensor, topk_ids: torch.Tensor
) -> Stages:
    """Run the layer with GEMM2, router weight and sum in one launch; arguments as decode_stages'; y is never stored."""
    h, _, _ = _gemm1(x, w13, topk_ids, chunk=fused_chunk(w2.K, w2.G))
    a = silu_and_mul(h)
    return {"h": h, "a": a, "out": gemm2_reduce(a, w2, topk_weights, topk_ids)}


def fused_silu_stages(
    x: torch.Tensor,
    w13: Int4Weight,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    decode: str = "truncate",
) -> Stages:
    """Run the layer in two launches, silu inside the second; arguments as decode_stages'; a and y are never stored.

    decode: of both GEMMs, as int4_linear's; "sum" is for bf16 alone.
    """
    h, _, _ = _gemm1(x, w13, topk_ids, decode, fused_chunk(w2.K, w2.G))
    return {"h": h, "out": gemm2_reduce(h, w2, topk_weights, topk_ids, fuse_silu=True, decode=decode)}
