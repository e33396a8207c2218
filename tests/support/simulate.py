"""Legal kernels for every op, simulated step by step: what a contract names is rounded, everything else is fp32.

Nothing here calls the reference's operations or its bounds: a simulation takes its weights apart by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from moeracle.properties.cases.case import Case
from moeracle.ref.contracts.contract import Contract, contract
from moeracle.ref.ops.padded_gemm import infer_block_size
from moeracle.ref.rounding import round_in_fp64

from .orders import ORDERS, dot, total

SILU = {
    "exp": lambda x: x / (1 + torch.exp(-x)),
    "exp2": lambda x: x / (1 + torch.exp2(-x * 1.44269504)),
    "rcp": lambda x: x * (1 / (1 + torch.exp(-x))),
    "torch": torch.nn.functional.silu,
}


def to(dtype: torch.dtype, x: torch.Tensor, way: str = "rne") -> torch.Tensor:
    """Round fp32 values to D, to nearest or toward zero ("rtz"), and come back."""
    return x.to(dtype).float() if way == "rne" else round_in_fp64(x.double(), dtype, way).float()


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

    def stored(self, x: torch.Tensor, dtype: torch.dtype, stage: str = "out") -> torch.Tensor:
        """Round fp32 values as a stage's store does: D."""
        return to(dtype, x, self.contract.rounding(stage, dtype)).to(dtype)

    def some_order(self, n: int) -> list[int]:
        """Return an order of n things that are added one after another in any: another one for each order of sums."""
        seed = list(ORDERS).index(self.order) if self.order in ORDERS else len(ORDERS)
        return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()

    def gemm(self, x: torch.Tensor, w: Any, dtype: torch.dtype, weight: torch.Tensor | None = None) -> torch.Tensor:
        """x [M, K] times one int4 matrix, accumulated in fp32 and not yet rounded.

        weight: [M, 1], router weights that multiply the sums, or (gemm2) what is stored of each part of K.
        """
        c, K, cut = self.contract, x.shape[1], self.contract.parts
        s = to(dtype, w.scale.float()) if c.scale_cast else w.scale.float()
        late = s.shape[1] == 1 and c.one_group == "after_store"
        zeros = w.zeros()
        z = torch.full_like(s, 8.0) if zeros is None else zeros.float()
        if cut is None:
            sums = self.part(x, w, s, z, late, dtype, list(range(K)))
        else:
            length = cut.length or math.ceil(math.ceil(K / cut.count) / cut.unit) * cut.unit
            of = lambda k: k // cut.deal % cut.count if cut.deal else k // length
            cuts = [[k for k in range(K) if of(k) == i] for i in sorted({of(k) for k in range(K)})]
            parts = [self.part(x[:, at], w, s, z, late, dtype, at) for at in cuts]
            if cut.kept == "dtype":
                if weight is not None and c.router_weight == "gemm2":
                    parts, weight = [part * weight for part in parts], None
                parts = [self.stored(part, dtype).float() for part in parts]
            sums = self.joined(parts, dtype)
        if late:
            sums = self.stored(sums, dtype).float() * s.to(dtype).float().T
        return sums if weight is None else sums * weight

    def joined(self, parts: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Add the parts of K in the contract's order, in fp32 or in D."""
        cut = self.contract.parts
        in_d = lambda x: self.stored(x, dtype).float() if cut.add == "dtype" else x
        parts = [in_d(part) for part in parts]
        if cut.join == "pairwise":
            while len(parts) > 1:
                pairs = [in_d(x + y) for x, y in zip(parts[::2], parts[1::2], strict=False)]
                parts = pairs + parts[2 * len(pairs) :]
            return parts[0]
        assert cut.join in ("any", "sequential"), cut.join
        order = self.some_order(len(parts)) if cut.join == "any" else range(len(parts))
        sums = torch.zeros_like(parts[0])
        for i in order:
            sums = in_d(sums + parts[i])
        return sums

    def part(
        self, x: torch.Tensor, w: Any, s: torch.Tensor, z: torch.Tensor, late: bool, dtype: torch.dtype, at: list[int]
    ) -> torch.Tensor:
        """Add the products of x [M, n], the inputs at `at`; s and z are [N, K/G], `late` leaves s out."""
        c, G, u = self.contract, w.G, w.codes().float()
        spread = lambda t: t.repeat_interleave(G, 1)
        if late or c.weight in ("cast", "exact"):
            weight = u - spread(z) if late else (u - spread(z)) * spread(s)
            weight = to(dtype, weight, c.weight_rounding) if c.weight == "cast" else weight
            return dot(x.float(), weight[:, at], self.order, dtype)
        scaled = []
        offset = 128 if c.zero_offset == 1024 and dtype == torch.bfloat16 else c.zero_offset
        for g in sorted({k // G for k in at}):
            here = [i for i, k in enumerate(at) if k // G == g]
            a, codes = x[:, here].float(), u[:, [at[i] for i in here]]
            if c.weight == "post":
                scaled.append(dot(a, codes - z[:, g : g + 1], self.order, dtype) * s[:, g])
            else:
                of_zero = dot(a, torch.ones(1, a.shape[1]), self.order, dtype) * (offset + z[:, g])
                scaled.append((dot(a, codes + offset, self.order, dtype) - of_zero) * s[:, g])
        return total(torch.stack(scaled, -1), self.order, dtype)

    def unpack_int4(self, w: Any) -> torch.Tensor:
        return w.codes()

    def dequantize_int4(self, w: Any) -> torch.Tensor:
        return w.dequantize().to(w.scale.dtype)

    def int4_linear(self, x: torch.Tensor, w: Any, bias: torch.Tensor | None) -> torch.Tensor:
        return self.stored(self.biased(self.gemm(x, w, x.dtype), bias, x.dtype), x.dtype)

    def biased(self, y: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Add a bias to fp32 sums, or to what was stored of them."""
        if bias is None:
            return y
        return (self.stored(y, dtype).float() if self.contract.bias == "stored" else y) + bias.float()

    def grouped_gemm(self, x: torch.Tensor, w: Any, expert_offsets: torch.Tensor) -> torch.Tensor:
        y = torch.empty(x.shape[0], w.N, dtype=x.dtype)  # rows of no expert stay as they were
        offsets = expert_offsets.tolist()
        for e in range(w.E):
            if offsets[e + 1] > offsets[e]:
                rows = slice(offsets[e], offsets[e + 1])
                y[rows] = self.stored(self.gemm(x[rows], w.expert(e), x.dtype), x.dtype)
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
                of_rows = None if weights is None else weights.reshape(-1, 1)[rows]
                y[rows] = self.stored(self.weighed(x[rows // top_k], w.expert(e), x.dtype, of_rows), x.dtype)
        return y

    def weighed(
        self, x: torch.Tensor, w: Any, dtype: torch.dtype, weight: torch.Tensor | None, stage: str = "out"
    ) -> torch.Tensor:
        """A GEMM times router weights [M, 1] as its epilogue multiplies them: fp32, not yet rounded."""
        if weight is None or self.contract.router_weight != "gemm2_dtype":
            return self.gemm(x, w, dtype, weight)
        return self.stored(self.gemm(x, w, dtype), dtype, stage).float() * to(dtype, weight)

    def activated(self, h: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """silu(gate) * up in fp32, not yet rounded."""
        gate, up = h.float().chunk(2, 1)
        s = SILU[self.silu](gate)
        silu = self.contract.silu
        way = self.contract.rounding("a", dtype) if silu == "rounded" else silu
        return (s if silu == "fp32" else to(dtype, s, way)) * up

    def silu_and_mul(self, h: torch.Tensor) -> torch.Tensor:
        return self.stored(self.activated(h, h.dtype), h.dtype)

    def slots(self, terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Add [T, k, H] over k: in D where the contract says so, else in fp32."""
        T, k, H = terms.shape
        out = torch.zeros(T, H)
        in_dtype = self.contract.sum_in_dtype(k)
        kept = lambda x: self.stored(x, dtype).float() if in_dtype else x
        for j in range(k) if in_dtype and self.contract.slot_order != "any" else self.some_order(k):
            out = kept(out + kept(terms[:, j]))
        return self.stored(out, dtype)

    def by_expert(self, terms: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """Sort [T, k, H] by experts [T, k] where the contract adds in that order."""
        if self.contract.slot_order != "experts":
            return terms
        return torch.stack([of_token[ids.argsort(stable=True)] for of_token, ids in zip(terms, experts, strict=True)])

    def moe_unpermute(self, y: torch.Tensor, topk_weights: torch.Tensor, inv: torch.Tensor) -> torch.Tensor:
        T, k = topk_weights.shape
        terms = y.float()[inv.long()].reshape(T, k, y.shape[1]) * topk_weights[:, :, None]
        return self.slots(self.by_expert(terms, inv.reshape(T, k)) if T else terms, y.dtype)

    def moe_w4a16(self, x: torch.Tensor, w13: Any, w2: Any, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> Any:
        (T, k), c, dtype = topk_ids.shape, self.contract, x.dtype
        R, flat, weight = T * k, topk_ids.flatten(), topk_weights.reshape(-1, 1)
        kept = lambda name, t: self.stored(t, dtype, name).float() if name in c.stores else t
        h, a, y = (torch.full((R, n), torch.nan) for n in (w13.N, w2.K, w2.N))  # rows of ignored slots stay NaN
        for e in range(w13.E):
            rows = (flat == e).nonzero().flatten()
            if not len(rows):
                continue
            operand = x[rows // k]
            if c.router_weight == "input_dtype":
                operand = to(dtype, operand.float() * to(dtype, weight[rows])).to(dtype)
            acc = self.gemm(operand, w13.expert(e), dtype)
            h[rows] = kept("h", acc * weight[rows] if c.router_weight == "input" else acc)
            a[rows] = kept("a", self.activated(h[rows], dtype))
            of_rows = weight[rows] if "gemm2" in c.router_weight else None
            y[rows] = kept("y", self.weighed(a[rows], w2.expert(e), dtype, of_rows, "y"))
        terms = y.reshape(T, k, w2.N) * (topk_weights[:, :, None] if c.router_weight == "unpermute" else 1)
        terms = torch.where((topk_ids < 0)[:, :, None], 0.0, terms)
        out = self.slots(self.by_expert(terms, topk_ids) if T else terms, dtype)
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
        return self.stored(self.biased(y, bias, x.dtype), x.dtype)
