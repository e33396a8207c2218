"""exllama words to codes, and to weights in D: what the GEMMs do to every tile, on its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.weight_args import weight_args
from moeracle.kernels.triton.device.int4_tile import form_of, int4_weight_tile, of_expert
from moeracle.kernels.triton.tiles import Tile, interpreter_tile
from moeracle.kernels.triton.triton_import import tl, triton

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

GPU_TILE = Tile(block_n=32, block_k=128)


@triton.jit
def dequantize_kernel(w, out_ptr, N, K, form, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """One program: one tile of one expert's [N, K]."""
    pid = tl.program_id(0)
    num_k = (K + BLOCK_K - 1) // BLOCK_K
    num_n = (N + BLOCK_N - 1) // BLOCK_N
    expert = (pid // num_k // num_n).to(tl.int64)
    offs_n = (pid // num_k % num_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k0 = pid % num_k * BLOCK_K
    tile = int4_weight_tile(of_expert(w, form, expert), form, offs_n, k0, N, K, BLOCK_N, BLOCK_K)
    k = k0 + tl.arange(0, BLOCK_K)
    out_ptrs = out_ptr + (expert * N + offs_n)[:, None] * K + k[None, :]
    tl.store(out_ptrs, tile, mask=(offs_n < N)[:, None] & (k < K)[None, :])


def dequantize_int4(w: Int4Weight) -> torch.Tensor:
    """Return the weights that the GEMM kernels multiply with.

    W[..., n, k] = D((u[n, k] - z[n, k//G]) * s[n, k//G])

    Args:
        w: Int4Weight [N, K] or [E, N, K], layout exllama; symmetric, or zero layout rdna or unpacked; scale in bf16 or
            fp16.
    Returns:
        [..., N, K] in the scale's dtype; the exact value rounded once, to nearest even.
    Raises:
        ValueError: w is in another layout, or its dtypes do not fit.
    Source: docs/formats.md section 4, "(u-z)*s in fp32, then D".
    """
    experts = w.packed.ndim == 3
    *lead, N, words = w.packed.shape
    nothing = torch.empty(0, words * 8, dtype=w.scale.dtype, device=w.packed.device)
    args = weight_args(w, nothing, experts=experts)
    out = torch.empty(*lead, N, args.K, dtype=w.scale.dtype, device=w.packed.device)
    tile = GPU_TILE if out.device.type == "cuda" else interpreter_tile(N, args.K)
    grid = (math.prod(lead) * triton.cdiv(N, tile.block_n) * triton.cdiv(args.K, tile.block_k),)
    if out.numel():
        blocks = {"BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
        dequantize_kernel[grid](args.pointers(), out, args.N, args.K, form_of(args), **blocks)
    return out


@triton.jit
def unpack_kernel(w_ptr, out_ptr, total, K8, N, stride_we, stride_wn, stride_wk, BLOCK: tl.constexpr):
    """One program: BLOCK words, eight codes each."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    row = i // K8
    word = tl.load(w_ptr + (row // N) * stride_we + (row % N) * stride_wn + (i % K8) * stride_wk, mask=mask, other=0)
    r = tl.arange(0, 8)
    u = (word[:, None] >> (4 * (r // 2) + 16 * (r % 2))[None, :]) & 0xF
    tl.store(out_ptr + i[:, None] * 8 + r[None, :], u.to(tl.uint8), mask=mask[:, None])


def unpack_int4(w: Int4Weight) -> torch.Tensor:
    """Return the codes of exllama words in the order of k.

    u[..., n, 8j + r] = (packed[..., n, j] >> (4*(r//2) + 16*(r%2))) & 15

    Args:
        w: Int4Weight [N, K] or [E, N, K], layout exllama, any strides.
    Returns:
        uint8 [..., N, K], exact.
    Raises:
        ValueError: another layout.
    Source: docs/formats.md section 1.
    """
    *lead, N, words = w.packed.shape
    if w.layout != "exllama" or len(lead) > 1:
        raise ValueError(
            f"w: got layout {w.layout!r} of shape {tuple(w.packed.shape)}, must be exllama [N, K/8] or [E, N, K/8]"
        )
    out = torch.empty(*lead, N, words * 8, dtype=torch.uint8, device=w.packed.device)
    strides = w.packed.stride() if lead else (0, *w.packed.stride())
    if out.numel():
        block = 256 if out.device.type == "cuda" else 4096
        grid = (triton.cdiv(w.packed.numel(), block),)
        unpack_kernel[grid](w.packed, out, w.packed.numel(), words, N, *strides, BLOCK=block)
    return out
