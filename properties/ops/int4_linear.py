"""int4_linear: a dense linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from moeracle.ref.bounds.band import bias_band, exactly
from moeracle.ref.bounds.dot import dot_band, dot_weights
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.int4_linear import int4_linear
from moeracle.ref.weights.weight import Int4Weight

from ..bisect.made import Layer
from ..cases.build import bias_of, gemm_plan, gemm_weight_plan, variant_of
from ..cases.case import Case, Problem
from ..cases.data import activations
from ..cases.inputs import rows_of, strided
from ..cases.optable import GEMM_DATA, SCALES, Argument, Result
from ..cases.record import Piece, Tensors
from ..cases.weights import int4_weight
from ..common.generator import FORMATS
from ..compare.floats import all_rows, pieces
from ..golden.derive import biased, int4_sums
from ..infer.drive import Dots
from ..infer.found import OF_GEMM, Inference
from ..infer.late import find_bias
from ..laws.batch import law_batch_invariance, law_permuting_tokens, law_splitting_batches
from ..laws.scaling import law_columns_are_independent, law_linearity, law_scaling_by_powers_of_two
from ..laws.weights import law_layouts_agree, law_negative_scales
from .families import OneGemm, rounded


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
        Argument("bias", "D [N]", "Added to the sum before the store.", True, flag="bias"),
    )
    results = (Result("out", "D [T, N]", "The product.", ("token", "n")),)
    dims = ("T", "N", "K", "G")
    weight = True
    data = GEMM_DATA
    data_flags = ("bias", "strided", *SCALES)
    starter = "return ref.int4_linear(x, w, bias).to(x.dtype)"
    starter_contract = "grouped,weight=exact,accumulator=fp32"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """int4_linear: x [T, K], w [N, K], bias [N] or None."""
        plan, variant = gemm_plan(case), variant_of(case)
        fmt = FORMATS[case.dtype]
        x = activations(case.data, fmt, case.T, case.K, case.seed, plan=plan, variant=variant, bits=case.bits)
        w = int4_weight(case, "w", None, gemm_weight_plan(case, case.K, plan, variant))
        bias = bias_of(case, case.N, plan)
        exact = plan.exact if plan else case.data == "onehot" and bias is None
        return Problem(case, {"x": rows_of(x, case), "w": w, "bias": bias}, exact=exact)

    # ---- Judging: shapes, bands, references, derivations ----

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": (problem.args["x"].shape[0], problem.args["w"].N)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        """Dot products; the bias is added in fp32 before the store, or in D after it."""
        x, w, bias = problem.args["x"], problem.args["w"], problem.args.get("bias")
        weights = dot_weights(w, rules, x.dtype)
        for rows in pieces(all_rows(x)):
            band = dot_band(exactly(x[rows]), weights, rules, x.dtype, exact=exact)
            late = weights.after is not None
            yield "out", rows, 0, band if bias is None else bias_band(band, bias, rules, x.dtype, late=late)

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return rounded({"out": int4_linear(*problem.args.values(), dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Dot products, plus bias in fp32, stored."""
        x, w, bias = problem.args["x"], problem.args["w"], problem.args.get("bias")
        return {"out": biased(int4_sums(x, w, contract, x.dtype), w.N, bias, contract, x.dtype)}

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_batch_invariance,
        law_scaling_by_powers_of_two,
        law_linearity,
        law_columns_are_independent,
        law_layouts_agree,
        law_negative_scales,
    )

    # ---- Inference, bisection and the bench ----

    inferred = (*OF_GEMM, "bias")

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        return {"x": x, **weights, "bias": weights.get("bias")}

    def find_around_gemm(self, dots: Dots, rules: Contract, opaque: bool, result: Inference) -> Contract:
        return find_bias(dots, rules, result)

    def probe_weights(self, dots: Dots, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        return {"w": dots.pack(q, s)}

    def made_problem(self, case: Case, layer: Layer, w: Int4Weight) -> Problem:
        return Problem(case, {"x": strided(layer.x, case), "w": w, "bias": None}, exact=True)
