"""`route` in the shape of the three ops that it fuses, so that each of its outputs is judged as that op's.

Ids are turned into logits that choose just these ids; a token's ids must therefore differ, and none may be ignored.
"""

from __future__ import annotations

import torch

from moeracle.kernels.triton.moe_permute import gather_rows
from moeracle.kernels.triton.route import route


def topk_by_route(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what topk_softmax does, by `route`: so that its choice is judged as that op.

    Args, Returns, Raises: as `topk_softmax`.
    """
    return route(logits, top_k, renormalize)[:2]


def align_by_route(
    topk_ids: torch.Tensor, block_size: int, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor | None, ...]:
    """Do what moe_align_block_size does, by `route` on logits that choose just these ids.

    Args, Returns: as `moe_align_block_size`; ids of one token must differ and be 0..E-1.
    """
    logits = logits_choosing(topk_ids, num_experts)
    return route(logits, topk_ids.shape[1], block_size=block_size, expert_map=expert_map)[2:5]


def permute_by_route(
    x: torch.Tensor, topk_ids: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what moe_permute does, by `route` on logits that choose just these ids.

    Args, Returns: as `moe_permute`; ids of one token must differ and be 0..E-1.
    """
    top_k = topk_ids.shape[1]
    routing = route(logits_choosing(topk_ids, num_experts), top_k, block_size=None, expert_map=expert_map)
    return gather_rows(x, routing.row_to_slot, top_k), routing.expert_offsets, routing.inv


def logits_choosing(topk_ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Return fp32 [T, E]: k, k-1, …, 1 at each token's ids in slot order, 0 elsewhere."""
    T, k = topk_ids.shape
    falling = torch.arange(k, 0, -1, dtype=torch.float32, device=topk_ids.device).expand(T, k)
    logits = torch.zeros(T, num_experts, dtype=torch.float32, device=topk_ids.device)
    return logits.scatter_(1, topk_ids.long(), falling)
