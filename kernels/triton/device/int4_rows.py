"""The inner loop for a few rows: one row of x times BLOCK_N rows of an int4 weight, in fp32 without the matrix unit.

A matrix tile has 16 rows at least and few of them fit into a decode step's N; here a program takes one row, so that
there are enough programs to keep memory busy. The weight is formed as in int4_tile: contract `cast`.
"""

from __future__ import annotations

from moeracle.kernels.triton.device.int4_tile import int4_tile, int4_weight_tile
from moeracle.kernels.triton.triton_import import tl, triton


@triton.jit
def int4_row(x_ptr, stride_xk, w, form, offs_n, N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return sum_k x[k] * D(w[offs_n, k]) in fp32, [BLOCK_N]; x_ptr points at the row."""
    acc = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)  # added up once, at the end
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + k * stride_xk, mask=k < K, other=0.0)
        tile = int4_weight_tile(w, form, offs_n, k0, N, K, BLOCK_N, BLOCK_K)
        acc += tile.to(tl.float32) * x.to(tl.float32)[None, :]
    return tl.sum(acc, axis=1)


@triton.jit
def int4_rows(
    x_ptr, rows, row_mask, stride_xm, stride_xk, w, form, offs_n, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return sum_k x[rows, k] * D(w[offs_n, k]) in fp32, [BLOCK_M, BLOCK_N]: by int4_tile, or int4_row if BLOCK_M is 1.

    w is one matrix's pointers; rows is int64 [BLOCK_M]; of BLOCK_M = 1 the row must exist.
    """
    if BLOCK_M == 1:
        row = tl.sum(rows, axis=0)
        acc = int4_row(x_ptr + row * stride_xm, stride_xk, w, form, offs_n, N, K, BLOCK_N, BLOCK_K)[None, :]
    else:
        x_offs = rows * stride_xm
        acc = int4_tile(x_ptr, x_offs, row_mask, stride_xk, w, form, offs_n, N, K, BLOCK_M, BLOCK_N, BLOCK_K)
    return acc
