"""x·w for a weight with a single output, optionally through a sigmoid: what a shared expert's gate is made of."""

from __future__ import annotations

import torch

from moeracle.kernels.triton.tiles import pow2_at_least
from moeracle.kernels.triton.triton_import import tl, triton


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)) in fp32; 0 where exp(-x) overflows."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def row_sums(x_ptr, w_ptr, rows, mask, K, stride_xm, stride_xk, stride_w, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return sum_k x[rows, k] * w[k] in fp32, [BLOCK_M]; rows is int64, 0 outside mask."""
    acc = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + rows[:, None] * stride_xm + k[None, :] * stride_xk, mask=mask[:, None] & (k < K)[None, :], other=0.0
        )
        w = tl.load(w_ptr + k * stride_w, mask=k < K, other=0.0)
        acc += x.to(tl.float32) * w.to(tl.float32)[None, :]
    return tl.sum(acc, axis=1)


@triton.jit
def tiny_dot_kernel(
    x_ptr, w_ptr, y_ptr, T, K, stride_xm, stride_xk, stride_w, SIGMOID: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K:
    tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M tokens."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    y = row_sums(x_ptr, w_ptr, rows, rows < T, K, stride_xm, stride_xk, stride_w, BLOCK_M, BLOCK_K)
    if SIGMOID:
        y = sigmoid(y)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=rows < T)


def tiny_dot(x: torch.Tensor, w: torch.Tensor, sigmoid: bool = False) -> torch.Tensor:
    """Multiply by a weight with a single output, optionally through a sigmoid.

    out[t, 0] = D(sum_k x[t, k] * w[k]),  or D(1 / (1 + exp(-sum)))

    Args:
        x: [T, K], bf16 or fp16, any strides; T may be 0.
        w: [K] or [1, K], in x's dtype.
        sigmoid: apply the sigmoid to the unrounded sum.
    Returns:
        [T, 1] in x's dtype; exact products, fp32 sum, one rounding.
    Raises:
        ValueError: shapes or dtypes that do not fit.
    Source: docs/formats.md section 7.
    """
    flat = check_vector(x, w, "w")
    T, K = x.shape
    y = torch.empty(T, 1, dtype=x.dtype, device=x.device)
    if T:
        block_m, block_k = row_blocks(T, K, x.device)
        tiny_dot_kernel[(triton.cdiv(T, block_m),)](
            x, flat, y, T, K, *x.stride(), *flat.stride(), SIGMOID=bool(sigmoid), BLOCK_M=block_m, BLOCK_K=block_k
        )
    return y


def check_vector(x: torch.Tensor, w: torch.Tensor, name: str) -> torch.Tensor:
    """Return a weight with one output as [K], or raise ValueError if it does not fit x."""
    if x.ndim != 2 or x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x: got {x.dtype} of shape {tuple(x.shape)}, must be bf16 or fp16 [T, K]")
    K = x.shape[1]
    if w.dtype != x.dtype or tuple(w.shape) not in ((K,), (1, K)):
        raise ValueError(f"{name}: got {w.dtype} of shape {tuple(w.shape)}, must be {x.dtype} [{K}] or [1, {K}]")
    return w.reshape(-1)


def row_blocks(T: int, K: int, device: torch.device) -> tuple[int, int]:
    """Return (rows, columns) of one step of row_sums."""
    if device.type != "cuda":
        return min(128, pow2_at_least(T)), min(512, pow2_at_least(K))
    return (1 if T <= 256 else 4), min(1024, pow2_at_least(K))
