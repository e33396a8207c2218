"""dequantize_int4: weights as values of the activation dtype."""

from __future__ import annotations

from ..optable import Argument, Result
from .families import WeightReader


class DequantizeInt4(WeightReader):
    """What the harness knows of dequantize_int4."""

    name = "dequantize_int4"
    summary = "out[..., n, k] = D((code - zero point) * scale of its group)."
    arguments = (
        Argument(
            "w",
            "Int4Weight [N, K] or [E, N, K]",
            "The packed weight, in the layout that the kernel declares; with experts where the case has E.",
        ),
    )
    results = (Result("out", "D [..., N, K]", "Weights, rounded once.", ("expert", "n", "k")),)
    dims = ("E", "N", "K", "G")
    weight = True
    data = ("normal", "codes16", "wide", "subnormal", "integers")
    optional = ("E",)
    starter = "return w.dequantize().to(w.scale.dtype)"

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    nothing_inferred = "(u - z) * s is rounded once to D, and `moeracle check` judges every weight"
