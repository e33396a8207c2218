"""moe_align_block_size: blocks of slots, one expert a block."""

from __future__ import annotations

from ..bisect.suspects import ROUTING
from ..case import Case
from ..inputs import expert_map
from ..optable import NONE, ROUTINGS, Argument, Result
from ..problem import Problem
from ..routings import draw_topk
from .families import TupleOp


class MoeAlignBlockSize(TupleOp):
    """What the harness knows of moe_align_block_size."""

    name = "moe_align_block_size"
    summary = "slots sorted by expert, each expert's run padded to whole blocks."
    arguments = (
        Argument(
            "topk_ids", "int32 [T, k]", "The chosen experts of each token, 0..E-1; -1 marks a slot that does nothing."
        ),
        Argument("block_size", "int", "Slots a block, B."),
        Argument("num_experts", "int", "E, all ranks together."),
        Argument(
            "expert_map",
            "int32 [num_experts]",
            "The local number of each expert, -1 for experts on another rank.",
            True,
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
    routing_flags = ("ep2",)
    starter = "return ref.moe_align_block_size(topk_ids, block_size, num_experts, expert_map)"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """moe_align_block_size: topk_ids [T, k], block_size, num_experts, expert_map or None."""
        ids, _ = draw_topk(case.routing, case.T, case.E, case.k, case.seed)
        args = {"topk_ids": ids, "block_size": case.B, "num_experts": case.E, "expert_map": expert_map(case)}
        return Problem(case, args, exact=True)

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    one_stage = ROUTING
    step_of_layer = True
