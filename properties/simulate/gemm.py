"""Steps of a simulated GEMM kernel: which rows meet which expert, what is stored where; and the four GEMM ops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch

from moeracle.ref.ops.padded_gemm import infer_block_size
from moeracle.ref.weights.weight import Int4Weight

from .weights import Loaded, WeightSteps, rounded


class Block(NamedTuple):
    """One launched tile of rows: the expert whose weight it loads, and the output rows [n] that it stores."""

    expert: int
    rows: torch.Tensor


class GemmSteps(WeightSteps):
    """Gathering, multiplying, weighing and storing rows; each method is a step that a fault may replace."""

    block_m: int

    def blocks(self, blocks: list[Block], num_experts: int) -> list[Block]:
        """Cut each expert's rows into launched tiles of block_m rows."""
        return [Block(b.expert, rows) for b in blocks for rows in b.rows.split(self.block_m)]

    def buffer(self, rows: int, columns: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
        """Allocate an output; rows that no tile stores stay zero."""
        return torch.zeros(rows, columns, dtype=dtype, device=like.device)

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """Take an activation argument as it is: [rows, columns], any row stride."""
        return x

    def weigh_input(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Multiply rows of x [n, K] by router weights [n, 1], both in D, rounded to D."""
        return (x.float() * weight.to(x.dtype).float()).to(x.dtype)

    def source_row(self, slots: torch.Tensor, top_k: int) -> torch.Tensor:
        """Say which row of x each slot t*k+j reads."""
        return slots // top_k

    def slot_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Read the router weights fp32 [T, k]."""
        return weights.float()

    def weigh(self, acc: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, stage: str) -> torch.Tensor:
        """Multiply accumulators [n, N] by router weights [n, 1] in fp32, or what was stored by D(weight) in D."""
        if stage != "h" and self.contract.router_weight == "gemm2_dtype":
            return rounded(acc, dtype, self.contract.rounding(stage, dtype)).float() * weight.to(dtype).float()
        return acc * weight

    def bias(self, acc: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Add a bias [N] in fp32: to accumulators, or to what was stored of them."""
        if self.contract.bias != "sum":
            acc = rounded(acc, bias.dtype, self.contract.rounding("out", bias.dtype)).float()
        return acc + bias.float()

    def expert_bias(self, w: Int4Weight, e: int, which: str) -> torch.Tensor:
        """Read the bias [N] of one expert."""
        assert w.bias is not None
        return w.bias[e]

    def store(self, value: torch.Tensor, dtype: torch.dtype, stage: str) -> torch.Tensor:
        """Round what a stage stores to D; a stage that is not stored stays in fp32."""
        if stage not in self.contract.stores:
            return value
        return rounded(value, dtype, self.contract.rounding(stage, dtype))

    def stored(self, out: torch.Tensor, stage: str) -> torch.Tensor:
        """Leave a whole stage in memory: h, a, y, or out."""
        return out

    def result(self, out: torch.Tensor) -> torch.Tensor:
        """Return what the op returns."""
        return out

    def routed(
        self,
        x: torch.Tensor,
        w: Int4Weight,
        spans: list[Block],
        source: Callable[[torch.Tensor], torch.Tensor],
        num_rows: int,
        which: str,
        stage: str,
        dtype: torch.dtype,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run one routed GEMM: [num_rows, N], in D where the stage is stored and in fp32 otherwise.

        Args:
            x: activations.  w: Int4Weight [E, N, K].  spans: each expert's output rows.
            source: from output rows to rows of x.
            which: w, w13 or w2.  stage: h, y or out.  dtype: D.
            weight: [num_rows, 1] router weights that enter here, or None.
        """
        on_input, in_parts = self.weight_enters(stage)
        kept = dtype if stage in self.contract.stores else torch.float32
        out = self.buffer(num_rows, w.N, kept, x)
        loaded: dict[int, Loaded] = {}
        for block in self.blocks(spans, w.E or 1):
            e, rows = block
            if e not in loaded:
                loaded = {e: self.load(w, e, dtype, which)}  # one expert at a time, to bound memory
            a, of_rows = x[source(rows)], None if weight is None else weight[rows]
            if of_rows is not None and on_input:
                a = self.weigh_input(a, of_rows)
            before_store = (of_rows,) if in_parts and of_rows is not None else ()
            acc = self.dot(a, loaded[e], dtype, which, *before_store)
            if w.bias is not None:
                bias = self.expert_bias(w, e, which)
                plain = torch.zeros_like(bias) if before_store else bias
                acc = self.bias(acc, plain)
                acc = acc + bias.float() * of_rows if before_store and of_rows is not None else acc
            if of_rows is not None and not on_input and not in_parts:
                acc = self.weigh(acc, of_rows, dtype, stage)
            out[rows] = self.store(acc, dtype, stage)
        return self.stored(out, stage)

    def weight_enters(self, stage: str) -> tuple[bool, bool]:
        """Say whether router weights that enter at a stage multiply x, and whether each part of K that is stored."""
        enters, parts = self.contract.router_weight, self.contract.parts
        in_parts = parts is not None and parts.kept == "dtype" and enters == "gemm2" and stage != "h"
        return stage == "h" and enters == "input_dtype", in_parts


class GemmOps(GemmSteps):
    """int4_linear, grouped_gemm, padded_gemm and the two ops that only read a weight."""

    def unpack_int4(self, w: Int4Weight) -> torch.Tensor:
        experts = [self.codes(w, e, "w") for e in _experts(w)]
        return self.result(experts[0] if w.E is None else torch.stack(experts))

    def dequantize_int4(self, w: Int4Weight) -> torch.Tensor:
        experts = [self.dequantized(self.load(w, e, w.scale.dtype, "w"), w.scale.dtype) for e in _experts(w)]
        return self.result(experts[0] if w.E is None else torch.stack(experts))

    def dequantized(self, w: Loaded, dtype: torch.dtype) -> torch.Tensor:
        """Round one matrix's weights to D."""
        values = self.values(w.steps, w.zero[:, w.zero_group], w.scale[:, w.scale_group])
        return self.cast(values, dtype).to(dtype)

    def int4_linear(self, x: torch.Tensor, w: Int4Weight, bias: torch.Tensor | None) -> torch.Tensor:
        acc = self.dot(self.read(x), self.load(w, None, x.dtype, "w"), x.dtype, "w")
        acc = acc if bias is None else self.bias(acc, bias)
        return self.result(self.stored(self.store(acc, x.dtype, "out"), "out"))

    def grouped_gemm(self, x: torch.Tensor, w: Int4Weight, expert_offsets: torch.Tensor) -> torch.Tensor:
        edges = expert_offsets.tolist()
        ranges = enumerate(itertools.pairwise(edges))
        spans = [Block(e, torch.arange(lo, hi, device=x.device)) for e, (lo, hi) in ranges if hi > lo]
        return self.result(self.routed(self.read(x), w, spans, lambda rows: rows, len(x), "w", "out", x.dtype))

    def padded_gemm(
        self,
        x: torch.Tensor,
        w: Int4Weight,
        sorted_token_ids: torch.Tensor,
        expert_ids: torch.Tensor,
        num_tokens_post_padded: torch.Tensor,
        topk_weights: torch.Tensor | None,
        top_k: int,
    ) -> torch.Tensor:
        R, end = x.shape[0] * top_k, int(num_tokens_post_padded)
        B = infer_block_size(len(sorted_token_ids), len(expert_ids), R, w.E or 1, end) if R else 1
        spans = self.padded_spans(sorted_token_ids, expert_ids, end, R, B) if R else []
        weight = None if topk_weights is None else self.slot_weights(topk_weights).reshape(-1, 1)
        source = lambda slots: self.source_row(slots, top_k)
        return self.result(self.routed(self.read(x), w, spans, source, R, "w", "out", x.dtype, weight))

    def padded_spans(
        self, sorted_token_ids: torch.Tensor, expert_ids: torch.Tensor, end: int, num_rows: int, block_size: int
    ) -> list[Block]:
        """Read the blocks of moe_align_block_size: each block's expert and its valid ids."""
        spans = []
        for start in range(0, end, block_size):
            e, ids = int(expert_ids[start // block_size]), sorted_token_ids[start : start + block_size].long()
            rows = ids[ids < num_rows]
            if e >= 0 and len(rows):
                spans.append(Block(e, rows))
        return spans


def _experts(w: Int4Weight) -> list[int | None]:
    return [None] if w.E is None else list(range(w.E))
