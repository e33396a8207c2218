"""The row of another expert: for each routed row, the row that holds another expert's answer to the same token.

A legal set that admits that row admits one expert's output for another's, so it could not see a wrong expert.
"""

from __future__ import annotations

import torch


def slots_of_other_experts(topk_ids: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
    """Return int64 [T*k]: t*k + (j+1)%k for slot t*k+j, or -1.

    Args:
        topk_ids: [T, k], negative where a slot does nothing.
        expert_map: [E], negative for experts elsewhere, or None.
    """
    T, k = topk_ids.shape
    mine = topk_ids.long()
    next_slot = (torch.arange(k, device=mine.device) + 1) % k
    theirs = mine[:, next_slot]
    works = mine >= 0
    if expert_map is not None:
        works = works & (expert_map.to(mine.device)[mine.clamp(min=0)] >= 0)
    other_slot = torch.arange(T, device=mine.device)[:, None] * k + next_slot[None, :]
    return torch.where(works & works[:, next_slot] & (mine != theirs), other_slot, -1).flatten()
