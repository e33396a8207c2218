"""What an op leaves open: places that a legal kernel may fill as it likes, even differently each time.

Ids inside an expert's blocks may come in any order; rows of ignored slots and of experts elsewhere may hold anything.
"""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.dispatch import local_expert_ids, moe_align_block_size

from ..problem import Problem


def settled(problem: Problem, output: Any) -> Any:
    """Return a legal-shaped output with its open parts made equal: what two runs must agree on, bit for bit."""
    op, args = problem.case.op, problem.args
    if op == "moe_align_block_size":
        ids, experts, end = output
        return sorted_inside_experts(problem, ids), experts, end
    if op == "moe_permute":
        x, offsets, inv = output
        local, _ = local_expert_ids(args["topk_ids"], args["num_experts"], args["expert_map"])
        mine = (local >= 0).flatten()
        return x[: int(mine.sum())], offsets, torch.where(mine, inv, -1)
    if op == "grouped_gemm":
        return output[: int(args["expert_offsets"][-1])]
    if op == "moe_w4a16" and isinstance(output, dict):
        mine = (args["topk_ids"] >= 0).reshape(-1, 1)
        return {name: t if name == "out" else torch.where(mine, t, 0) for name, t in output.items()}
    return output


def sorted_inside_experts(problem: Problem, sorted_token_ids: torch.Tensor) -> torch.Tensor:
    """Sort the ids of each expert's run of blocks, padding last, so that only their set matters.

    Args:
        problem: a moe_align_block_size case.
        sorted_token_ids: int32, as the op returns them; any values.
    """
    topk_ids, B, E = (problem.args[n] for n in ("topk_ids", "block_size", "num_experts"))
    _, experts, end = moe_align_block_size(topk_ids, B, E)  # without the map, so that each expert has its own run
    owner = experts.repeat_interleave(B)[: sorted_token_ids.shape[0]].long()
    owner[int(end) :] = E
    by_id = torch.argsort(sorted_token_ids, stable=True)
    return sorted_token_ids[by_id[torch.argsort(owner[by_id], stable=True)]]
