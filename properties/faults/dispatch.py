"""Faults of dispatch: which rows meet which expert, padding, ignored ids, expert maps."""

from __future__ import annotations

from typing import Any

import torch

from ..simulate.gemm import Block
from .base import ARITHMETIC, DISPATCHED, ROUTED, fault, issue, pull

T = torch.Tensor


@fault("F10", "topk_id -1 used as an index: the last expert", ops=DISPATCHED, stage="out",
       source=issue("vllm-project/vllm-xpu-kernels", 571), step="experts_of")  # fmt: skip
def negative_index(sim: Any, base: Any, topk_ids: T, num_experts: int) -> T:
    experts = base(topk_ids, num_experts)
    return torch.where(experts < 0, num_experts - 1, experts)


@fault("F11", "expert_ids past the end 0 in place of -1: padded blocks do real work", ops=("moe_align_block_size",),
       stage="expert_ids", source=pull("vllm-project/vllm", 35161), step="tail_expert")  # fmt: skip
def tail_is_expert_zero(sim: Any, base: Any) -> int:
    return 0


@fault("F12", "fused shared expert's id treated as invalid", ops=DISPATCHED, stage="h",
       source=pull("vllm-project/vllm", 51632), step="experts_of")  # fmt: skip
def shared_expert_invalid(sim: Any, base: Any, topk_ids: T, num_experts: int) -> T:
    experts = base(topk_ids, num_experts)
    return torch.where(experts == num_experts - 1, -1, experts)


@fault("F19", "an expert without tokens still stores a row", ops=ROUTED, stage="h",
       source=pull("meta-pytorch/MSLK", 158), step="blocks")  # fmt: skip
def empty_expert_stores(sim: Any, base: Any, blocks: list[Block], num_experts: int) -> list[Block]:
    used = {block.expert: block.rows[:1] for block in blocks}
    later = lambda e: next((used[n] for n in range(e + 1, num_experts) if n in used), None)
    extra = [Block(e, rows) for e in range(num_experts) if e not in used and (rows := later(e)) is not None]
    return [*base(blocks, num_experts), *extra]


@fault("F26", "the padding sentinel is clamped to the last row, which padded blocks then overwrite", ops=ROUTED,
       stage="h", source=pull("ROCm/vllm", 1069), step="blocks")  # fmt: skip
def sentinel_row(sim: Any, base: Any, blocks: list[Block], num_experts: int) -> list[Block]:
    tiles = base(blocks, num_experts)
    if not tiles:
        return tiles
    last = torch.stack([tile.rows.max() for tile in tiles]).max().reshape(1)
    return [*tiles, *(Block(tile.expert, last) for tile in reversed(tiles) if len(tile.rows) < sim.block_m)]


@fault("F36", "wrong expert for an expert's last block", ops=ROUTED, stage="h", source=ARITHMETIC, step="blocks")
def wrong_expert_for_last_block(sim: Any, base: Any, blocks: list[Block], num_experts: int) -> list[Block]:
    tiles = base(blocks, num_experts)
    if tiles:
        of_first = [i for i, tile in enumerate(tiles) if tile.expert == tiles[0].expert]
        last = tiles[of_first[-1]]
        tiles[of_first[-1]] = last._replace(expert=(last.expert + 1) % num_experts)
    return tiles


@fault("F48", "permute not stable: an expert's rows in reverse order", ops=("moe_permute",), stage="inv",
       source=ARITHMETIC, step="row_order")  # fmt: skip
def unstable_order(sim: Any, base: Any, experts: T) -> T:
    return len(experts) - 1 - base(experts.flip(0))


@fault("F48b", "inverse wrong for an expert that is repeated in a row: both slots get the first one's row",
       ops=("moe_permute",), stage="inv", source=ARITHMETIC, step="inverse")  # fmt: skip
def inverse_of_first_match(sim: Any, base: Any, order: T, experts: T, top_k: int) -> T:
    inv, of_token = base(order, experts, top_k).reshape(-1, top_k), experts.reshape(-1, top_k)
    for j in range(1, top_k):
        for i in range(j):
            inv[:, j] = torch.where(of_token[:, j] == of_token[:, i], inv[:, i], inv[:, j])
    return inv.flatten()


@fault("F114", "row index divided by k twice", ops=("moe_permute", "padded_gemm", "moe_w4a16"), stage="h",
       source=pull("flashinfer-ai/flashinfer", 2629), step="source_row")  # fmt: skip
def divided_twice(sim: Any, base: Any, slots: T, top_k: int) -> T:
    return base(base(slots, top_k), top_k)


@fault("F115", "sorted_token_ids keeps only its first id", ops=("moe_align_block_size",), stage="sorted_token_ids",
       source=issue("vllm-project/vllm-xpu-kernels", 453), step="moe_align_block_size")  # fmt: skip
def only_first_id(sim: Any, base: Any, topk_ids: T, *rest: Any) -> tuple[T, T, T]:
    ids, experts, end = base(topk_ids, *rest)
    ids[1:] = topk_ids.numel()
    return ids, experts, end


@fault("F117", "flattened ids: each token runs one expert", ops=DISPATCHED, stage="h",
       source=issue("vcruz305/vllm-exl3", 2), step="experts_of")  # fmt: skip
def one_expert_a_token(sim: Any, base: Any, topk_ids: T, num_experts: int) -> T:
    T_, k = topk_ids.shape
    experts = torch.full((T_, k), -1, dtype=torch.int64)
    experts[:, 0] = base(topk_ids, num_experts)[:T_]
    return experts.flatten()


@fault("F118", "expert map taken for a 0/1 mask: only local expert 1 counts", ops=DISPATCHED[:2], stage="expert_ids",
       source=pull("ROCm/ATOM", 887), step="local_ids")  # fmt: skip
def map_as_mask(sim: Any, base: Any, expert_map: T) -> T:
    local = base(expert_map)
    return torch.where(local == 1, 1, -1)
