"""dequantize_int4: weights as values of the activation dtype."""

from __future__ import annotations

from typing import Any

from moeracle.ref.contract import Contract

from ..cases.changes import scaled_weight
from ..laws.scaling import law_scaling_by_powers_of_two
from ..laws.weights import law_an_expert_alone, law_codes_at_their_zero_point, law_layouts_agree
from ..optable import Argument, Result
from ..problem import Problem
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

    laws = (
        law_scaling_by_powers_of_two,
        law_codes_at_their_zero_point,
        law_an_expert_alone,
        law_layouts_agree,
    )

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        return [("the scales", {"w": scaled_weight(problem.args["w"])})]

    # ---- Inference, bisection and the bench ----
