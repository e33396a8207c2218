"""int4_linear: a dense linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moeracle.ref.weight import Int4Weight

from ..build import bias_of, gemm_plan, gemm_weight_plan, variant_of
from ..case import Case
from ..data import activations
from ..generator import FORMATS
from ..inputs import rows_of, strided
from ..optable import GEMM_DATA, Argument, Result
from ..problem import Problem
from ..weights import int4_weight
from .families import OneGemm

if TYPE_CHECKING:
    from ..bisect.made import Layer
    from ..infer.drive import Dots


class Int4Linear(OneGemm):
    """What the harness knows of int4_linear."""

    name = "int4_linear"
    summary = "out = x @ dequantized(w)^T + bias."
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        Argument(
            "w",
            "Int4Weight [N, K]",
            "The weight, in the layout that the kernel declares; its attributes "
            "are packed, scale, zero, layout, G, N, K.",
        ),
        Argument("bias", "D [N]", "Added to the sum before the store.", True),
    )
    results = (Result("out", "D [T, N]", "The product.", ("token", "n")),)
    dims = ("T", "N", "K", "G")
    weight = True
    data = GEMM_DATA
    data_flags = ("bias", "strided")
    starter = "return ref.int4_linear(x, w, bias).to(x.dtype)"
    starter_contract = "grouped,weight=exact,accumulator=fp32"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """int4_linear: x [T, K], w [N, K], bias [N] or None."""
        plan, variant = gemm_plan(case), variant_of(case)
        x = activations(case.data, FORMATS[case.dtype], case.T, case.K, case.seed, plan=plan, variant=variant)
        w = int4_weight(case, "w", None, gemm_weight_plan(case, case.K, plan, variant))
        bias = bias_of(case, case.N, plan)
        exact = plan.exact if plan else case.data == "onehot" and bias is None
        return Problem(case, {"x": rows_of(x, case), "w": w, "bias": bias}, exact=exact)

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        return {"x": x, **weights, "bias": None}

    def probe_weights(self, dots: Dots, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        return {"w": dots.pack(q, s)}

    def made_problem(self, case: Case, layer: Layer, w: Int4Weight) -> Problem:
        return Problem(case, {"x": strided(layer.x, case), "w": w, "bias": None}, exact=True)
