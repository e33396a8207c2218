"""Dense W4A16: x @ dequantize(w).T + bias, on the tile that the MoE kernels share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.kernels.int4_tile_triton import int4_tile
from moeracle.kernels.tiles import Tile, default_tile
from moeracle.kernels.triton_import import tl, triton
from moeracle.kernels.weight_args import weight_args

if TYPE_CHECKING:
    from moeracle.ref.weight import Int4Weight


@triton.jit
def int4_linear_kernel(
    x_ptr,
    w_ptr,
    s_ptr,
    z_ptr,
    bias_ptr,
    y_ptr,
    T,
    N,
    K,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    stride_sn,
    stride_sg,
    stride_zn,
    stride_zg,
    BIAS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: one tile of y."""
    pid = tl.program_id(0)
    num_n = (N + BLOCK_N - 1) // BLOCK_N
    rows = (pid // num_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (pid % num_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < T
    acc = int4_tile(
        x_ptr,
        rows * stride_xm,
        row_mask,
        stride_xk,
        w_ptr,
        s_ptr,
        z_ptr,
        offs_n,
        N,
        K,
        stride_wn,
        stride_wk,
        stride_sn,
        stride_sg,
        stride_zn,
        stride_zg,
        GROUP,
        ZERO,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    if BIAS:
        acc = acc + tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
    y_mask = row_mask[:, None] & (offs_n < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + offs_n[None, :], acc.to(y_ptr.dtype.element_ty), mask=y_mask)


def int4_linear(
    x: torch.Tensor, w: Int4Weight, bias: torch.Tensor | None = None, *, config: Tile | None = None
) -> torch.Tensor:
    """Multiply activations by one int4 matrix.

    y = D(x @ D((u - z) * s).T + bias)

    Args:
        x: [T, K], bf16 or fp16, any strides; T may be 0.
        w: Int4Weight [N, K], layout exllama; symmetric, or zero layout rdna or unpacked.
        bias: [N] or None, added in fp32.
        config: tile sizes, or None for the device's default.
    Returns:
        [T, N] in x's dtype; weights rounded to D before the dot, fp32 sums, one rounding at the store.
    Raises:
        ValueError: w is in another layout, or shapes or dtypes do not fit.
    Source: FORMATS section 4, `hybrid`.
    """
    T = x.shape[0]
    args = weight_args(w, x, experts=False)
    if bias is not None and bias.shape != (args.N,):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, must be [{args.N}]")
    tile = config or default_tile(T, 1, args.N, args.K, x.device)
    y = torch.empty(T, args.N, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(T, tile.block_m) * triton.cdiv(args.N, tile.block_n),)
    w_strides, s_strides, z_strides = args.strides[1:3], args.strides[4:6], args.strides[7:9]
    if grid[0]:
        int4_linear_kernel[grid](
            x,
            *args.pointers(),
            x if bias is None else bias.contiguous(),
            y,
            T,
            args.N,
            args.K,
            *x.stride(),
            *w_strides,
            *s_strides,
            *z_strides,
            BIAS=bias is not None,
            GROUP=args.G,
            ZERO=args.zero_kind,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    return y
