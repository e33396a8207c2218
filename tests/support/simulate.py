"""Legal kernels for every op, simulated step by step: what a contract names is rounded, everything else is fp32.

Nothing here calls the reference's operations or its bounds: a simulation takes its weights apart by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from moeracle.properties.cases.case import Case
from moeracle.ref.contracts.contract import Contract, contract
from moeracle.ref.ops.padded_gemm import infer_block_size

from .orders import dot, total

SILU = {
    "exp": lambda x: x / (1 + torch.exp(-x)),
    "exp2": lambda x: x / (1 + torch.exp2(-x * 1.44269504)),
    "rcp": lambda x: x * (1 / (1 + torch.exp(-x))),
    "torch": torch.nn.functional.silu,
}


def to(dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    """Round fp32 values to D and come back."""
    return x.to(dtype).float()


@dataclass
class Simulated:
    """A kernel that keeps a contract; what run_trial and judge ask of one.

    Args:
        op: which op.
        rules: the contract it keeps, and is judged under.
        order: how it adds, a name of orders.ORDERS.
        stages: which stages moe_w4a16 returns beside out; None returns out alone, as a tensor.
        silu: which form of silu.
    """

    op: str
    rules: Contract | str = "grouped"
    order: str = "sequential"
    stages: str | None = None
    silu: str = "exp"
    device: str = "cpu"
    name: str = "simulated"

    @property
    def contract(self) -> Contract:
        return contract(self.rules)

    def why_not(self, case: Case) -> str | None:
        return None

    def contract_for(self, case: Case) -> Contract:
        return self.contract

    def fn(self, *args: Any) -> Any:
        return getattr(self, self.op)(*args)

    def gemm(self, x: torch.Tensor, w: Any) -> torch.Tensor:
        """x [M, K] times one int4 matrix, accumulated in fp32 and not yet rounded."""
        c, dtype, G = self.contract, x.dtype, w.G
        u, s = w.codes().float(), w.scale.float()
        zeros = w.zeros()
        z = torch.full_like(s, 8.0) if zeros is None else zeros.float()
        spread = lambda t: t.repeat_interleave(G, 1)
        if c.weight in ("cast", "exact"):
            weight = (u - spread(z)) * spread(s)
            return dot(x.float(), to(dtype, weight) if c.weight == "cast" else weight, self.order, dtype)
        parts = []
        offset = c.zero_offset
        for g in range(s.shape[1]):
            a, codes = x[:, g * G : (g + 1) * G].float(), u[:, g * G : (g + 1) * G]
            if c.weight == "post":
                parts.append(dot(a, codes - z[:, g : g + 1], self.order, dtype) * s[:, g])
            else:
                of_zero = dot(a, torch.ones(1, a.shape[1]), self.order, dtype) * (offset + z[:, g])
                parts.append((dot(a, codes + offset, self.order, dtype) - of_zero) * s[:, g])
        return total(torch.stack(parts, -1), self.order, dtype)

    def unpack_int4(self, w: Any) -> torch.Tensor:
        return w.codes()

    def dequantize_int4(self, w: Any) -> torch.Tensor:
        return w.dequantize().to(w.scale.dtype)

    def int4_linear(self, x: torch.Tensor, w: Any, bias: torch.Tensor | None) -> torch.Tensor:
        y = self.gemm(x, w)
        return (y if bias is None else y + bias.float()).to(x.dtype)

    def grouped_gemm(self, x: torch.Tensor, w: Any, expert_offsets: torch.Tensor) -> torch.Tensor:
        y = torch.empty(x.shape[0], w.N, dtype=x.dtype)  # rows of no expert stay as they were
        offsets = expert_offsets.tolist()
        for e in range(w.E):
            if offsets[e + 1] > offsets[e]:
                rows = slice(offsets[e], offsets[e + 1])
                y[rows] = self.gemm(x[rows], w.expert(e)).to(x.dtype)
        return y

    def padded_gemm(
        self, x: torch.Tensor, w: Any, ids: torch.Tensor, experts: torch.Tensor, end: Any, weights: Any, top_k: int
    ) -> torch.Tensor:
        R = x.shape[0] * top_k
        y = torch.zeros(R, w.N, dtype=x.dtype)
        block = infer_block_size(len(ids), len(experts), R, w.E, int(end))
        for b, e in enumerate(experts.tolist()):
            rows = ids[b * block : (b + 1) * block].long()
            rows = rows[rows < R]
            if b * block < int(end) and e >= 0 and len(rows):
                acc = self.gemm(x[rows // top_k], w.expert(e))
                if weights is not None:
                    acc = self.weighed(acc, weights.reshape(-1, 1)[rows], x.dtype)
                y[rows] = acc.to(x.dtype)
        return y

    def weighed(self, acc: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Multiply by the router weight as GEMM2's epilogue does."""
        return to(dtype, acc) * to(dtype, weight) if self.contract.router_weight == "gemm2_dtype" else acc * weight

    def silu_and_mul(self, h: torch.Tensor) -> torch.Tensor:
        gate, up = h.float().chunk(2, 1)
        s = SILU[self.silu](gate)
        return ((to(h.dtype, s) if self.contract.silu == "rounded" else s) * up).to(h.dtype)

    def slots(self, terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Add [T, k, H] over k: in D where the contract says so, else in fp32."""
        T, k, H = terms.shape
        out = torch.zeros(T, H)
        in_dtype = self.contract.sum_in_dtype(k)
        for j in reversed(range(k)) if self.order == "reversed" and not in_dtype else range(k):
            out = to(dtype, out + to(dtype, terms[:, j])) if in_dtype else out + terms[:, j]
        return out.to(dtype)

    def moe_unpermute(self, y: torch.Tensor, topk_weights: torch.Tensor, inv: torch.Tensor) -> torch.Tensor:
        terms = y.float()[inv.long()].reshape(*topk_weights.shape, y.shape[1]) * topk_weights[:, :, None]
        return self.slots(terms, y.dtype)

    def moe_w4a16(self, x: torch.Tensor, w13: Any, w2: Any, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> Any:
        (T, k), c, dtype = topk_ids.shape, self.contract, x.dtype
        R, flat, weight = T * k, topk_ids.flatten(), topk_weights.reshape(-1, 1)
        kept = lambda name, t: to(dtype, t) if name in c.stores else t
        h, a, y = (torch.full((R, n), torch.nan) for n in (w13.N, w2.K, w2.N))  # rows of ignored slots stay NaN
        for e in range(w13.E):
            rows = (flat == e).nonzero().flatten()
            if not len(rows):
                continue
            acc = self.gemm(x[rows // k], w13.expert(e))
            h[rows] = kept("h", acc * weight[rows] if c.router_weight == "input" else acc)
            gate, up = h[rows].chunk(2, 1)
            s = SILU[self.silu](gate)
            a[rows] = kept("a", (to(dtype, s) if c.silu == "rounded" else s) * up)
            operand = a[rows].to(dtype) if "a" in c.stores else a[rows]
            acc = self.gemm(operand, w2.expert(e))
            y[rows] = kept("y", self.weighed(acc, weight[rows], dtype) if "gemm2" in c.router_weight else acc)
        terms = y.reshape(T, k, w2.N) * (topk_weights[:, :, None] if c.router_weight == "unpermute" else 1)
        out = self.slots(torch.where((topk_ids < 0)[:, :, None], 0.0, terms), dtype)
        if self.stages is None:
            return out
        of_stage = {"h": h.to(dtype), "a": a.to(dtype), "y": y.to(dtype)}
        return {name: of_stage[name] for name in self.stages if name in c.stores} | {"out": out}

    def int8_lm_head(self, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: Any) -> torch.Tensor:
        V, K = codes.shape
        per_group = scale.reshape(V, -1)
        G = K // per_group.shape[1]
        chunk = 16 if G % 16 == 0 else G
        parts = [
            dot(x[:, k : k + chunk].float(), codes[:, k : k + chunk].float(), self.order, x.dtype)
            * per_group[:, k // G]
            for k in range(0, K, chunk)
        ]
        y = total(torch.stack(parts, -1), self.order, x.dtype)
        return (y if bias is None else y + bias.float()).to(x.dtype)
