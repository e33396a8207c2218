"""dequantize_int4: weights as values of the activation dtype."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from moeracle.ref.bounds.band import Band, exactly
from moeracle.ref.contracts.contract import Contract

from ..cases.case import Problem
from ..cases.changes import with_larger_scales
from ..cases.optable import SCALES, Result
from ..cases.record import Piece, Tensors
from ..compare.floats import all_rows, pieces
from ..golden.derive import int4_values, rows_of_floats
from ..golden.rational import as_tensor, nearest
from ..laws.scaling import law_scaling_by_powers_of_two
from ..laws.weights import law_an_expert_alone, law_codes_at_their_zero_point, law_layouts_agree, law_negative_scales
from .families import WeightReader, rounded


class DequantizeInt4(WeightReader):
    """What the harness knows of dequantize_int4."""

    name = "dequantize_int4"
    summary = "out[..., n, k] = D((code - zero point) * scale of its group)."
    results = (Result("out", "D [..., N, K]", "Weights, rounded once.", ("expert", "n", "k")),)
    data = ("normal", "codes16", "wide", "subnormal", "integers")
    data_flags = SCALES
    starter = "return w.dequantize().to(w.scale.dtype)"

    # ---- Judging: shapes, bands, references, derivations ----

    def as_judged(self, rules: Contract) -> Contract:
        """One rounding of the exact weight, in the direction of the weight's rounding."""
        return replace(rules, store_rounding=rules.weight_rounding)

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        dtype = problem.case.torch_dtype
        assert dtype is not None
        w = problem.args["w"]
        values = w.dequantize(torch.float32).reshape(-1, w.K)
        for rows in pieces(all_rows(values)):
            one = exactly(values[rows])
            if rules.ftz:
                tiny = one.lo.abs() < torch.finfo(dtype).smallest_normal
                lo, hi = one.lo.clamp(max=0), one.lo.clamp(min=0)
                one = Band(torch.where(tiny, lo, one.lo), torch.where(tiny, hi, one.lo))
            yield "out", rows, 0, one

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return rounded({"out": problem.args["w"].dequantize(dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """(u-z)*s rounded once to D, in the direction of the weight's rounding."""
        w, dtype = problem.args["w"], problem.case.torch_dtype
        assert dtype is not None
        matrices = [w] if w.E is None else [w.expert(e) for e in range(w.E)]
        exactly_scaled = replace(contract.unscheduled, weight="exact")
        values = [int4_values(m, exactly_scaled, dtype).fractions() for m in matrices]
        rounding = functools.partial(nearest, dtype=dtype, mode=contract.weight_rounding)
        rows = rows_of_floats((row for of_matrix in values for row in of_matrix), rounding)
        return {"out": as_tensor(rows, w.K, dtype).reshape(w.shape)}

    # ---- Laws and diagnosis ----

    laws = (
        law_scaling_by_powers_of_two,
        law_codes_at_their_zero_point,
        law_an_expert_alone,
        law_layouts_agree,
        law_negative_scales,
    )

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        return [("the scales", {"w": with_larger_scales(problem.args["w"])})]

    # ---- Inference, bisection and the bench ----

    nothing_inferred = "(u - z) * s is rounded once to D, and `moeracle check` judges every weight"
