"""int8_lm_head: the output projection with int8 weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.bounds.band import bias_band, exactly
from moeracle.ref.bounds.dot import dot_band
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.int8_lm_head import int8_lm_head

from ..bisect.isolate_ops import LmHeadBench
from ..cases.build import bias_of, variant_of
from ..cases.case import Case, Problem
from ..cases.changes import multiplied, with_args
from ..cases.data import SCALES_TINY, X_TINY, activations, int8_scales, power_scales
from ..cases.exact import GemmPlan, plan_gemm
from ..cases.inputs import EXACT, rows_of
from ..cases.optable import GEMM_DATA, VOCABULARY, Argument, Result
from ..cases.record import Piece, Tensors
from ..common.generator import FORMATS, Stream, to_tensor
from ..compare.floats import all_rows, pieces
from ..compare.int8 import int8_dot_weights
from ..golden.derive import biased
from ..golden.rational import dots, nearest, scaled, scaled_floats
from ..infer.drive import Dots
from ..laws.batch import law_batch_invariance, law_permuting_tokens, law_splitting_batches
from ..laws.scaling import law_columns_are_independent, law_linearity, law_scaling_by_powers_of_two
from .families import OneGemm, rounded

PADDING = 4  # under +padvocab one row in so many is no token
WEIGHTS_AT_ONCE = 1 << 20  # int8 weights held in fp64 together: a whole vocabulary would take gigabytes


class Int8LmHead(OneGemm):
    """What the harness knows of int8_lm_head."""

    name = "int8_lm_head"
    summary = "out[t, v] = sum over groups of scale[v, g] * (x[t] . codes[v]) + bias[v]."
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        Argument("codes", "int8 [V, K]", "Codes -128..127."),
        Argument("scale", "float32 [V] or [V, K/G]", "One scale a row, or one a group."),
        Argument("bias", "D [V]", "Added to the sum before the store.", True, flag="bias"),
    )
    results = (Result("out", "D [T, V]", "Logits.", ("token", "v")),)
    dims = ("T", "V", "K", "G")
    data = tuple(name for name in GEMM_DATA if name != "codes16")
    data_flags = ("bias", "strided", *VOCABULARY)
    default_contract = "int8_lm_head"
    starter = "return ref.int8_lm_head(x, codes, scale, bias).to(x.dtype)"
    starter_contract = "int8_lm_head,weight=exact,accumulator=fp32"

    def matrix_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
        return {"codes": (sizes["V"], sizes["K"])}

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """int8_lm_head: x [T, K], codes int8 [V, K], scale fp32 [V] or [V, K/G], bias [V] or None.

        Under +padvocab the last rows are no tokens: their scales and biases are NaN, their logits may be anything.
        """
        fmt, fp32, plan, variant = FORMATS[case.dtype], FORMATS["fp32"], self._exact_plan(case), self._variant(case)
        V, K, groups = case.V, case.K, 1 if case.G == -1 else case.K // case.G
        x = activations(case.data, fmt, case.T, K, case.seed, plan=plan, variant=variant)
        codes = Stream(case.seed, "codes").bits((V, K), 8).view(np.int8).copy()
        if case.data == "samesign":
            codes &= 127
        elif case.data == "cancelling":
            half = K // 2
            first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if K % 16 else (slice(half), slice(half, K))
            codes[:, second] = codes[:, first]
        elif case.data == "stagnation":
            codes[:] = np.left_shift(1, Stream(case.seed, "codes.row").below((V, 1), 7))
        stream = Stream(case.seed, "scale")
        if plan is not None:
            scale = to_tensor(power_scales(stream, fp32, (V, groups), plan.exponent, 2), fp32)
        else:
            scale = to_tensor(int8_scales(case.data, fmt, (V, groups), K, stream, variant), fp32)
        scale = (scale[:, 0] if case.G == -1 else scale).contiguous()
        args = {"x": rows_of(x, case), "codes": torch.from_numpy(codes), "scale": scale}
        bias = bias_of(case, V, plan)
        tokens = V - -(-V // PADDING) if "padvocab" in case.flags else V
        for padded in (scale, bias):
            if padded is not None:
                padded[tokens:] = torch.nan
        truth = {"group_size": case.G, "tokens": tokens}
        return Problem(case, {**args, "bias": bias}, truth, plan is not None and plan.exact)

    def _exact_plan(self, case: Case) -> GemmPlan | None:
        """The exact plan, None for inexact recipes; codes reach 128, and 384 with their zero point hoisted."""
        return plan_gemm(case.data, case.K, case.seed, largest=128, hoists=384) if case.data in EXACT else None

    def _variant(self, case: Case) -> int:
        """What `subnormal` makes subnormal; fp32 scales so small that fp16 could not make up for them are left out."""
        variant = variant_of(case)
        return X_TINY if variant == SCALES_TINY and case.dtype == "fp16" else variant

    # ---- Judging: shapes, bands, references, derivations ----

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": (problem.args["x"].shape[0], problem.args["codes"].shape[0])}

    def known_from(self, args: dict[str, Any], sizes: dict[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
        return {}, {"group_size": sizes.get("G", -1)}

    def as_judged(self, rules: Contract) -> Contract:
        """q*s needs 32 bits and its product 24 + 8: two roundings, as many as hoisting has."""
        return replace(rules, weight="hoisted") if rules.weight == "exact" else rules

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        """Dot products plus bias, some vocabulary rows at a time."""
        x, codes, scale, bias = problem.args.values()
        V, K = self._tokens(problem), codes.shape[1]
        for v in torch.arange(V, device=x.device).split(max(1, WEIGHTS_AT_ONCE // K)):
            b = None if bias is None else bias[v]
            weights = int8_dot_weights(codes[v], scale[v], rules, x.dtype, b)
            fused = weights.operands is not None and weights.operands.bias is not None
            for rows in pieces(all_rows(x)):
                band = dot_band(exactly(x[rows]), weights, rules, x.dtype, exact=exact)
                yield "out", rows, int(v[0]), band if b is None or fused else bias_band(band, b, rules, x.dtype)

    def _tokens(self, problem: Problem) -> int:
        """Return how many rows of the weight are tokens; those after them are padding."""
        tokens: int = problem.truth.get("tokens", len(problem.args["codes"]))
        return tokens

    def settled(self, problem: Problem, output: Any) -> Any:
        return output[:, : self._tokens(problem)]

    def by_token(self, problem: Problem, results: Tensors) -> Tensors:
        return {"out": results["out"][:, : self._tokens(problem)]}

    def largest_code(self, rules: Contract, dtype: torch.dtype, top: int = 15) -> int:
        return 128

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return rounded({"out": int8_lm_head(*problem.args.values(), dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Dot products with q*s, plus bias in fp32, stored."""
        x, codes, scale, bias = problem.args.values()
        V, K = codes.shape
        padding = V - self._tokens(problem)
        if padding:  # which may hold anything: here 0
            scale = torch.cat([scale[:-padding], torch.zeros_like(scale[-padding:])])
            bias = None if bias is None else torch.cat([bias[:-padding], torch.zeros_like(bias[-padding:])])
        groups = scale.reshape(V, -1).double().repeat_interleave(K // (scale.numel() // V), 1)
        values = codes.double() * groups  # 8 + 24 bits
        if contract.weight == "cast":
            flat = [nearest(v, x.dtype, contract.weight_rounding) for v in values.flatten().tolist()]
            w = scaled_floats(flat, (V, K))
        else:
            w = scaled(values)
        return {"out": biased(dots(scaled(x), w).fractions(), V, bias, contract, x.dtype)}

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_batch_invariance,
        law_scaling_by_powers_of_two,
        law_linearity,
        law_columns_are_independent,
    )

    def scaled_scales(self, problem: Problem) -> dict[str, Any]:
        return {"scale": multiplied(problem.args["scale"])}

    def change_columns(self, problem: Problem, columns: torch.Tensor) -> Problem:
        codes = problem.args["codes"]
        return with_args(problem, codes=torch.where(columns[:, None], ~codes, codes))

    # ---- Inference, bisection and the bench ----

    presets = ("int8_lm_head",)
    bias_may_be_fused = True

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        return {"x": x, **weights}

    def probe_weights(self, dots: Dots, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        scale = s.float() if dots.site.case.G != -1 else s[:, 0].float()
        return {"codes": q.to(torch.int8), "scale": scale, "bias": dots.bias}

    def predicted_sums(
        self, dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract
    ) -> torch.Tensor:
        assert rules.schedule is not None
        if rules.weight == "post":
            return accumulate(x, q.to(dots.dtype), rules.schedule, scale=s.float()).double()
        w = q.float() * s.float().repeat_interleave(dots.G, 1)
        return accumulate(x, w.to(dots.dtype) if rules.weight == "cast" else w, rules.schedule).double()

    probe_bench = LmHeadBench
    weight_arguments = ("codes", "scale")

    def flops(self, case: Case, rows: int) -> int:
        return 2 * rows * case.V * case.K
