"""Faults that the plain case does not show: experts elsewhere, ids that repeat, kept state, one row."""

from __future__ import annotations

from typing import Any

import torch

from ..simulate.gemm import Block
from .base import ARITHMETIC, DISPATCHED, ROUTED, SUMMED, fault, issue, pull

T = torch.Tensor
BY_EXPERT = DISPATCHED[:2]  # whose fixed cases have as many experts as routers have


@fault("F156", "global expert id taken for a local one: right on the first rank alone", ops=DISPATCHED,
       stage="h", source=pull("vllm-project/vllm-gaudi", 1796), step="local_ids")  # fmt: skip
def global_for_local(sim: Any, base: Any, expert_map: T) -> T:
    every, here = torch.arange(len(expert_map)), int((base(expert_map) >= 0).sum())
    return torch.where(every < here, every, -1)


@fault("F157", "expert map read backwards: from local numbers to experts", ops=DISPATCHED, stage="h",
       source=ARITHMETIC, step="local_ids")  # fmt: skip
def map_backwards(sim: Any, base: Any, expert_map: T) -> T:
    local = base(expert_map)
    here = (local >= 0).nonzero().flatten()
    back = torch.full_like(local, -1)
    back[local[here]] = here % len(here)
    return back


@fault("F158", "-1 of an expert elsewhere wraps around to the last one here", ops=("moe_permute", "moe_w4a16"),
       stage="out", source=issue("vllm-project/vllm-xpu-kernels", 571), step="local_ids")  # fmt: skip
def elsewhere_is_last(sim: Any, base: Any, expert_map: T) -> T:
    local = base(expert_map)
    return torch.where(local < 0, local.max(), local)


@fault("F159", "experts of a rank numbered as if they lay one after another", ops=DISPATCHED, stage="h",
       source=ARITHMETIC, step="local_ids")  # fmt: skip
def consecutive_experts(sim: Any, base: Any, expert_map: T) -> T:
    local = base(expert_map)
    first = int((local >= 0).nonzero()[0])
    every = torch.arange(len(local)) - first
    return torch.where((every >= 0) & (every < int((local >= 0).sum())), every, -1)


def remember_rows(sim: Any, base: Any, topk_ids: T, num_experts: int) -> T:
    """Remember the number of tokens for `spans`."""
    sim.tokens = len(topk_ids)
    return base(topk_ids, num_experts)


@fault("F160", "row list of an expert sized by tokens: ids that repeat run over into the next list",
       ops=("moe_w4a16",), stage="h", source=pull("ggml-org/llama.cpp", 26310), step="spans",
       also={"experts_of": remember_rows})  # fmt: skip
def lists_run_over(sim: Any, base: Any, experts: T) -> list[Block]:
    size, E = max(1, sim.tokens), int(experts.max()) + 1 if len(experts) else 0
    lists, count = torch.zeros((E + 1) * size + len(experts), dtype=torch.int64), [0] * E
    for slot, e in enumerate(experts.tolist()):
        if e >= 0:
            lists[e * size + count[e]] = slot
            count[e] += 1
    return [Block(e, lists[e * size : e * size + n]) for e, n in enumerate(count) if n]


@fault("F161", "of an expert that a token names twice, the first slot alone counts", ops=DISPATCHED, stage="h",
       source=pull("ggml-org/llama.cpp", 26310), step="experts_of")  # fmt: skip
def first_slot_counts(sim: Any, base: Any, topk_ids: T, num_experts: int) -> T:
    again = torch.tril(topk_ids[:, :, None] == topk_ids[:, None, :], -1).any(2)
    return base(torch.where(again, -1, topk_ids), num_experts)


@fault("F162", "int64 ids read as int32 words", ops=DISPATCHED, stage="h", source=ARITHMETIC, step="experts_of")
def ids_as_words(sim: Any, base: Any, topk_ids: T, num_experts: int) -> T:
    if topk_ids.dtype == torch.int64:
        topk_ids = topk_ids.contiguous().view(torch.int32).flatten()[: topk_ids.numel()].reshape(topk_ids.shape)
    return base(topk_ids, num_experts)


@fault("F163", "ids of wider rows read as if rows lay one after another", ops=DISPATCHED, stage="h",
       source=issue("intel/intel-xpu-backend-for-triton", 7455), step="experts_of")  # fmt: skip
def rows_of_ids(sim: Any, base: Any, topk_ids: T, num_experts: int) -> T:
    close = topk_ids.as_strided(topk_ids.shape, (topk_ids.shape[1], 1))
    return base(close.clamp(max=num_experts - 1), num_experts)


@fault("F164", "router weights of wider rows read as if rows lay one after another", ops=("moe_w4a16",), stage="out",
       source=issue("intel/intel-xpu-backend-for-triton", 7455), step="slot_weights")  # fmt: skip
def rows_of_weights(sim: Any, base: Any, weights: T) -> T:
    return base(weights.as_strided(weights.shape, (weights.shape[1], 1)))


@fault("F165", "table of tiles kept between calls: one with fewer tiles runs the last one's tail", ops=ROUTED,
       stage="h", source=pull("flashinfer-ai/flashinfer", 4735), step="blocks")  # fmt: skip
def stale_tail(sim: Any, base: Any, blocks: list[Block], num_experts: int) -> list[Block]:
    tiles = base(blocks, num_experts)
    kept = getattr(sim, "kept_tiles", [])
    most = max((int(tile.rows.max()) for tile in tiles if len(tile.rows)), default=-1)
    usable = [t for t in kept[len(tiles) :] if t.expert < num_experts and len(t.rows) and int(t.rows.max()) <= most]
    sim.kept_tiles = tiles + kept[len(tiles) :]
    return tiles + usable


@fault("F166", "expert kept in 8 bits: from 256 on they begin again", ops=BY_EXPERT, stage="expert_ids",
       source=ARITHMETIC, step="experts_of")  # fmt: skip
def expert_in_8_bits(sim: Any, base: Any, topk_ids: T, num_experts: int) -> T:
    experts = base(topk_ids, num_experts)
    return torch.where(experts < 0, experts, experts % 256)


@fault("F167", "expert kept in a signed byte: from 128 on they are ignored", ops=BY_EXPERT, stage="expert_ids",
       source=ARITHMETIC, step="experts_of")  # fmt: skip
def expert_in_a_signed_byte(sim: Any, base: Any, topk_ids: T, num_experts: int) -> T:
    experts = base(topk_ids, num_experts)
    return torch.where(experts % 256 >= 128, -1, experts)


@fault("F168", "path for one token leaves the router weight out", ops=SUMMED, stage="out",
       source=pull("vllm-project/vllm", 28574), step="slot_weights")  # fmt: skip
def one_token_unweighted(sim: Any, base: Any, weights: T) -> T:
    return torch.ones_like(base(weights)) if len(weights) == 1 else base(weights)


@fault("F169", "sum over at most four slots", ops=SUMMED, stage="out", source=ARITHMETIC, step="topk_sum")
def four_slots(sim: Any, base: Any, terms: T, dtype: torch.dtype, multiplied: bool) -> T:
    return base(terms[:, :4], dtype, multiplied)


@fault("F170", "one slot a token: its weight taken for 1", ops=SUMMED, stage="out", source=ARITHMETIC,
       step="slot_weights")  # fmt: skip
def one_slot_unweighted(sim: Any, base: Any, weights: T) -> T:
    return torch.ones_like(base(weights)) if weights.shape[1] == 1 else base(weights)


@fault("F172", "inverse permutation used as the permutation", ops=("moe_unpermute",), stage="out",
       source=ARITHMETIC, step="unpermuted")  # fmt: skip
def permuted_again(sim: Any, base: Any, y: T, inv: T) -> T:
    return base(y, torch.argsort(inv))


@fault("F173", "rows past the last whole block of an expert left out", ops=("moe_align_block_size",),
       stage="sorted_token_ids", source=ARITHMETIC, step="padded_blocks")  # fmt: skip
def whole_blocks_only(sim: Any, base: Any, rows: int, block_size: int) -> int:
    return max(rows // block_size, 1)


@fault("F174", "source row by slots modulo tokens in place of division by k", stage="h",
       ops=("moe_permute", "padded_gemm", "moe_w4a16"), source=ARITHMETIC, step="source_row")  # fmt: skip
def source_modulo(sim: Any, base: Any, slots: T, top_k: int) -> T:
    tokens = (int(slots.max()) // top_k + 1) if len(slots) else 1
    return slots % tokens
