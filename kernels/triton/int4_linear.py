"""Dense W4A16: x @ dequantize(w).T + bias, on the tile that the MoE kernels share, or for a few rows without it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.weight_args import weight_args
from moeracle.kernels.triton.device.int4_rows import int4_rows
from moeracle.kernels.triton.device.int4_tile import form_of
from moeracle.kernels.triton.tiles import Tile, default_tile, interpreter_tile
from moeracle.kernels.triton.triton_import import tl, triton

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

FEW = 2  # rows up to which each program takes one of them
ROW = (8, 512, 4)  # outputs, inputs and warps of a program that takes one row, on a GPU
# Of one matrix it is the number of programs that counts, so these are narrower than the MoE's; measured on an H200.
NARROW = {16: Tile(16, 16, 256, 4, 3), 64: Tile(64, 32, 128, 4, 4), 128: Tile(128, 64, 64, 4, 3)}


@triton.jit
def int4_linear_kernel(
    x_ptr, w, bias_ptr, y_ptr, T, N, K, stride_xm, stride_xk, BIAS: tl.constexpr, form, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: one tile of y; of one row, if BLOCK_M is 1."""
    pid = tl.program_id(0)
    num_n = (N + BLOCK_N - 1) // BLOCK_N
    rows = (pid // num_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (pid % num_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < T
    acc = int4_rows(x_ptr, rows, row_mask, stride_xm, stride_xk, w, form, offs_n, N, K, BLOCK_M, BLOCK_N, BLOCK_K)
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
        config: tile sizes, always on the matrix unit; None: the device's default, and one row a program for T <= 2.
    Returns:
        [T, N] in x's dtype; weights rounded to D before the dot, fp32 sums, one rounding at the store.
    Raises:
        ValueError: w is in another layout, or shapes or dtypes do not fit.
    Source: docs/formats.md section 4, `hybrid`.
    """
    if config is None and x.shape[0] <= FEW:
        return int4_linear_rows(x, w, bias)
    return int4_linear_dot(x, w, bias, config=config)


def int4_linear_dot(
    x: torch.Tensor, w: Int4Weight, bias: torch.Tensor | None = None, *, config: Tile | None = None
) -> torch.Tensor:
    """Do what `int4_linear` does, always on the matrix unit: the same order of sums for every T."""
    tile = config or dense_tile(x.shape[0], w.packed.shape[0], w.packed.shape[-1] * 8, x.device, w.zero is not None)
    return _launch(x, w, bias, tile.block_m, (tile.block_n, tile.block_k, tile.num_warps), tile.num_stages)


def int4_linear_rows(x: torch.Tensor, w: Int4Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Do what `int4_linear` does, one row a program and without the matrix unit, for a few rows."""
    on_cpu = interpreter_tile(w.packed.shape[0], w.packed.shape[-1] * 8)
    sizes = ROW if x.device.type == "cuda" else (on_cpu.block_n, on_cpu.block_k, 1)
    return _launch(x, w, bias, 1, sizes, 1)


def dense_tile(T: int, N: int, K: int, device: torch.device, zeros: bool = False) -> Tile:
    """Choose the tile of one matrix [N, K] for T rows.

    Args:
        T, N, K: sizes.
        device: where.
        zeros: the weight has zero points, which take registers: more warps for 128 rows, half the inputs for 64.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return default_tile(T, 1, N, K, device)
    rows = 16 if T <= 16 else 64 if T <= 64 else 128
    if rows == 128 and torch.cuda.get_device_capability(device) != (9, 0):
        rows = 64  # 128 rows spill on sm_80 and sm_100 (`moeracle kernels compile`)
    changes = {64: {"block_k": 64}, 128: {"num_warps": 8}}.get(rows, {}) if zeros else {}
    return replace(NARROW[rows], **changes)


def _launch(
    x: torch.Tensor,
    w: Int4Weight,
    bias: torch.Tensor | None,
    block_m: int,
    sizes: tuple[int, int, int],
    num_stages: int,
) -> torch.Tensor:
    T, (block_n, block_k, num_warps) = x.shape[0], sizes
    args = weight_args(w, x, experts=False)
    if bias is not None and bias.shape != (args.N,):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, must be [{args.N}]")
    y = torch.empty(T, args.N, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(T, block_m) * triton.cdiv(args.N, block_n),)
    if grid[0]:
        int4_linear_kernel[grid](
            x, args.pointers(), x if bias is None else bias.contiguous(), y, T, args.N, args.K, *x.stride(),
            BIAS=bias is not None, form=form_of(args, experts=False), BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
            num_warps=num_warps, num_stages=num_stages,
        )  # fmt: skip
    return y
