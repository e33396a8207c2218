"""Sum each token's k expert rows, weighted, in slot order: the end of the layer."""

from __future__ import annotations

import torch

from moeracle.kernels.triton.tiles import elements_per_program
from moeracle.kernels.triton.triton_import import tl, triton


@triton.jit
def unpermute_kernel(y_ptr, weights_ptr, inv_ptr, out_ptr, total, H, top_k, stride_ym, stride_yn, BLOCK: tl.constexpr):
    """One program: BLOCK consecutive elements of out [T, H]."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    t = i // H
    column = i % H
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for j in range(0, top_k):
        row = tl.load(inv_ptr + t * top_k + j, mask=mask, other=0).to(tl.int64)
        y = tl.load(y_ptr + row * stride_ym + column * stride_yn, mask=mask, other=0.0).to(tl.float32)
        acc += tl.load(weights_ptr + t * top_k + j, mask=mask, other=0.0) * y
    tl.store(out_ptr + i, acc.to(out_ptr.dtype.element_ty), mask=mask)


def moe_unpermute(y: torch.Tensor, topk_weights: torch.Tensor, inv: torch.Tensor) -> torch.Tensor:
    """Bring expert rows back to their tokens and add them up.

    out[t] = D(sum_j topk_weights[t, j] * y[inv[t*k + j]]), in fp32, j = 0, 1, …, k-1 in this order

    Args:
        y: [T*k, H], bf16 or fp16, in permuted order, any strides. Rows of ignored slots must be 0, as grouped_gemm
            leaves them; they are read.
        topk_weights: fp32 [T, k].
        inv: int [T*k], inv[slot] = row; values 0..T*k-1.
    Returns:
        [T, H] in y's dtype; fp32 products and sums (fused on a GPU), one rounding.
    Raises:
        ValueError: y or inv does not have T*k rows.
    Source: docs/formats.md section 3.
    """
    T, top_k = topk_weights.shape
    R, H = y.shape
    if T * top_k != R:
        raise ValueError(f"y: got shape {tuple(y.shape)}, must have T*k = {T * top_k} rows")
    if inv.shape != (R,):
        raise ValueError(f"inv: got shape {tuple(inv.shape)}, must be [{R}]")
    out = torch.empty(T, H, dtype=y.dtype, device=y.device)
    if out.numel():
        block = elements_per_program(out)
        weights = topk_weights.to(torch.float32).contiguous()
        grid = (triton.cdiv(out.numel(), block),)
        unpermute_kernel[grid](y, weights, inv.contiguous(), out, out.numel(), H, top_k, *y.stride(), BLOCK=block)
    return out
