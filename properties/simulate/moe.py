"""Steps of a simulated MoE layer between and after its GEMMs, the layer itself stage by stage, and its small ops."""

from __future__ import annotations

import math
from typing import Any

import torch

from moeracle.ref.weights.weight import Int4Weight

from .gemm import Block, GemmSteps
from .orders import flush, shuffle, truncate
from .ranks import RankSteps
from .weights import rounded


class LayerSteps(RankSteps, GemmSteps):
    """Routing a layer's rows, silu and the sum over slots; each method is a step that a fault may replace."""

    def experts_of(self, topk_ids: torch.Tensor, num_experts: int) -> torch.Tensor:
        """Read the expert of each slot, -1 for slots that do nothing: int64 [T*k]."""
        return topk_ids.flatten().long()

    def local_ids(self, expert_map: torch.Tensor) -> torch.Tensor:
        """Read this rank's id of each expert, -1 for one elsewhere: int64 [E]."""
        return expert_map.long()

    def spans(self, experts: torch.Tensor) -> list[Block]:
        """Sort slots by expert, each expert's in slot order."""
        return [Block(e, (experts == e).nonzero().flatten()) for e in experts.unique().tolist() if e >= 0]

    def halves(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split h [R, 2I] into gate and up, fp32."""
        gate, up = h.float().chunk(2, 1)
        return gate, up

    def silu(self, gate: torch.Tensor) -> torch.Tensor:
        """Compute gate / (1 + exp(-gate)) in fp32, or the contract's other activation of the gate."""
        how = self.contract.activation
        if how.kind == "gelu":
            return gate * 0.5 * (1 + torch.erf(gate * math.sqrt(0.5)))
        if how.kind == "gelu_tanh":
            cube = gate * gate * gate
            return gate * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * cube)))
        if how.kind == "relu2":
            return gate.clamp(min=0).square()
        return gate / (1 + torch.exp(-(gate if how.alpha == 1 else gate * self.alpha())))

    def alpha(self) -> float:
        """Read what multiplies the gate inside of the sigmoid."""
        return self.contract.activation.alpha

    def limit(self) -> float | None:
        """Read the largest gate."""
        return self.contract.activation.limit

    def limited_gate(self, gate: torch.Tensor) -> torch.Tensor:
        """Keep the gate, before its activation or after it, below the limit."""
        limit = self.limit()
        return gate if limit is None else gate.clamp(max=limit)

    def limited_up(self, up: torch.Tensor) -> torch.Tensor:
        """Keep up within plus and minus the limit."""
        limit = self.limit()
        return up if limit is None else up.clamp(-limit, limit)

    def shifted_up(self, up: torch.Tensor) -> torch.Tensor:
        """Add what the activation adds to up, in fp32."""
        return up + self.contract.activation.up if self.contract.activation.up else up

    def activation(self, h: torch.Tensor, dtype: torch.dtype, gated: bool = True) -> torch.Tensor:
        """Compute silu(gate) * up, rounded to D in between where the contract says so; or silu(h) alone: [R, I]."""
        gate, up = self.halves(h) if gated else (h.float(), None)
        after = self.contract.activation.after
        silu = self.limited_gate(self.silu(gate)) if after else self.silu(self.limited_gate(gate))
        if up is None:
            return silu
        return self.product(self.store_silu(silu, dtype), self.shifted_up(self.limited_up(up)), dtype)

    def store_silu(self, silu: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Round silu(gate) as the contract does before it meets up: fp32."""
        way = self.contract.silu_rounding(dtype)
        return silu if way is None else rounded(silu, dtype, way).float()

    def product(self, silu: torch.Tensor, up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Multiply silu(gate) and up in fp32."""
        return silu * up

    def slot_rows(self, y: torch.Tensor) -> torch.Tensor:
        """Read the rows [T, k, H] that are summed for each token."""
        return y

    def topk_sum(self, terms: torch.Tensor, dtype: torch.dtype, multiplied: bool) -> torch.Tensor:
        """Add slot by slot, in fp32 or in D: [T, H] fp32. `multiplied`: the terms are products, not stored rows."""
        in_dtype, way = self.contract.sum_in_dtype(terms.shape[1]), self.contract.rounding("out", dtype)
        total = torch.zeros_like(terms[:, 0], dtype=torch.float32)
        slots = list(terms.unbind(1))
        if self.contract.slot_order == "any" and not self.contract.deterministic:
            shuffle(slots)
        for term in slots:
            if in_dtype:
                term = rounded(term, dtype, way).float() if multiplied else term
                total = rounded(total + term, dtype, way).float()
            elif self.contract.adder.sums_nearest:
                total = total + term
            else:
                total = truncate(total.double() + term.double())
        return flush(total) if self.contract.ftz else total

    def combine(
        self, y: torch.Tensor, weights: torch.Tensor | None, dtype: torch.dtype, experts: torch.Tensor
    ) -> torch.Tensor:
        """Sum y [T, k, H] over k, times weights [T, k] where they enter here: D [T, H].

        experts: [T, k], what a slot_order of "experts" sorts slots by.
        """
        return self.store(self.summed(y, weights, dtype, experts), dtype, "out")

    def summed(
        self, y: torch.Tensor, weights: torch.Tensor | None, dtype: torch.dtype, experts: torch.Tensor
    ) -> torch.Tensor:
        """Sum as `combine` does, before the store: fp32 [T, H]."""
        rows = self.slot_rows(y.float())
        terms = rows if weights is None else rows * weights[:, :, None]
        if self.contract.slot_order == "experts":
            order = experts.argsort(dim=1, stable=True)[:, :, None]
            terms = terms.gather(1, order.expand(terms.shape))
        return self.topk_sum(terms, dtype, weights is not None)


class LayerOps(LayerSteps):
    """moe_w4a16, its stages one by one, silu_and_mul and moe_unpermute."""

    def silu_and_mul(self, h: torch.Tensor) -> torch.Tensor:
        return self.result(self.stored(self.store(self.activation(self.read(h), h.dtype), h.dtype, "out"), "a"))

    def moe_unpermute(self, y: torch.Tensor, topk_weights: torch.Tensor, inv: torch.Tensor) -> torch.Tensor:
        T, k = topk_weights.shape
        rows = self.unpermuted(self.read(y), inv).reshape(T, k, y.shape[1])
        return self.result(self.combine(rows, self.slot_weights(topk_weights), y.dtype, inv.long().reshape(T, k)))

    def unpermuted(self, y: torch.Tensor, inv: torch.Tensor) -> torch.Tensor:
        """Read y's rows in slot order."""
        return y[inv.long()]

    def moe_w4a16(
        self,
        x: torch.Tensor,
        w13: Int4Weight,
        w2: Int4Weight,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        expert_map: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Run the layer; return the stages that the contract stores."""
        args = {"x": x, "w13": w13, "w2": w2, "topk_weights": topk_weights, "topk_ids": topk_ids}
        args |= {} if expert_map is None else {"expert_map": expert_map}
        stages: dict[str, torch.Tensor] = {}
        partial = () if self.ranks is None else ("partial",)
        for stage in ("h", "a", "y", *partial, "out"):
            stages[stage] = self.stage(stage, args, stages)
        stages["out"] = self.result(stages["out"])
        return {name: stages[name] for name in stages if name in (*self.contract.stores, *partial)}

    def stage(self, stage: str, args: dict[str, Any], before: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute one stage of moe_w4a16 from the stage before it.

        Args:
            stage: h, a, y, partial (over ranks) or out.
            args: the op's arguments by name.
            before: the stages before this one; "a" reads h, "y" reads a, "partial" and "out" read y, and "out" reads
                partial where it is there.
        Returns:
            the stage in slot order, in D if the contract stores it, else fp32; partial [ranks*T, H].
        """
        x, ids = self.read(args["x"]), args["topk_ids"]
        T, k = ids.shape
        weights, dtype = self.slot_weights(args["topk_weights"]), x.dtype
        mapping = args.get("expert_map")
        experts = self.experts_of(ids, args["w13"].E if mapping is None else len(mapping))
        if mapping is not None:
            experts = torch.where(experts < 0, experts, self.local_ids(mapping)[experts.clamp(min=0)])
        enters, of_row = self.contract.router_weight, weights.reshape(-1, 1)
        if stage == "h":
            weight = of_row if enters in ("input", "input_dtype") else None
            rows = self.spans(experts)
            source = lambda slots: self.source_row(slots, k)
            return self.routed(x, args["w13"], rows, source, T * k, "w13", "h", dtype, weight)
        if stage == "a":
            gated = args["w13"].N == 2 * args["w2"].K
            return self.stored(self.store(self.activation(before["h"], dtype, gated), dtype, "a"), "a")
        if stage == "y":
            weight = of_row if enters.startswith("gemm2") else None
            rows = self.spans(experts)
            return self.routed(before["a"], args["w2"], rows, lambda r: r, T * k, "w2", "y", dtype, weight)
        y = before["y"].reshape(T, k, args["w2"].N)
        y = torch.where((experts >= 0).reshape(T, k, 1), y, torch.zeros_like(y))  # idle rows may hold anything
        entering, ids = weights if enters == "unpermute" else None, experts.reshape(T, k)
        if self.ranks is None:
            return self.gathered(self.combine(y, entering, dtype, ids))
        if stage == "out" and "partial" in before:
            partials = before["partial"].reshape(self.ranks.count, T, y.shape[2])
        else:
            mine = self.counted(ids, args["w13"].E)
            sums = [self.summed(torch.where(of_rank[:, :, None], y, 0), entering, dtype, ids) for of_rank in mine]
            partials = torch.stack([self.keep_partial(one, rank, dtype) for rank, one in enumerate(sums)])
        if stage == "partial":
            return partials.flatten(0, 1)
        return self.gathered(self.store(self.joined_ranks(self.collected(partials), dtype), dtype, "out"))
