"""The HIP GEMMs on sorted slot ids: moe_gemv for blocks of 1 to 5 (decode), moe_wmma for multiples of 16 (prefill)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.block_size import infer_block_size
from moeracle.kernels.common.weight_args import weight_args
from moeracle.kernels.hip.common import (
    ZERO_KNOB,
    Knobs,
    aligned_rows,
    blocks_for,
    decode_defines,
    dtype_defines,
    group_shift,
    knobs_for,
    lds_bytes,
    run,
    weight_words,
)

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

WMMA_ROWS = 16


def padded_gemm(
    x: torch.Tensor,
    w: Int4Weight,
    sorted_token_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_tokens_post_padded: torch.Tensor,
    topk_weights: torch.Tensor | None,
    top_k: int,
    *,
    block_size: int | None = None,
    decode: str | None = None,
    knobs: Knobs | None = None,
    out: torch.Tensor | None = None,
    store32: bool = False,
) -> torch.Tensor:
    """Multiply virtually gathered rows by their block's expert.

    C[id] = D(x[id // top_k] . ((u - z) * s)[e] (* topk_weights.flatten()[id])), for ids below T*top_k

    Args:
        x: [T, K], bf16 or fp16; T may be 0.
        w: Int4Weight [E, N, K], layout exllama; symmetric, or zero layout rdna or unpacked; G a power of two or K, a
            multiple of A_CHUNK (decode) or of 32 (prefill).
        sorted_token_ids: int32 [S]; ids outside 0..T*top_k-1 are padding.
        expert_ids: int32, one a block; the kernel writes zeros to the rows of an expert of -1.
        num_tokens_post_padded: int32 [1]; blocks that start at or after it are skipped.
        topk_weights: fp32 [T, top_k], multiplied in fp32 before the store; or None.
        top_k: ids that share a row of x; 1 for GEMM2.
        block_size: B, 1 to 5 or a multiple of 16; None infers it from the lengths.
        decode: as int4_linear's; None takes "truncate", and "sum" for bf16 on matrix instructions.
        knobs: template knobs instead of hip/source/knobs.json's.
        out: [T*top_k, N] to write into, x's dtype or fp32, rows of no block left as they are; None starts from zeros.
        store32: return the fp32 sums, unrounded.
    Returns:
        [T*top_k, N] in x's dtype; fp32 sums (B up to 5: fma/lanes32x<A_CHUNK>/fused; else by groups), one rounding.
    Raises:
        ValueError: a size that no kernel takes, another layout, or shapes or dtypes that do not fit.
        ToolchainError: no compiler for the device, or the kernel does not compile.
    Source: docs/formats.md section 3, the kernel's row rule; github.com/ROCm/vllm/pull/908.
    """
    R, S = x.shape[0] * top_k, sorted_token_ids.numel()
    args = weight_args(w, x, experts=True)
    if topk_weights is not None and topk_weights.numel() != R:
        raise ValueError(f"topk_weights: got shape {tuple(topk_weights.shape)}, must hold T*top_k = {R} weights")
    y = torch.zeros(R, args.N, dtype=torch.float32 if store32 else x.dtype, device=x.device) if out is None else out
    if y.shape != (R, args.N) or not y.is_contiguous() or y.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"out: got {y.dtype} {tuple(y.shape)}, must be contiguous {x.dtype} or fp32 [{R}, {args.N}]")
    if R == 0 or expert_ids.numel() == 0:
        return y
    B = block_size or infer_block_size(S, expert_ids.numel(), R, args.E, num_tokens_post_padded)
    prefill = B % WMMA_ROWS == 0
    kernel = "moe_wmma" if prefill else "moe_gemv"
    chosen = knobs_for(kernel, WMMA_ROWS if prefill else B, args.K, args.G) | (knobs or {})
    words, word_expert, word_stride = weight_words(args, chosen.get("A_CHUNK", 32))
    rows = aligned_rows(x)
    if prefill:
        width = chosen["WAVES"] * chosen["NTILES"] * 16
        grid, shared, own = (-(-args.N // width), -(-S // WMMA_ROWS)), 0, B
    else:
        blocks = blocks_for(args.N, chosen["WAVES"] * chosen["YTILE"], x.device)
        grid, shared, own = (blocks, expert_ids.numel()), lds_bytes(B, args.K, chosen), blocks
        chosen["ROWS"] = B
    way = decode or ("sum" if prefill and x.dtype == torch.bfloat16 else "truncate")
    defines = (
        chosen
        | {"ZERO": ZERO_KNOB[args.zero_kind]}
        | decode_defines(way, x.dtype)
        | dtype_defines(x.dtype, y.dtype == torch.float32)
    )
    weights = x if topk_weights is None else topk_weights.to(torch.float32).contiguous()
    ids = (sorted_token_ids.contiguous(), expert_ids.contiguous(), num_tokens_post_padded)
    sizes = (int(topk_weights is not None), args.N, args.K, group_shift(args.G, args.K), own, R, S, top_k)
    strides = (rows.stride(0), word_expert, word_stride, *args.strides[3:])
    tensors = (rows, words, args.scale, args.zero, *ids, weights, y)
    run(kernel, defines, grid, shared, *tensors, *sizes, strides=strides)
    return y
