"""One whole W4A16 Mixture-of-Experts layer, stage by stage.

    x [T,H] --GEMM1--> h [R,2I] --silu*mul--> a [R,I] --GEMM2--> y [R,H] --sum over k--> out [T,H]

Row r = t*k + j is slot j of token t. Everything is computed in fp32 (or fp64 on request); what a real kernel rounds in
between is a Contract's business (contracts/contract.py), and how far it may be from this is bounds/dot.py's.
"""

from __future__ import annotations

import torch

from ..activation import Activation
from ..errors import require, unknown
from ..weights.weight import Int4Weight
from .silu_and_mul import activation_of, silu_and_mul

ROUTER_WEIGHT = ("input", "gemm2", "unpermute")


def moe_w4a16(
    x: torch.Tensor,
    w13: Int4Weight,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    router_weight: str = "unpermute",
    expert_map: torch.Tensor | None = None,
    activation: Activation | str = "silu",
    gated: bool = True,
    dtype: torch.dtype = torch.float32,
    stages: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Run one MoE layer: route each token's row through its k experts and add up what comes back.

    h = x[t] W13[e]^T;  a = silu(h[:I]) * h[I:];  y = a W2[e]^T;  out[t] = sum_j weight[t,j] * y[t*k+j]
    A weight's bias, where it has one, is added to h, to y, before the router weight. Without up rows, a = silu(h).

    Args:
        x: [T, H], the activation dtype.
        w13: Int4Weight [E, 2I, H], gate rows first; [E, I, H] where it is not gated.
        w2: Int4Weight [E, H, I].
        topk_weights: fp32 [T, k].
        topk_ids: int [T, k], 0..E-1, or -1 for a slot that does nothing.
        router_weight: where the weight enters: "input" (on h), "gemm2" (on y) or "unpermute" (in the sum).
        expert_map: int [E_global] to local ids, -1 for an expert that is not on this rank, or None.
        activation: as silu_and_mul's.
        gated: whether w13 has up rows.
        dtype: what to compute and return in, torch.float32 or torch.float64.
        stages: a dict that receives h, a, y and out, in slot order; rows of slots that do nothing are zero.
    Returns:
        out [T, H] in `dtype`; fp32 error is bounded stage by stage in bounds/dot.py.
    Raises:
        ValueError: shapes that do not fit together, an id outside -1..E-1, an unknown router_weight or activation.
    Source: docs/formats.md sections 3 and 4.
    """
    check_layer(x, w13, w2, topk_weights, topk_ids, expert_map, gated=gated)
    (T, H), k = x.shape, topk_ids.shape[1]
    if router_weight not in ROUTER_WEIGHT:
        raise unknown("router_weight", router_weight, ROUTER_WEIGHT)
    R, I = T * k, w2.K
    weight = topk_weights.to(dtype).reshape(R, 1)
    h = torch.zeros(R, w13.N, dtype=dtype, device=x.device)
    a = torch.zeros(R, I, dtype=dtype, device=x.device)
    y = torch.zeros(R, H, dtype=dtype, device=x.device)
    out = torch.zeros(T, H, dtype=dtype, device=x.device)
    of_experts = rows_by_expert(topk_ids, expert_map)
    chosen = [e for e, _ in of_experts]
    up, down = w13.matrices(chosen, dtype), w2.matrices(chosen, dtype)
    for e, rows in of_experts:
        h_e = _plus_bias(x[rows // k].to(dtype) @ up(e).T, w13, e)
        h[rows] = h_e * weight[rows] if router_weight == "input" else h_e
        of = activation_of(activation)
        a[rows] = silu_and_mul(h[rows], activation=of, dtype=dtype) if gated else of.alone(h[rows])
        y_e = _plus_bias(a[rows] @ down(e).T, w2, e)
        y[rows] = y_e * weight[rows] if router_weight == "gemm2" else y_e
    for j in range(k):  # slot order
        slots = slice(j, None, k)
        out += y[slots] * weight[slots] if router_weight == "unpermute" else y[slots]
    if stages is not None:
        stages.update(h=h, a=a, y=y, out=out)
    return out


def _plus_bias(sums: torch.Tensor, w: Int4Weight, e: int) -> torch.Tensor:
    return sums if w.bias is None else sums + w.bias[e].to(sums.dtype)


def check_layer(
    x: torch.Tensor,
    w13: Int4Weight,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    *,
    gated: bool = True,
) -> None:
    """Raise the ValueError that names the first argument of a layer whose shape does not fit; see moe_w4a16."""
    require(x.ndim == 2, f"x: got shape {tuple(x.shape)}, must be [T, H]")
    T, H = x.shape
    form = "2I" if gated else "I"
    require(len(w13.shape) == 3 and w13.K == H, f"w13: got shape {w13.shape}, must be [E, {form}, H={H}]")
    I = w13.N // 2 if gated else w13.N
    fits = len(w2.shape) == 3 and w2.shape == (w13.E, H, I)
    require(fits, f"w2: got shape {w2.shape}, must be [E={w13.E}, H={H}, I={I}]")
    require(
        topk_ids.ndim == 2 and topk_ids.shape[0] == T,
        f"topk_ids: got shape {tuple(topk_ids.shape)}, must be [T={T}, k]",
    )
    require(
        topk_weights.shape == topk_ids.shape,
        f"topk_weights: got shape {tuple(topk_weights.shape)}, must be topk_ids' {tuple(topk_ids.shape)}",
    )
    E = int(w13.E or 0) if expert_map is None else expert_map.shape[0]
    if topk_ids.numel():
        low, high = int(topk_ids.min()), int(topk_ids.max())
        require(low >= -1 and high < E, f"topk_ids: got ids from {low} to {high}, must be in -1..{E - 1}")


def rows_by_expert(topk_ids: torch.Tensor, expert_map: torch.Tensor | None = None) -> list[tuple[int, torch.Tensor]]:
    """Return (local expert, its routed rows t*k+j in order) for each expert that has rows here.

    Args:
        topk_ids: int [T, k]; -1 for a slot that does nothing.
        expert_map: int [E_global] to local ids, -1 for elsewhere, or None.
    """
    ids = topk_ids.flatten().long()
    if expert_map is not None and ids.numel():
        ids = torch.where(ids < 0, ids, expert_map.to(ids)[ids.clamp(min=0)])
    order = torch.sort(ids, stable=True)
    experts, counts = torch.unique_consecutive(order.values, return_counts=True)
    pieces = torch.split(order.indices, counts.tolist())
    return [(e, rows) for e, rows in zip(experts.tolist(), pieces, strict=True) if e >= 0]
