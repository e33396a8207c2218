"""Dense W4A16 on compute capability 9.0: the linear with a bias, and the shared expert, from prepared weights.

Weights are put into the order of prepared_weight.py on first use and kept in it beside the words as they came; a
PreparedWeight does without the second copy. Which tile a launch takes follows from T, N and K alone, so `linear_tile`
also says which order of sums it keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moeracle.kernels.hopper.launch import check_x
from moeracle.kernels.hopper.prepared_weight import PreparedWeight, prepared
from moeracle.kernels.hopper.tiles.layers import Few
from moeracle.kernels.hopper.tiles.linear import Wide, linear_tile
from moeracle.kernels.triton.tiny_dot import check_vector, row_blocks, tiny_dot_kernel

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight


def run_linear(
    x: torch.Tensor,
    w: PreparedWeight,
    y: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    tile: Few | Wide | None = None,
    early: bool = True,
) -> torch.Tensor:
    """Launch one dense GEMM; with a gated weight silu·mul is its epilogue.

    y = D(x @ D((u - z) * s).T + bias), or silu·mul of its halves, or D(D(x @ ...) * D(sigmoid(gate)))

    Args:
        x: [T, K], D.
        w: prepared, of one matrix.
        y: [T, N] (or [T, N/2] if gated), unit column stride; filled and returned.
        bias: [N] or None.
        gate: fp32 [T] or None; not with a bias.
        tile: as linear_tile returns them, or None for its choice.
        early: launch before the kernel ahead has ended; nothing is read before it has.
    """
    T = x.shape[0]
    if T == 0:
        return y
    if x.stride(1) != 1 or x.stride(0) % 8 or x.stride(0) < x.shape[1] or x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)  # 16 bytes are copied at once
    tile = tile or linear_tile(T, w.N, w.K)
    programs = -(-T // tile.block_m) * (w.slabs * 16 // tile.block_n)
    extra = gate if gate is not None else bias.contiguous() if bias is not None else x
    constants: dict[str, Any] = {
        "GROUP": w.group,
        "ZERO": w.zero is not None,
        "FOLD": w.fold,
        "SILU": w.gated,
        "BIAS": bias is not None,
        "GATE": gate is not None,
        "EARLY": early,
        "BM": tile.block_m,
        "BN": tile.block_n,
        "DEPTH": tile.depth,
        "num_warps": tile.num_warps,
        "launch_pdl": early,
    }
    weights = (w.words, w.scale, w.scale if w.zero is None else w.zero, extra, y, T, w.slabs, y.shape[1])
    if isinstance(tile, Few):
        from moeracle.kernels.hopper.device.linear_few import hopper_linear_few_kernel

        constants |= {"EVEN_K": w.padded_k == w.K, "KX": w.padded_k // tile.split_k, "SPLIT": tile.split_k}
        sizes = (w.K // 8, w.padded_k, w.scale.shape[2], x.stride(0) // 8)
        hopper_linear_few_kernel[(programs,)](x, *weights, *sizes, y.stride(0), **constants)
    else:
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

        from moeracle.kernels.hopper.device.linear_ring import hopper_linear_ring_kernel
        from moeracle.kernels.hopper.gluon_import import gl

        constants |= {"BK": tile.block_k, "STAGES": tile.num_stages, "SPLIT": tile.split_k}
        layout = gl.NVMMASharedLayout(128, 16, 2)
        x_tiles = TensorDescriptor.from_tensor(x, [tile.block_m, tile.block_k], layout)
        hopper_linear_ring_kernel[(programs,)](
            x_tiles, *weights, w.padded_k, w.scale.shape[2], y.stride(0), **constants
        )
    return y


def _one_matrix(w: PreparedWeight, name: str) -> PreparedWeight:
    if w.words.shape[0] != 1:
        raise ValueError(f"{name}: got {w.words.shape[0]} experts, must be one matrix")
    return w


def int4_linear_hopper(
    x: torch.Tensor,
    w: Int4Weight | PreparedWeight,
    bias: torch.Tensor | None = None,
    *,
    config: Few | Wide | None = None,
    early: bool = True,
) -> torch.Tensor:
    """Multiply activations by one int4 matrix, its weight fed to the matrix unit from registers.

    y = D(x @ D((u - z) * s).T + bias)

    Args:
        x: [T, K], bf16 or fp16, any strides; T may be 0.
        w: Int4Weight [N, K], layout exllama; symmetric, or zero layout rdna or unpacked; or prepared.
        bias: [N] or None, added in fp32.
        config: tile sizes, or None for what fits T, N and K.
        early: as run_linear's.
    Returns:
        [T, N] in x's dtype; weights rounded to D before the product, fp32 sums in the order of `config.schedule()`.
    Raises:
        ValueError: w is in another layout or has no prepared order, or shapes or dtypes do not fit.
    Source: docs/formats.md section 4, `hybrid`.
    """
    weight = _one_matrix(prepared(w, fold=True), "w")
    check_x(x, weight)
    if bias is not None and bias.shape != (weight.N,):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, must be [{weight.N}]")
    y = torch.empty(x.shape[0], weight.N, dtype=x.dtype, device=x.device)
    return run_linear(x, weight, y, bias=bias, tile=config, early=early)


def shared_expert_hopper(
    x: torch.Tensor,
    w_gate_up: Int4Weight | PreparedWeight,
    w_down: Int4Weight | PreparedWeight,
    gate_weight: torch.Tensor | None = None,
    *,
    return_stages: bool = False,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Run the shared expert in two launches, or three with a gate.

    h = x·Wguᵀ;  a = silu(h[:, :I]) * h[:, I:];  y = a·Wdᵀ;  out = y * sigmoid(x·g), or y without a gate

    Args:
        x: [T, H], bf16 or fp16 (D), any strides; T may be 0.
        w_gate_up: Int4Weight [2I, H], layout exllama, gate rows first; or prepared with gated=True.
        w_down: Int4Weight [H, I], likewise; or prepared.
        gate_weight: [H] or [1, H] in D, or None.
        return_stages: return {"a" [T, I], "out"} instead of out.
    Returns:
        [T, H] in D, with the roundings of triton.shared_expert.shared_expert.
    Raises:
        ValueError: shapes, dtypes or layouts that do not fit.
    Source: docs/formats.md section 7, FUSED_SILU_MUL and FUSED_GATE_MUL.
    """
    up = _one_matrix(prepared(w_gate_up, gated=True, fold=True), "w_gate_up")
    down = _one_matrix(prepared(w_down, fold=True), "w_down")
    check_x(x, up)
    T, H = x.shape
    if down.N != H or down.K * 2 != up.N:
        raise ValueError(f"w_down: got [{down.N}, {down.K}], must be [{H}, {up.N // 2}]")
    dot = None
    if gate_weight is not None:
        gate = check_vector(x, gate_weight, "gate_weight")
        dot = torch.empty(T, dtype=torch.float32, device=x.device)
        if T:
            block_m, block_k = row_blocks(T, H, x.device)
            tiny_dot_kernel[(-(-T // block_m),)](
                x, gate, dot, T, H, *x.stride(), *gate.stride(), SIGMOID=False, BLOCK_M=block_m, BLOCK_K=block_k
            )
    a = run_linear(x, up, torch.empty(T, down.K, dtype=x.dtype, device=x.device))
    out = run_linear(a, down, torch.empty(T, H, dtype=x.dtype, device=x.device), gate=dot)
    return {"a": a, "out": out} if return_stages else out
