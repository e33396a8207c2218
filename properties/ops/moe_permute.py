"""moe_permute: tokens in the order of their experts."""

from __future__ import annotations

from ..optable import ROUTINGS, Argument, Result
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

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
