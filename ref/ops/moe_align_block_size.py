"""Dispatch by ids: sort the slots by expert and pad each expert to whole blocks, without moving any row.

    slots   t*k+j                      0 .. R-1,  R = T*k
    sorted_token_ids                   expert 0's slots, padding R, …, expert 1's slots, padding R, …, R to the end
    block b                            sorted_token_ids[b*B .. b*B+B-1], all of expert expert_ids[b]

The kernel's row rule: skip block b if b*B >= num_tokens_post_padded (or expert_ids[b] is -1: this rank writes zeros, or
leaves what its wrapper zeroed); a row is real iff its id < R; it reads token id // k and stores at C[id].

Sources: https://github.com/vllm-project/vllm, csrc/moe/moe_align_sum_kernels.cu, /pull/35161 (-1 past the end),
/pull/29642 (ignore_invalid_experts), https://github.com/vllm-project/vllm-xpu-kernels/issues/571 (id -1 as an index);
https://github.com/pytorch/executorch, backends/cuda/triton/kernels/fused_moe.py (last expert past the end).
"""

from __future__ import annotations

import torch

from ..errors import require, unknown


def moe_align_block_size(
    topk_ids: torch.Tensor,
    block_size: int,
    num_experts: int,
    expert_map: torch.Tensor | None = None,
    *,
    tail_expert: int | str = -1,
    ignore_invalid_experts: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort slot ids by expert, each expert padded to a multiple of block_size.

        padded[e] = ceil(count[e] / B) * B;  expert e's ids start at padded[0] + … + padded[e-1], in slot order

    Args:
        topk_ids: [T, k] integer, -1..E-1, repeats allowed; T may be 0. -1 enters no block.
        block_size: B, at least 1.
        num_experts: E, the *global* number of experts, with or without an expert_map.
        expert_map: [E] integer, local id of each expert or -1 if it is on another rank; None keeps every id.
        tail_expert: expert_ids of the blocks past the end, which no kernel may act on: -1 (vLLM since #35161), 0 (older
            vLLM) or "last", the highest id (executorch). 0 and "last" go through expert_map like any other id.
        ignore_invalid_experts: only matters under an expert_map. False (vLLM's default): experts on other ranks keep
            their blocks, whose expert_ids are then -1. True: their slots enter no block, experts are numbered
            locally, and no block before the end is -1.
    Returns:
        sorted_token_ids int32 [R + E*(B-1)], filled with R; expert_ids int32 [ceil(that / B)], one per block, local ids
        under an expert_map; num_tokens_post_padded int32 [1], the padded length in use. All exact. Within an expert
        the order is ours (slot order): a GPU that counts with atomics may use any other. The length is the largest
        needed; newer vLLM allocates less for R < E, executorch one block's slack more.
    Raises:
        ValueError: topk_ids or expert_map as `check_topk_ids`, `check_expert_map`; block_size < 1; other tail_expert.
    Source: https://github.com/vllm-project/vllm, vllm/model_executor/layers/fused_moe/moe_align_block_size.py
    """
    check_topk_ids(topk_ids, num_experts)
    require(block_size >= 1, f"block_size: got {block_size}, must be at least 1")
    if tail_expert not in (-1, 0, "last"):
        raise unknown("tail_expert", tail_expert, ("-1", "0", "last"))
    T, k = topk_ids.shape
    R, E, B, device = T * k, num_experts, block_size, topk_ids.device
    local_first = expert_map if ignore_invalid_experts else None
    ids, numbered = local_expert_ids(topk_ids, E, local_first)
    ids = ids.reshape(-1)

    counts = torch.bincount(ids[ids >= 0], minlength=E)
    blocks = (counts + B - 1) // B
    used = int(blocks.sum())
    order = torch.argsort(torch.where(ids < 0, E, ids), stable=True)[: int(counts.sum())]
    expert = ids[order]
    rank = torch.arange(order.numel(), device=device) - (counts.cumsum(0) - counts)[expert]
    start = (blocks.cumsum(0) - blocks) * B

    sorted_token_ids = torch.full((R + E * (B - 1),), R, dtype=torch.int64, device=device)
    sorted_token_ids[start[expert] + rank] = order
    tail = numbered - 1 if tail_expert == "last" else int(tail_expert)
    expert_ids = torch.full((-(-sorted_token_ids.numel() // B),), tail, dtype=torch.int64, device=device)
    expert_ids[:used] = torch.repeat_interleave(blocks)
    if expert_map is not None and not ignore_invalid_experts:
        # A tail of -1 stays -1. (Indexing the map with it would wrap around to the last expert's local id.)
        expert_ids = _through(check_expert_map(expert_map, E)[0], expert_ids)
    post_padded = torch.tensor([used * B], dtype=torch.int32, device=device)
    return sorted_token_ids.to(torch.int32), expert_ids.to(torch.int32), post_padded


def local_expert_ids(
    topk_ids: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    """Return this rank's expert id of each slot, -1 for ignored ones, and how many experts this rank has.

    Args:
        topk_ids: [T, k] integer, -1..E-1.
        num_experts: E, the global number of experts.
        expert_map: [E] integer, local id or -1; None keeps every id.
    Returns:
        int64 [T, k], -1..E_local-1; E_local (E without a map).
    Raises:
        ValueError: as `check_topk_ids` and `check_expert_map`.
    """
    check_topk_ids(topk_ids, num_experts)
    ids = topk_ids.to(torch.int64)
    if expert_map is None:
        return ids, num_experts
    mapping, E_local = check_expert_map(expert_map, num_experts)
    return _through(mapping, ids), E_local


def check_topk_ids(topk_ids: torch.Tensor, num_experts: int) -> None:
    """Raise ValueError unless topk_ids is integer [T, k] with every id in -1..num_experts-1, -1 meaning ignored."""
    require(num_experts >= 1, f"num_experts: got {num_experts}, must be at least 1")
    require(
        topk_ids.ndim == 2 and topk_ids.shape[1] >= 1 and topk_ids.dtype in (torch.int32, torch.int64),
        f"topk_ids: got {topk_ids.dtype} of shape {tuple(topk_ids.shape)}, must be int32 or int64 [T, k]",
    )
    if topk_ids.numel():
        low, high = int(topk_ids.min()), int(topk_ids.max())
        wrong = low if low < -1 else high
        require(
            low >= -1 and high < num_experts, f"topk_ids: got id {wrong}, must be -1 (ignored) or 0..{num_experts - 1}"
        )


def check_expert_map(expert_map: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, int]:
    """Return the map as int64 and E_local, or raise ValueError unless it numbers this rank's experts 0..E_local-1.

    Args:
        expert_map: [E] integer; each of 0..E_local-1 once, -1 everywhere else.
        num_experts: E.
    """
    got = f"{expert_map.dtype} of shape {tuple(expert_map.shape)}"
    require(
        expert_map.shape == (num_experts,) and expert_map.dtype in (torch.int32, torch.int64),
        f"expert_map: got {got}, must be int32 or int64 ({num_experts},)",
    )
    mapping = expert_map.to(torch.int64)
    here = mapping[mapping != -1].sort().values
    E_local = here.numel()
    numbered = torch.equal(here, torch.arange(E_local, device=here.device))
    require(numbered, f"expert_map: got local ids {here.tolist()[:8]}, must be 0..{E_local - 1}, each once, and -1")
    return mapping, E_local


def _through(mapping: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """mapping[id], and -1 where the id is -1."""
    return torch.where(ids < 0, -1, mapping[ids.clamp(min=0)])
