"""topk_softmax: the router."""

from __future__ import annotations

from ..optable import Argument, Result
from .families import TupleOp


class TopkSoftmax(TupleOp):
    """What the harness knows of topk_softmax."""

    name = "topk_softmax"
    summary = (
        "softmax of each row in fp32; the k largest, ties to the lowest expert, in descending order; divided "
        "by their sum under renormalize."
    )
    arguments = (
        Argument("logits", "D [T, E]", "Router logits; D may be fp32 too."),
        Argument("top_k", "int", "Experts a token, 1..E."),
        Argument("renormalize", "bool", "Whether the chosen weights are divided by their sum."),
    )
    results = (
        Result("weights", "float32 [T, k]", "Router weights, descending.", ("token", "slot")),
        Result("ids", "int32 [T, k]", "The chosen experts.", ("token", "slot")),
    )
    dims = ("T", "E", "k")
    dtypes = ("bf16", "fp16", "fp32")
    data = ("normal", "ties", "nonfinite", "outliers", "wide")
    routing_flags = ("renorm",)

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
