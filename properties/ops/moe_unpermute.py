"""moe_unpermute: the weighted sum over each token's slots."""

from __future__ import annotations

from ..optable import ROUTINGS, Argument, Result
from .families import FloatOp


class MoeUnpermute(FloatOp):
    """What the harness knows of moe_unpermute."""

    name = "moe_unpermute"
    summary = "out[t] = sum over slots j of topk_weights[t, j] * y[inv[t*k+j]], in fp32, rounded once."
    arguments = (
        Argument("y", "D [R, K]", "Rows in the order of experts."),
        Argument("topk_weights", "float32 [T, k]", "Router weights."),
        Argument("inv", "int32 [R]", "The row of each slot t*k+j."),
    )
    results = (Result("out", "D [T, K]", "The sum over slots.", ("token", "n")),)
    dims = ("T", "E", "k", "K")
    routings = ROUTINGS
    data = ("normal", "outliers", "cancelling", "wide", "subnormal", "integers", "samesign")

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
