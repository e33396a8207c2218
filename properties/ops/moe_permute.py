"""moe_permute: tokens in the order of their experts."""

from __future__ import annotations

from ..bisect.suspects import ROUTING
from ..build import rows_of_values
from ..case import Case
from ..inputs import expert_map, rows_of
from ..optable import ROUTINGS, Argument, Result
from ..problem import Problem
from ..routings import draw_topk
from .families import TupleOp


class MoePermute(TupleOp):
    """What the harness knows of moe_permute."""

    name = "moe_permute"
    summary = "rows of x repeated for each slot, sorted by expert, stable."
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        Argument(
            "topk_ids", "int32 [T, k]", "The chosen experts of each token, 0..E-1; -1 marks a slot that does nothing."
        ),
        Argument("num_experts", "int", "E, all ranks together."),
        Argument(
            "expert_map",
            "int32 [num_experts]",
            "The local number of each expert, -1 for experts on another rank.",
            True,
        ),
    )
    results = (
        Result(
            "x_permuted",
            "D [R, K]",
            "Rows by local expert; rows of ignored slots and of experts elsewhere come last and may hold anything.",
            ("row", "n"),
        ),
        Result(
            "expert_offsets",
            "int64 [E+1]",
            "Where each local expert's rows begin; the last entry is their number.",
            ("expert",),
        ),
        Result("inv", "int32 [R]", "The row of each slot t*k+j.", ("slot",)),
    )
    dims = ("T", "E", "k", "K")
    routings = ROUTINGS
    data = ("normal", "wide", "subnormal", "integers")
    routing_flags = ("ep2",)
    data_flags = ("strided",)
    starter = "return ref.moe_permute(x, topk_ids, num_experts, expert_map)"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """moe_permute: x [T, K], topk_ids [T, k], num_experts, expert_map or None."""
        ids, _ = draw_topk(case.routing, case.T, case.E, case.k, case.seed)
        x = rows_of(rows_of_values(case, case.T), case)
        args = {"x": x, "topk_ids": ids, "num_experts": case.E, "expert_map": expert_map(case)}
        return Problem(case, args, exact=True)

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    one_stage = ROUTING
    step_of_layer = True
