"""Rivals: for each routed row, the row that holds another expert's answer to the same token.

A legal set that admits a row's rival admits one expert's output for another's, so it could not see a wrong expert.
"""

from __future__ import annotations

import torch

from ..problem import Problem


def rivals_of(problem: Problem, stage: str = "out") -> torch.Tensor | None:
    """Return int64 [R], for each row of a routed stage the row of the same token's next slot.

    -1 where that slot has the same expert, or either of them does nothing here; None where rows are not routed, or
    nobody says which token they belong to.

    Args:
        problem: of any op.
        stage: h, a, y or out for moe_w4a16, else out.
    """
    op = problem.case.op
    if op == "moe_w4a16" and stage != "out":
        return slot_rivals(problem.args["topk_ids"], None)
    ids = problem.truth.get("topk_ids")
    if ids is None or op not in ("grouped_gemm", "padded_gemm"):
        return None
    rivals = slot_rivals(ids, problem.truth.get("expert_map"))
    if op == "padded_gemm":
        return rivals
    row_of = problem.truth["inv"].long()  # of each slot
    rows = torch.full_like(rivals, -1)
    rows[row_of] = torch.where(rivals >= 0, row_of[rivals.clamp(min=0)], -1)
    return rows


def slot_rivals(topk_ids: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
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
    rival = torch.arange(T, device=mine.device)[:, None] * k + next_slot[None, :]
    return torch.where(works & works[:, next_slot] & (mine != theirs), rival, -1).flatten()
