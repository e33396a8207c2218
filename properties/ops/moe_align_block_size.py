"""moe_align_block_size: blocks of slots, one expert a block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.moe_permute import moe_align_block_size
from moeracle.ref.weights.weight import Int4Weight

from ..bisect.suspects import ROUTING
from ..cases.case import Case, Problem
from ..cases.inputs import as_given, expert_map
from ..cases.optable import IDS, NONE, PLACEMENTS, ROUTINGS, Argument, Result
from ..cases.record import Tensors
from ..cases.routings import draw_topk
from ..common.verdict import Verdict
from ..compare.index_parts import same
from ..laws.batch import law_dispatch_counts_add_up, law_permuting_tokens, law_splitting_batches
from ..laws.experts import law_block_size, law_relabelling_experts
from ..laws.routing import law_every_slot_has_one_place
from .families import TOPK_IDS, TupleOp


class MoeAlignBlockSize(TupleOp):
    """What the harness knows of moe_align_block_size."""

    name = "moe_align_block_size"
    summary = "slots sorted by expert, each expert's run padded to whole blocks."
    arguments = (
        TOPK_IDS,
        Argument("block_size", "int", "Slots a block, B.", size="B"),
        Argument("num_experts", "int", "E, all ranks together.", size="E"),
        Argument(
            "expert_map",
            "int32 [num_experts]",
            "The local number of each expert, -1 for experts on another rank.",
            True,
            within=("-1", "E-1"),
        ),
    )
    results = (
        Result("sorted_token_ids", "int32 [R + E*(B-1)]", "Slots t*k+j by expert; R is padding.", ("place",)),
        Result(
            "expert_ids",
            "int32 [blocks]",
            "The (local) expert of each block, -1 for experts elsewhere and past the end.",
            ("block",),
        ),
        Result("num_tokens_post_padded", "int32 [1]", "How many places are used, a multiple of B.", ("count",)),
    )
    dims = ("T", "E", "k", "B")
    dtypes = NONE
    routings = ROUTINGS
    data = NONE
    routing_flags = (*PLACEMENTS, *IDS)
    starter = "return ref.moe_align_block_size(topk_ids, block_size, num_experts, expert_map)"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """moe_align_block_size: topk_ids [T, k], block_size, num_experts, expert_map or None."""
        ids, _ = as_given(case, *draw_topk(case.routing, case.T, case.E, case.k, case.seed))
        args = {"topk_ids": ids, "block_size": case.B, "num_experts": case.E, "expert_map": expert_map(case)}
        return Problem(case, args, exact=True)

    # ---- Judging: shapes, bands, references, derivations ----

    without: Mapping[str, str] = {**TupleOp.without, "compared": "all of its results are integers"}

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        topk_ids, B, E, _ = problem.args.values()
        places = topk_ids.numel() + E * (B - 1)
        return {"sorted_token_ids": (places,), "expert_ids": (-(-places // B),), "num_tokens_post_padded": (1,)}

    def judge_parts(self, problem: Problem, parts: list[torch.Tensor], verdict: Verdict) -> None:
        """Blocks exactly, ids as a set per expert."""
        want_ids, want_experts, want_end = moe_align_block_size(*problem.args.values())
        ids, experts, end = parts
        if not same(verdict, "num_tokens_post_padded", end, want_end):
            return
        past = (experts != want_experts)[int(want_end) // problem.args["block_size"] :]
        note = "blocks past the end must hold expert -1 (FAULTS F11)" if bool(past.any()) else ""
        if not same(verdict, "expert_ids", experts, want_experts, note):
            return
        want_sets, got_sets = (_sorted_inside_experts(problem, i) for i in (want_ids, ids))
        note = "compared as sets per expert, each sorted: the order inside one is open"
        same(verdict, "sorted_token_ids", got_sets, want_sets, note)

    def settled(self, problem: Problem, output: Any) -> Any:
        """Ids inside an expert's blocks may come in any order."""
        ids, experts, end = output
        return _sorted_inside_experts(problem, ids), experts, end

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return self.named(moe_align_block_size(*problem.args.values()))

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """The reference's, in slot order."""
        return self.named(moe_align_block_size(*problem.args.values()))

    # ---- Laws and diagnosis ----

    laws = (
        law_every_slot_has_one_place,
        law_permuting_tokens,
        law_splitting_batches,
        law_relabelling_experts,
        law_block_size,
        law_dispatch_counts_add_up,
    )

    token_args = ("topk_ids",)

    def by_token(self, problem: Problem, results: Tensors) -> Tensors:
        """`expert` [T, k]: the expert of the block that a slot is in; -1 elsewhere, -2 in none, -3 in several."""
        case, ids = problem.case, results["sorted_token_ids"].long()
        owner = results["expert_ids"].long().repeat_interleave(case.B)[: len(ids)]
        place = torch.arange(len(ids))
        used = (place < int(results["num_tokens_post_padded"])) & (ids >= 0) & (ids < case.R)
        expert = torch.full((case.R,), -2, dtype=torch.int64)
        expert[ids[used]] = owner[used]
        expert[torch.bincount(ids[used], minlength=case.R) > 1] = -3
        return {"expert": expert.reshape(case.T, case.k)}

    def token_axes(self, value: torch.Tensor) -> tuple[str, ...]:
        return ("token", "slot")[: value.ndim]

    def rename_experts(
        self, problem: Problem, expected: Tensors, name: torch.Tensor, weights: dict[str, Int4Weight]
    ) -> tuple[Problem, Tensors]:
        renamed, _ = super().rename_experts(problem, expected, name, weights)
        called = name[expected["expert"].clamp(min=0)]
        return renamed, {"expert": torch.where(expected["expert"] < 0, expected["expert"], called)}

    def with_block_size(self, problem: Problem, block: int) -> Problem:
        return Problem(problem.case.replace(B=block), {**problem.args, "block_size": block}, problem.truth, True)

    # ---- Inference, bisection and the bench ----

    one_stage = ROUTING
    step_of_layer = True


def _sorted_inside_experts(problem: Problem, sorted_token_ids: torch.Tensor) -> torch.Tensor:
    """Sort the ids of each expert's run of blocks, padding last, so that only their set matters.

    Args:
        sorted_token_ids: int32, as the op returns them; any values.
    """
    topk_ids, B, E, _ = problem.args.values()
    _, experts, end = moe_align_block_size(topk_ids, B, E)  # without the map, so that each expert has its own run
    owner = experts.repeat_interleave(B)[: sorted_token_ids.shape[0]].long()
    owner[int(end) :] = E
    by_id = torch.argsort(sorted_token_ids, stable=True)
    return sorted_token_ids[by_id[torch.argsort(owner[by_id], stable=True)]]
