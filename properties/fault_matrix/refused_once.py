"""Legal kernels of two kinds beside the simulations: some that were refused wrongly once, and the hardware's own sums.

The first are written as their users wrote them, in plain torch, each with what it declines; the second add as an
instruction does, so that the contract with that schedule leaves them one value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.contracts.contract import contract

from ..cases.case import Case
from ..simulate import SimulatedKernel, simulation_of

__all__ = ["LegalKernel", "refused_once"]

T = torch.Tensor
SCHEDULES = ("wgmma.k16.sm90", "mma.m16n8k16.sm90", "fma")
SCHEDULED = ("int4_linear", "grouped_gemm", "padded_gemm", "moe_w4a16")


@dataclass(frozen=True)
class LegalKernel(SimulatedKernel):
    """A legal kernel that says itself which cases it takes.

    Args:
        supports: True for a case that it takes, else the reason.
    """

    supports: Callable[[Case], bool | str] | None = None

    def why_not(self, case: Case) -> str | None:
        """Say why this kernel does not take the case, or None if it does."""
        reason = super().why_not(case)
        said = True if reason or self.supports is None else self.supports(case)
        return reason if said is True else str(said)


def refused_once(ops: Sequence[str] | None = None) -> list[SimulatedKernel]:
    """Return these legal kernels, of these ops or of all."""
    made: list[SimulatedKernel] = [
        LegalKernel("moe_w4a16", "first slot of an expert", first_slots, contract("grouped"), supports=distinct),
        LegalKernel("moe_w4a16", "lists of rows", lists_of_rows, contract("grouped")),
        LegalKernel("moe_w4a16", "router weight before silu", before_silu, contract("grouped,router_weight=input"),
                    supports=top_1),
        LegalKernel("moe_w4a16", "router weight on x", on_x, contract("grouped,router_weight=input_dtype"),
                    supports=top_1),
        LegalKernel("moe_permute", "experts elsewhere", permuted, contract("grouped")),
        LegalKernel("grouped_gemm", "tiles of each call", tiled, contract("grouped")),
        LegalKernel(
            "int4_linear", "K in eight parts", eight_parts, contract("vllm@0.33:awq_gemm"), layout="awq",
            dtypes=("fp16",), supports=no_bias,
        ),
        LegalKernel("int4_linear", "one scale after the store", scaled_after_store, contract("vllm@0.33:marlin"),
                    zeros=("sym",), supports=one_group),
        LegalKernel("int4_linear", "a stored 15 means 16", unmasked_v1, contract("grouped,v1_zeros=plain"),
                    layout="gptq", zeros=("v1",), supports=no_bias),
        LegalKernel("int4_linear", "truncated bf16", truncated, contract("vllm@0.33:cpu_fused_moe"), supports=no_bias),
    ]  # fmt: skip
    made += [_scheduled(op, schedule) for op in SCHEDULED for schedule in SCHEDULES]
    return [kernel for kernel in made if ops is None or kernel.op in ops]


def _scheduled(op: str, schedule: str) -> SimulatedKernel:
    rules = contract(f"grouped,schedule={schedule}")
    simulation = simulation_of(op, rules, block_m=128).replace_step("accumulate", _as_scheduled)
    return SimulatedKernel(op, rules.name, getattr(simulation, op), rules, dtypes=("bf16", "fp16"))


def _as_scheduled(sim: Any, base: Any, a: T, w: T, dtype: torch.dtype) -> T:
    return accumulate(a.to(dtype), w.to(dtype), sim.contract.schedule)


def distinct(case: Case) -> bool | str:
    """Take ids that differ within a token."""
    return case.routing != "repeat" or "ids are distinct in a row"


def top_1(case: Case) -> bool | str:
    """Take one expert a token."""
    return case.k == 1 or "top-1"


def no_bias(case: Case) -> bool | str:
    """Take no bias."""
    return "bias" not in case.flags or "no bias"


def one_group(case: Case) -> bool | str:
    """Take one scale a row, and no bias."""
    return (no_bias(case) is True and case.G in (-1, case.K)) or "one group, no bias"


def dense(w: Any, dtype: torch.dtype) -> T:
    """Return a weight, or each expert's, rounded to D, as fp32."""
    values: T = w.dequantize()
    return values.to(dtype).float()


def layer(
    x: T, w13: Any, w2: Any, ids: T, rows_of: Callable[[T, int], T], gemm1: Callable[[T, T, T], T]
) -> dict[str, T]:
    """Compute a layer's stages expert by expert.

    Args:
        x, w13, w2, ids: the op's.
        rows_of: which slots (t * k + j) an expert works on.
        gemm1: h of some rows from the rows of x, the slots and the weight.
    """
    (tokens, H), k, D = x.shape, ids.shape[1], x.dtype
    h, a, y = (torch.zeros(tokens * k, n, dtype=D) for n in (w13.N, w2.K, H))
    for e in range(w13.E):
        slots = rows_of(ids, e)
        h[slots] = gemm1(x[slots // k], slots, dense(w13.expert(e), D)).to(D)
        gate, up = h[slots].float().chunk(2, 1)
        a[slots] = (torch.nn.functional.silu(gate).to(D).float() * up).to(D)
        y[slots] = (a[slots].float() @ dense(w2.expert(e), D).T).to(D)
    return {"h": h, "a": a, "y": y}


def _summed(stages: dict[str, T], weights: T) -> dict[str, T]:
    y = stages["y"]
    out = (y.float().view(*weights.shape, y.shape[1]) * weights[..., None]).sum(1)
    return {**stages, "out": out.to(y.dtype)}


def _plain(rows: T, slots: T, w: T) -> T:
    return rows.float() @ w.T


def _slots(ids: T, e: int) -> T:
    return (ids.reshape(-1) == e).nonzero().flatten()


def first_slots(x: T, w13: Any, w2: Any, weights: T, ids: T) -> dict[str, T]:
    """Stop at an expert's first slot of a token, which is all there is where ids are distinct."""
    k = ids.shape[1]

    def firsts(ids: T, e: int) -> T:
        here = ids == e
        tokens = here.any(1).nonzero().flatten()
        return tokens * k + here[tokens].int().argmax(1)

    return _summed(layer(x, w13, w2, ids, firsts, _plain), weights)


def lists_of_rows(x: T, w13: Any, w2: Any, weights: T, ids: T) -> dict[str, T]:
    """Keep each expert's rows in a list with a place for every slot."""
    lists, count = torch.zeros(w13.E, max(ids.numel(), 1), dtype=torch.int64), [0] * w13.E
    for slot, e in enumerate(ids.reshape(-1).tolist()):
        if e >= 0:
            lists[e, count[e]] = slot
            count[e] += 1
    return _summed(layer(x, w13, w2, ids, lambda ids, e: lists[e, : count[e]], _plain), weights)


def before_silu(x: T, w13: Any, w2: Any, weights: T, ids: T) -> T:
    """Multiply GEMM1's sums by the router weight."""
    weight = weights.reshape(-1, 1)
    stages = layer(x, w13, w2, ids, _slots, lambda rows, slots, w: (rows.float() @ w.T) * weight[slots])
    return _summed(stages, torch.ones_like(weights))["out"]


def on_x(x: T, w13: Any, w2: Any, weights: T, ids: T) -> T:
    """Multiply x by the router weight, in D, before GEMM1."""
    weight = weights.reshape(-1, 1)
    weighted = lambda rows, slots: (rows * weight[slots].to(rows.dtype)).float()
    stages = layer(x, w13, w2, ids, _slots, lambda rows, slots, w: weighted(rows, slots) @ w.T)
    return _summed(stages, torch.ones_like(weights))["out"]


def permuted(x: T, ids: T, num_experts: int, expert_map: T | None) -> tuple[T, T, T]:
    """Sort rows by expert, read through the map; what is elsewhere, or ignored, comes last."""
    k, flat, local = ids.shape[1], ids.reshape(-1).long(), num_experts
    if expert_map is not None:
        local = int((expert_map >= 0).sum())
        flat = torch.where(flat < 0, -1, expert_map.long()[flat.clamp(min=0)])
    key = torch.where(flat < 0, local, flat)
    order = torch.sort(key, stable=True).indices
    ends = torch.bincount(key, minlength=local + 1)[:local].cumsum(0)
    inv = torch.empty(ids.numel(), dtype=torch.int32)
    inv[order] = torch.arange(ids.numel(), dtype=torch.int32)
    return x[order // max(k, 1)], torch.cat([torch.zeros(1, dtype=torch.int64), ends]), inv


def tiled(x: T, w: Any, offsets: T) -> T:
    """Multiply tile by tile, from a table that each call makes."""
    table = [(e, m, min(m + 4, int(offsets[e + 1])))
             for e in range(w.E) for m in range(int(offsets[e]), int(offsets[e + 1]), 4)]  # fmt: skip
    out = torch.zeros(x.shape[0], w.N, dtype=x.dtype)
    for e, start, stop in table:
        out[start:stop] = (x[start:stop].float() @ dense(w.expert(e), x.dtype).T).to(x.dtype)
    return out


def eight_parts(x: T, w: Any, bias: T | None) -> T:
    """Cut K in 8 parts, round each part's sum to D, add them in fp32."""
    values, step = dense(w, x.dtype), -(-w.K // 8 // 32) * 32
    parts = [(x[:, i : i + step].float() @ values[:, i : i + step].T).to(x.dtype) for i in range(0, w.K, step)]
    return torch.stack(parts).float().sum(0).to(x.dtype)


def scaled_after_store(x: T, w: Any, bias: T | None) -> T:
    """Round the sum of codes to D, then multiply by the scale in D."""
    sums = (x.float() @ (w.codes().float() - 8).T).to(x.dtype)
    scaled: T = sums.float() * w.scale.mT.float()
    return scaled.to(x.dtype)


def unmasked_v1(x: T, w: Any, bias: T | None) -> T:
    """Add 1 to a stored zero point without a mask."""
    zero = w.zeros().float()
    zero = torch.where(zero == 0, 16.0, zero).repeat_interleave(w.K // zero.shape[1], -1)
    scale = w.scale.float().repeat_interleave(w.K // w.scale.shape[1], -1)
    return (x.float() @ ((w.codes().float() - zero) * scale).to(x.dtype).float().T).to(x.dtype)


def truncated(x: T, w: Any, bias: T | None) -> T:
    """Compute in fp32 and truncate bf16 stores."""
    y = x.float() @ w.dequantize().T
    if x.dtype == torch.bfloat16:
        return (y.view(torch.int32) & ~0xFFFF).view(torch.float32).to(torch.bfloat16)
    return y.to(x.dtype)
