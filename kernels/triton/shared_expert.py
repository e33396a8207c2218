"""The shared expert in two launches: gate and up GEMMs with silu and product behind them, then the down GEMM and gate.

    a = D(D(silu(D(x·Wg))) * D(x·Wu));  out = D(D(a·Wd) * D(sigmoid(x·g)))

The first launch also takes x·g for every token, in programs of its own, and leaves it in fp32 for the second.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from moeracle.kernels.common.weight_args import SYMMETRIC, WeightArgs, weight_args
from moeracle.kernels.triton.device.int4_rows import int4_rows
from moeracle.kernels.triton.device.int4_tile import form_of
from moeracle.kernels.triton.int4_linear import dense_tile
from moeracle.kernels.triton.silu_and_mul import silu
from moeracle.kernels.triton.tiles import Tile
from moeracle.kernels.triton.tiny_dot import check_vector, row_blocks, row_sums, sigmoid
from moeracle.kernels.triton.triton_import import tl, triton

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

FEW = 4  # tokens up to which each program takes one of them


@triton.jit
def gate_up_kernel(
    x_ptr, w, g_ptr, a_ptr, dot_ptr, T, I, K, num_tiles, stride_xm, stride_xk, form, stride_g, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GATE_M: tl.constexpr, GATE_K: tl.constexpr,
):  # fmt: skip
    """One program: one tile of a [T, I]; those from num_tiles on: x·g of GATE_M tokens."""
    pid = tl.program_id(0)
    if pid >= num_tiles:
        tokens = (pid - num_tiles).to(tl.int64) * GATE_M + tl.arange(0, GATE_M)
        dot = row_sums(x_ptr, g_ptr, tokens, tokens < T, K, stride_xm, stride_xk, stride_g, GATE_M, GATE_K)
        tl.store(dot_ptr + tokens, dot, mask=tokens < T)
        return
    num_n = (I + BLOCK_N - 1) // BLOCK_N
    rows = (pid // num_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (pid % num_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate = int4_rows(x_ptr, rows, rows < T, stride_xm, stride_xk, w, form, offs_n, I, K, BLOCK_M, BLOCK_N, BLOCK_K)
    # Rows I.. are up's. Packed zero points share words between rows, and I need not be whole words: the row itself
    # moves, not the pointers.
    up_n = tl.where(offs_n < I, offs_n + I, 2 * I)
    up = int4_rows(x_ptr, rows, rows < T, stride_xm, stride_xk, w, form, up_n, 2 * I, K, BLOCK_M, BLOCK_N, BLOCK_K)
    D = a_ptr.dtype.element_ty
    activated = silu(gate.to(D).to(tl.float32)).to(D).to(tl.float32) * up.to(D).to(tl.float32)
    mask = (rows < T)[:, None] & (offs_n < I)[None, :]
    tl.store(a_ptr + rows[:, None] * I + offs_n[None, :], activated.to(D), mask=mask)


@triton.jit
def down_kernel(
    a_ptr, w, dot_ptr, out_ptr, T, H, I, stride_am, stride_ak, GATED: tl.constexpr, form, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: one tile of out [T, H]."""
    pid = tl.program_id(0)
    num_n = (H + BLOCK_N - 1) // BLOCK_N
    rows = (pid // num_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (pid % num_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    y = int4_rows(a_ptr, rows, rows < T, stride_am, stride_ak, w, form, offs_n, H, I, BLOCK_M, BLOCK_N, BLOCK_K)
    D = out_ptr.dtype.element_ty
    if GATED:
        gate = sigmoid(tl.load(dot_ptr + rows, mask=rows < T, other=0.0)).to(D).to(tl.float32)
        y = y.to(D).to(tl.float32) * gate[:, None]
    mask = (rows < T)[:, None] & (offs_n < H)[None, :]
    tl.store(out_ptr + rows[:, None] * H + offs_n[None, :], y.to(D), mask=mask)


def shared_expert(
    x: torch.Tensor,
    w_gate_up: Int4Weight,
    w_down: Int4Weight,
    gate_weight: torch.Tensor | None = None,
    *,
    config: Tile | None = None,
    return_stages: bool = False,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Run the dense gated MLP that every token passes through, and gate its output if there is a gate.

    h = x·Wguᵀ;  a = silu(h[:, :I]) * h[:, I:];  y = a·Wdᵀ;  out = y * sigmoid(x·g), or y without a gate

    Args:
        x: [T, H], bf16 or fp16 (D), any strides; T may be 0.
        w_gate_up: Int4Weight [2I, H], layout exllama, gate rows first; symmetric, or zero layout rdna or unpacked.
        w_down: Int4Weight [H, I], likewise.
        gate_weight: [H] or [1, H] in D, or None.
        config: tile sizes of both GEMMs, or None: for T <= 4 one row a program, else the device's default.
        return_stages: return {"a" [T, I], "out"} instead of out.
    Returns:
        [T, H] in D: weights rounded to D, fp32 sums; D(h), D(D(silu)*up), D(y), D(sigmoid) of the unrounded fp32 dot,
        and their product in D.
    Raises:
        ValueError: shapes, dtypes or layouts that do not fit.
    Source: docs/formats.md section 7, FUSED_SILU_MUL and FUSED_GATE_MUL.
    """
    up = weight_args(w_gate_up, x, experts=False, name="w_gate_up")
    T, H = x.shape
    if up.N % 2:
        raise ValueError(f"w_gate_up: got {up.N} rows, must be an even number, gate rows first")
    I = up.N // 2
    a = torch.empty(T, I, dtype=x.dtype, device=x.device)
    down = weight_args(w_down, a, experts=False, name="w_down")
    if down.N != H:
        raise ValueError(f"w_down: got {down.N} rows, must be x's H = {H}")
    gate = None if gate_weight is None else check_vector(x, gate_weight, "gate_weight")
    dot = torch.empty(T if gate is not None else 0, dtype=torch.float32, device=x.device)
    out = torch.empty(T, H, dtype=x.dtype, device=x.device)
    if T:
        _launch_gate_up(x, up, gate, a, dot, config)
        _launch_down(a, down, None if gate is None else dot, out, config)
    return {"a": a, "out": out} if return_stages else out


def _tile(
    T: int, N: int, w: WeightArgs, device: torch.device, config: Tile | None, most_rows: int = 0
) -> tuple[dict[str, int], int]:
    """Return a launch's block sizes and options, and its number of tiles."""
    tile = config or dense_tile(T, N, w.K, device, w.zero_kind != SYMMETRIC)
    if config is None and 0 < most_rows <= tile.block_m:
        tile = replace(tile, block_m=most_rows)
        if w.zero_kind != SYMMETRIC:  # or it would spill
            tile = replace(tile, block_n=min(tile.block_n, 32), block_k=min(tile.block_k, 64), num_warps=4)
    block_m, block_n, block_k, warps = tile.block_m, tile.block_n, tile.block_k, tile.num_warps
    if config is None and T <= FEW:
        block_m, block_n, block_k, warps = (1, 8, 512, 4) if device.type == "cuda" else (1, block_n, block_k, warps)
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps}
    return blocks | {"num_stages": tile.num_stages}, triton.cdiv(T, block_m) * triton.cdiv(N, block_n)


def _launch_gate_up(
    x: torch.Tensor, w: WeightArgs, gate: torch.Tensor | None, a: torch.Tensor, dot: torch.Tensor, config: Tile | None
) -> None:
    T, I = a.shape
    options, tiles = _tile(T, I, w, x.device, config, 64)  # two accumulators
    gate_m, gate_k = row_blocks(T, w.K, x.device)
    gates = 0 if gate is None else triton.cdiv(T, gate_m)
    gate_up_kernel[(tiles + gates,)](
        x, w.pointers(), x if gate is None else gate, a, dot, T, I, w.K, tiles, *x.stride(), form_of(w, experts=False),
        1 if gate is None else gate.stride(0), GATE_M=gate_m, GATE_K=gate_k, **options,
    )  # fmt: skip


def _launch_down(
    a: torch.Tensor, w: WeightArgs, dot: torch.Tensor | None, out: torch.Tensor, config: Tile | None
) -> None:
    T, H = out.shape
    options, tiles = _tile(T, H, w, a.device, config)
    down_kernel[(tiles,)](
        a, w.pointers(), a if dot is None else dot, out, T, H, w.K, *a.stride(), GATED=dot is not None,
        form=form_of(w, experts=False), **options,
    )  # fmt: skip
