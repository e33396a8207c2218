"""Legal kernels for every op, in plain PyTorch, whose order of summation depends on everything that it may depend on.

A TARGET like any other: `moeracle check tests/support/legal_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import moeracle
from moeracle.properties.cases.optable import OPS
from moeracle.ref import grouped_topk, moe_align_block_size, moe_permute, quantize_int8, topk_softmax
from moeracle.ref.ops.padded_gemm import infer_block_size
from moeracle.target.declaration import ZEROS


def dot(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A legal fp32 dot product whose order depends on the number of rows, and in each row on where it stands."""
    rows, K = x.shape
    step = 8 << rows % 3
    parts = [x[:, k : k + step].float() @ weight[:, k : k + step].T for k in range(0, K, step)]
    up, down = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for part in parts:
        up = up + part
    for part in reversed(parts):
        down = down + part
    return torch.where(torch.arange(rows)[:, None] % 3 == 1, down, up)


def weights(w: Any, x: torch.Tensor) -> torch.Tensor:
    return w.dequantize().to(x.dtype).float()


def linear(x: torch.Tensor, w: Any, bias: Any) -> torch.Tensor:
    y = dot(x, weights(w, x))
    return (y if bias is None else y + bias.float()).to(x.dtype)


def grouped(x: torch.Tensor, w: Any, offsets: torch.Tensor) -> torch.Tensor:
    y, values = torch.zeros(x.shape[0], w.N, dtype=x.dtype), weights(w, x)
    for e in range(w.E):
        rows = slice(int(offsets[e]), int(offsets[e + 1]))
        y[rows] = dot(x[rows], values[e]).to(x.dtype)
    return y


def padded(x: torch.Tensor, w: Any, ids: Any, experts: Any, end: Any, router: Any, top_k: int, B: int = 0) -> Any:
    R, values = x.shape[0] * top_k, weights(w, x)
    B = B or infer_block_size(len(ids), len(experts), R, w.E, int(end))
    y = torch.zeros(R, w.N, dtype=x.dtype)
    for b in range(int(end) // B):
        block = ids[b * B : (b + 1) * B].long()
        block, e = block[block < R], int(experts[b])
        if e >= 0:
            part = dot(x[block // top_k], values[e])
            y[block] = (part if router is None else part * router.reshape(-1, 1)[block]).to(x.dtype)
    return y


def silu(h: torch.Tensor) -> torch.Tensor:
    gate, up = h.float().chunk(2, dim=1)
    return (torch.nn.functional.silu(gate).to(h.dtype).float() * up).to(h.dtype)


def unpermute(y: torch.Tensor, router: torch.Tensor, inv: torch.Tensor) -> torch.Tensor:
    (T, k), rows = router.shape, inv.long()
    terms = (y[rows].float() * router.reshape(-1, 1)).reshape(T, k, -1)
    forward, backward = torch.zeros_like(terms[:, 0]), torch.zeros_like(terms[:, 0])
    for j in range(k):
        forward, backward = forward + terms[:, j], backward + terms[:, k - 1 - j]
    return torch.where(torch.arange(T)[:, None] % 2 == T % 2, forward, backward).to(y.dtype)


def moe(x: torch.Tensor, w13: Any, w2: Any, router: torch.Tensor, ids: torch.Tensor, act: Any = silu) -> torch.Tensor:
    rows, offsets, inv = moe_permute(x, ids, w13.E)
    return unpermute(grouped(act(grouped(rows, w13, offsets)), w2, offsets), router, inv)


def head(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: Any) -> torch.Tensor:
    per_group = scale.reshape(len(codes), -1)
    y = dot(x, codes.float() * per_group.repeat_interleave(codes.shape[1] // per_group.shape[1], 1))
    return (y if bias is None else y + bias.float()).to(x.dtype)


def shared(x: torch.Tensor, up: Any, down: Any, gate: Any) -> torch.Tensor:
    y = linear(silu(linear(x, up, None)), down, None)
    return y if gate is None else (y.float() * tiny(x, gate, True).float()).to(x.dtype)


def tiny(x: torch.Tensor, w: torch.Tensor, sigmoid: bool) -> torch.Tensor:
    y = dot(x, w[None, :].float())
    return (torch.sigmoid(y) if sigmoid else y).to(x.dtype)


def topk(logits: torch.Tensor, k: int, renormalize: bool) -> Any:
    return topk_softmax(logits, k, renormalize=renormalize)


def grouped_router(
    logits: torch.Tensor, bias: Any, groups: int, kept: int, k: int, scoring: str, renormalize: bool, factor: float
) -> Any:
    return grouped_topk(
        logits,
        k,
        num_expert_group=groups,
        topk_group=kept,
        renormalize=renormalize,
        scoring=scoring,
        bias=bias,
        routed_scaling_factor=factor,
    )


def unordered_align(ids: torch.Tensor, B: int, E: int, expert_map: Any) -> Any:
    """Legal: inside an expert ids come in any order, as atomics leave them."""
    found, experts, end = moe_align_block_size(ids, B, E, expert_map)
    flat, R = ids.flatten(), ids.numel()
    for e in range(E):
        mine = ((found < R) & (flat[found.long().clamp(max=R - 1)] == e)).nonzero().flatten()
        found[mine] = found[mine.flip(0)]
    return found, experts, end


LEGAL: dict[str, Callable[..., Any]] = {
    "int4_linear": linear,
    "grouped_gemm": grouped,
    "padded_gemm": padded,
    "moe_w4a16": moe,
    "moe_unpermute": unpermute,
    "silu_and_mul": silu,
    "int8_lm_head": head,
    "shared_expert": shared,
    "tiny_dot": tiny,
    "topk_softmax": topk,
    "grouped_topk": grouped_router,
    "moe_align_block_size": unordered_align,
    "moe_permute": moe_permute,
    "quantize_int8": quantize_int8,
    "unpack_int4": lambda w: w.codes(),
    "dequantize_int4": lambda w: w.dequantize().to(w.scale.dtype),
}

for op, fn in LEGAL.items():
    dtypes = [d for d in OPS[op].dtypes if d != "-"] or ["bf16"]
    contract = "int8_lm_head" if op == "int8_lm_head" else "grouped,accumulator=fp32"
    moeracle.kernel(op, contract=contract, zeros=ZEROS, dtypes=dtypes, name=f"legal_{op}")(fn)
