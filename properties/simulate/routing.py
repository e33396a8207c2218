"""A simulated router, the two dispatches, the int8 quantizer and the int8 lm_head, step by step."""

from __future__ import annotations

import itertools

import torch

from .moe import LayerSteps

DOT_RUN = 16  # the int8 dot product adds so many products before it scales their sum


class RoutingOps(LayerSteps):
    """topk_softmax, moe_align_block_size and moe_permute; each method below an op's is a step."""

    def topk_softmax(self, logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.scores(logits)
        ids = self.choose(scores, top_k)
        weights = scores.gather(1, ids)
        weights = self.renormalized(weights) if renormalize else weights
        return weights, ids.to(torch.int32)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax over all experts, in fp32; what is not finite becomes 0."""
        wide = logits.double()  # so that equal logits score equally wherever they stand
        powers = torch.exp(wide - wide.amax(1, keepdim=True))
        scores = (powers / powers.sum(1, keepdim=True)).float()
        return torch.where(scores.isfinite(), scores, 0.0)

    def choose(self, scores: torch.Tensor, top_k: int) -> torch.Tensor:
        """Take the largest score k times, the lowest id of equal ones: int64 [T, k]."""
        left, chosen = scores.clone(), []
        for _ in range(top_k):
            best = (left == left.amax(1, keepdim=True)).int().argmax(1, keepdim=True)  # argmax finds the first 1
            chosen.append(best)
            left.scatter_(1, best, -torch.inf)
        return torch.cat(chosen, 1)

    def renormalized(self, weights: torch.Tensor) -> torch.Tensor:
        """Divide by the sum over k, where there is one."""
        total = torch.zeros_like(weights[:, :1])
        for j in range(weights.shape[1]):
            total = total + weights[:, j : j + 1]
        return weights / torch.where(total > 0, total, 1.0)

    def moe_align_block_size(
        self, topk_ids: torch.Tensor, block_size: int, num_experts: int, expert_map: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        B, E, R, device = block_size, num_experts, topk_ids.numel(), topk_ids.device
        experts = self.experts_of(topk_ids, E)
        length = R + E * (B - 1)
        sorted_ids = torch.full((length,), R, dtype=torch.int32, device=device)
        blocks = torch.full((-(-length // B),), self.tail_expert(), dtype=torch.int32, device=device)
        local_ids = None if expert_map is None else self.local_ids(expert_map)
        end = 0
        for e, rows in self.spans(experts):
            sorted_ids[end : end + len(rows)] = rows.int()
            count = self.padded_blocks(len(rows), B)
            blocks[end // B : end // B + count] = e if local_ids is None else int(local_ids[e])
            end += count * B
        return sorted_ids, blocks, torch.tensor([end], dtype=torch.int32, device=device)

    def tail_expert(self) -> int:
        """Return what expert_ids holds for blocks past the end."""
        return -1

    def padded_blocks(self, rows: int, block_size: int) -> int:
        """Return how many blocks an expert's rows take."""
        return -(-rows // block_size)

    def moe_permute(
        self, x: torch.Tensor, topk_ids: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        k = topk_ids.shape[1]
        experts = self.experts_of(topk_ids, num_experts)
        local = num_experts
        if expert_map is not None:
            local = int((expert_map >= 0).sum())
            experts = torch.where(experts < 0, experts, self.local_ids(expert_map)[experts.clamp(min=0)])
        order = self.row_order(torch.where(experts < 0, local, experts))
        counts = [int((experts == e).sum()) for e in range(local)]
        offsets = torch.tensor([0, *counts], device=x.device).cumsum(0)
        return self.read(x)[self.source_row(order, k)], offsets, self.inverse(order, experts, k).to(torch.int32)

    def row_order(self, experts: torch.Tensor) -> torch.Tensor:
        """Sort slots by expert, keeping the order of the slots of one expert."""
        return torch.sort(experts, stable=True).indices

    def inverse(self, order: torch.Tensor, experts: torch.Tensor, top_k: int) -> torch.Tensor:
        """Return each slot's row."""
        inv = torch.zeros_like(order)
        inv[order] = torch.arange(len(order), device=order.device)
        return inv


class Int8Ops(LayerSteps):
    """quantize_int8 and int8_lm_head; each method below an op's is a step."""

    def quantize_int8(self, w: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        V, K = w.shape
        groups = self.to_quantize(w).reshape(V, 1 if group_size == -1 else K // group_size, -1)
        scale = self.int8_scale(groups.abs().amax(-1), w.dtype)
        codes = self.int8_codes(groups, scale[..., None], w.dtype).reshape(V, K)
        return codes.to(torch.int8), scale[:, 0].float() if group_size == -1 else scale.float()

    def to_quantize(self, w: torch.Tensor) -> torch.Tensor:
        """Read the weights to quantize: fp32."""
        return w.float()

    def int8_scale(self, amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return max(amax, 1e-10) / 127."""
        return amax.clamp(min=1e-10) / 127

    def int8_codes(self, w: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Round w / scale half to even and clamp to -128..127."""
        return torch.round(w / scale).clamp(-128, 127)

    def int8_lm_head(
        self, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        V, K = codes.shape
        per_group = self.lm_scales(scale.float().reshape(V, -1))
        group, a = self.lm_group(K, per_group.shape[1]), self.operand(self.read(x), "codes")
        values = self.lm_codes(codes)
        acc = a.new_zeros(a.shape[0], V)
        for start in range(0, K, DOT_RUN):
            for part in _same_group(group[start : start + DOT_RUN], start):
                acc += self.lm_partial(a[:, part], values[:, part], per_group[:, group[part.start]], x.dtype)
        acc = acc if bias is None else self.bias(acc, bias)
        return self.result(self.stored(self.store(acc, x.dtype, "out"), "out"))

    def lm_partial(self, a: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Sum one run of products and scale the sum."""
        return self.accumulate(a, codes, dtype) * scale

    def lm_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Widen int8 codes to fp32."""
        return codes.float()

    def lm_scales(self, scale: torch.Tensor) -> torch.Tensor:
        """Read the scales: fp32 [V, groups]."""
        return scale

    def lm_group(self, K: int, groups: int) -> torch.Tensor:
        """Say which group each column's scale is taken from: int64 [K]."""
        return torch.arange(K) // (K // groups)


def _same_group(group: torch.Tensor, start: int) -> list[slice]:
    """Cut one run of columns where the group changes."""
    edges = [0, *((group[1:] != group[:-1]).nonzero().flatten() + 1).tolist(), len(group)]
    return [slice(start + lo, start + hi) for lo, hi in itertools.pairwise(edges)]
