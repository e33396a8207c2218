"""The end of a layer whose rows lie in slot order: each token's k rows, weighted, in slot order."""

from __future__ import annotations

import torch

from moeracle.kernels.triton.tiles import elements_per_program, pow2_at_least
from moeracle.kernels.triton.triton_import import tl, triton


@triton.jit
def moe_sum_kernel(
    y_ptr, weights_ptr, ids_ptr, out_ptr, H, stride_y, LAUNCH: tl.constexpr, TOP_K: tl.constexpr,
    TOP_K_POW2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK columns of one token. LAUNCH: start before the kernel ahead has ended."""
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slots = tl.arange(0, TOP_K_POW2)
    # Neither is a result of the GEMM before us, so both are here when it ends.
    ids = tl.load(ids_ptr + t * TOP_K + slots, mask=slots < TOP_K, other=-1)
    weights = tl.load(weights_ptr + t * TOP_K + slots, mask=slots < TOP_K, other=0.0)
    if LAUNCH:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for j in tl.static_range(TOP_K):
        used = (column * 0 + tl.sum(tl.where((slots == j) & (ids >= 0), 1, 0), axis=0)) > 0
        weight = tl.sum(tl.where(slots == j, weights, 0.0), axis=0)
        y = tl.load(y_ptr + (t * TOP_K + j) * stride_y + column, mask=(column < H) & used, other=0.0).to(tl.float32)
        acc += tl.where(used, weight, 0.0) * y
    tl.store(out_ptr + t * H + column, acc.to(out_ptr.dtype.element_ty), mask=column < H)


def moe_sum(
    y: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, *, programmatic: bool = False
) -> torch.Tensor:
    """Add up each token's expert rows.

    out[t] = D(sum_j topk_weights[t, j] * y[t*k + j]) over slots j with topk_ids[t, j] >= 0, in fp32, j = 0, 1, …, k-1

    Args:
        y: [T*k, H], bf16 or fp16, in slot order, unit column stride; rows of ignored slots are not read.
        topk_weights: fp32 [T, k].
        topk_ids: int [T, k]; -1 for a slot that does nothing.
        programmatic: launch before the kernel ahead of this one has ended (compute capability 9.0).
    Returns:
        [T, H] in y's dtype; fp32 products and sums (fused on a GPU), one rounding.
    Raises:
        ValueError: shapes do not fit together.
    Source: docs/formats.md section 3, moe_unpermute without its permutation.
    """
    T, top_k = topk_weights.shape
    if y.ndim != 2 or y.shape[0] != T * top_k or y.stride(1) != 1:
        raise ValueError(f"y: got shape {tuple(y.shape)}, must be [T*k = {T * top_k}, H] with unit column stride")
    if topk_ids.shape != topk_weights.shape:
        raise ValueError(f"topk_ids: got shape {tuple(topk_ids.shape)}, must be [{T}, {top_k}]")
    H = y.shape[1]
    out = torch.empty(T, H, dtype=y.dtype, device=y.device)
    if out.numel():
        weights, ids = topk_weights.to(torch.float32).contiguous(), topk_ids.contiguous()
        # They are read before the kernel ahead has ended: not if it is the one that makes them.
        programmatic = programmatic and weights is topk_weights and ids is topk_ids
        few = 256 if T <= 32 else 2048  # columns a program: few tokens need more programs
        block = pow2_at_least(min(H, few if y.is_cuda else elements_per_program(y)))
        options = {"launch_pdl": True} if programmatic else {}
        moe_sum_kernel[(T, triton.cdiv(H, block))](
            y, weights, ids, out, H, y.stride(0), LAUNCH=programmatic, TOP_K=top_k, TOP_K_POW2=pow2_at_least(top_k),
            BLOCK=block, num_warps=max(1, min(8, block // 256)), **options,
        )  # fmt: skip
    return out
