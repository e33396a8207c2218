"""Which ranks the illegal elements of a layer over ranks belong to, in words."""

from __future__ import annotations

import torch

from moeracle.ref.contracts.ranks import Ranks

from ..cases.case import Problem
from .locate import spans

__all__ = ["rank_of_rows", "say_ranks"]


def rank_of_rows(problem: Problem, ranks: Ranks, stage: str) -> torch.Tensor | None:
    """Return the rank that made each row of a stage, int64 [rows], -1 for none; None where all ranks did together.

    Args:
        problem: of the whole layer.
        ranks: where experts and tokens lie.
        stage: h, a, y (rows of experts), partial (a run of rows a rank) or out (of the rank that a token is of).
    """
    ids = problem.args["topk_ids"].cpu()
    T = len(ids)
    if stage == "partial":
        return torch.arange(ranks.count).repeat_interleave(T)
    if stage == "out":
        return ranks.rank_of_tokens(T) if ranks.own else None
    return ranks.rank_of(ids, int(problem.args["w13"].shape[0])).flatten()


def say_ranks(problem: Problem, ranks: Ranks, stage: str, illegal: torch.Tensor) -> str:
    """Say in one line on which ranks a stage is illegal, and on which it is legal; "" of what all made together.

    Args:
        problem, ranks, stage: as of `rank_of_rows`.
        illegal: bool [rows, columns].
    """
    of_row = rank_of_rows(problem, ranks, stage)
    if of_row is None:
        return ""
    bad = illegal.any(1).cpu()
    wrong = sorted(set(of_row[bad].tolist()) - {-1})
    right = [rank for rank in range(ranks.count) if rank not in wrong]
    what = {"partial": "partial sums", "out": "tokens"}.get(stage, "experts' rows")
    legal = f"; rank{_s(right)} {spans(right)}: legal" if right else ""
    return f"rank{_s(wrong)} {spans(wrong)}: illegal {what}{legal}" if wrong else f"rows that no rank counts{legal}"


def _s(ranks: list[int]) -> str:
    return "s" if len(ranks) > 1 else ""
