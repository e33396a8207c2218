"""moe_permute and moe_align_block_size as torch operations of fixed size: no host sync, the same bits every time.

Sorting is stable, counts come from binary search in the sorted ids (torch.bincount would wait for the device), and
slots that belong nowhere are scattered to one spare entry that is cut off.
"""

from __future__ import annotations

import torch


def moe_permute(
    x: torch.Tensor, topk_ids: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay the routed rows out expert by expert.

    x_permuted[inv[t*k + j]] = x[t]

    Args:
        x: [T, K].
        topk_ids: int [T, k], 0..E-1, or -1 (ignored).
        num_experts: E.
        expert_map: int [E] to local ids 0..E_local-1, or -1 for an expert that is not on this rank; None keeps all.
    Returns:
        x_permuted [T*k, K] (rows of ignored slots and other ranks last), expert_offsets int64 [E_local+1],
        inv int32 [T*k]. Exact; stable within an expert.
    Raises:
        ValueError: x and topk_ids disagree about T.
    Source: docs/formats.md section 3.
    """
    T, top_k = topk_ids.shape
    R, device = T * top_k, x.device
    if x.shape[0] != T:
        raise ValueError(f"x: got {x.shape[0]} rows, must be T = {T} as in topk_ids")
    ids = topk_ids.reshape(-1).long()
    local = num_experts
    if expert_map is not None:
        # A count of local experts sizes the result, so this is the one place that waits for the device.
        local = int(expert_map.max()) + 1
        ids = torch.where(ids < 0, -1, expert_map.long()[ids.clamp(min=0)])
    key, order = torch.sort(torch.where(ids < 0, local, ids), stable=True)
    expert_offsets = torch.searchsorted(key, torch.arange(local + 1, device=device))
    inv = torch.empty(R, dtype=torch.int32, device=device)
    inv[order] = torch.arange(R, dtype=torch.int32, device=device)
    return x[order // top_k], expert_offsets, inv


def moe_align_block_size(
    topk_ids: torch.Tensor, block_size: int, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort the slots by expert and pad each expert to whole blocks.

    expert e's ids start at the sum over e' < e of ceil(count[e'] / B) * B

    Args:
        topk_ids: int [T, k], 0..E-1, or -1 (in no block).
        block_size: B >= 1.
        num_experts: E, of all ranks.
        expert_map: int [E] to local ids, -1 for an expert that is not on this rank (its blocks stay, with expert -1).
    Returns:
        sorted_token_ids int32 [R + E*(B-1)], filled with R; expert_ids int32 [ceil(that / B)], -1 past the end;
        num_tokens_post_padded int32 [1]. Exact; stable within an expert.
    Raises:
        ValueError: block_size below 1.
    Source: docs/formats.md section 3; the -1 past the end is github.com/vllm-project/vllm/pull/35161.
    """
    R, E, B, device = topk_ids.numel(), num_experts, block_size, topk_ids.device
    if B < 1:
        raise ValueError(f"block_size: got {B}, must be at least 1")
    ids = topk_ids.reshape(-1).long()
    key, order = torch.sort(torch.where(ids < 0, E, ids), stable=True)
    first = torch.searchsorted(key, torch.arange(E + 1, device=device))
    blocks = (first.diff() + B - 1) // B
    last = blocks.cumsum(0)
    length = R + E * (B - 1)
    start = torch.cat([(last - blocks) * B, torch.full((1,), length, device=device)])
    rank = torch.arange(R, device=device) - first[key]
    target = torch.where(key < E, start[key] + rank, length)
    sorted_token_ids = torch.full((length + 1,), R, dtype=torch.int32, device=device)
    sorted_token_ids.scatter_(0, target, order.to(torch.int32))
    owner = torch.searchsorted(last, torch.arange(-(-length // B), device=device), right=True)
    expert = owner.clamp(max=E - 1)
    expert = torch.where(owner < E, expert if expert_map is None else expert_map.long()[expert], -1)
    return sorted_token_ids[:length], expert.to(torch.int32), (last[-1:] * B).to(torch.int32)
