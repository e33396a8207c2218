"""Families of ops: what the ops of one kind have in common, so that each record says only what is its own."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.weight import Int4Weight

from ..build import gemm_weight_plan
from ..case import Case
from ..cases.changes import scaled, scaled_weight, topk_ids_of, with_args
from ..cases.record import OpRecord
from ..data import PLAIN, power_scales
from ..generator import FORMATS
from ..problem import Problem
from ..weights import WeightPlan, int4_weight


class TupleOp(OpRecord):
    """An op that returns a tuple of tensors, most of them exact: routing, dispatch, the quantizer."""


class WeightReader(OpRecord):
    """An op that reads packed weights out."""

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """unpack_int4, dequantize_int4: w, with experts if the case has E."""
        fmt = FORMATS[case.dtype]
        variant = 1 + case.seed % 2 if case.data == "subnormal" else PLAIN  # only scales can be subnormal here
        if case.data == "integers":
            plan = WeightPlan(lambda shape, stream: power_scales(stream, fmt, shape, 0, 2))
        else:
            plan = gemm_weight_plan(case, case.K, None, variant)
        return Problem(case, {"w": int4_weight(case, "w", case.sizes.get("E"), plan)}, exact=True)

    # ---- Laws and diagnosis ----

    elementwise = True

    def token_axes(self, value: torch.Tensor) -> tuple[str, ...]:
        return ("expert", "n", "k")[-value.ndim :]


class FloatOp(OpRecord):
    """An op that returns one tensor of floats."""


class OneGemm(FloatOp):
    """An op that is one matrix product."""

    # ---- Laws and diagnosis ----

    sums_products = True
    has_exact_data = True
    token_args = ("x",)

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        args = problem.args
        bias = {} if args.get("bias") is None else {"bias": scaled(args["bias"])}
        return [("x", {"x": scaled(args["x"]), **bias}), ("the scales", {**self.scaled_scales(problem), **bias})]

    def scaled_scales(self, problem: Problem) -> dict[str, Any]:
        """Return the weight argument whose scales are FACTOR times as large."""
        return {"w": scaled_weight(problem.args["w"])}


class RoutedGemm(OneGemm):
    """A matrix product whose rows belong to experts."""

    # ---- Laws and diagnosis ----

    def take_tokens(self, problem: Problem, index: torch.Tensor) -> Problem:
        weights, ids = problem.args.get("topk_weights"), topk_ids_of(problem)[index]
        x = self.tokens_of(problem)[index]
        return self.route_again(problem, x, ids, None if weights is None else weights[index])

    def with_ids(self, problem: Problem, ids: torch.Tensor, weights: dict[str, Int4Weight]) -> Problem:
        changed = with_args(problem, **weights)
        return self.route_again(changed, self.tokens_of(problem), ids, problem.args.get("topk_weights"))

    def tokens_of(self, problem: Problem) -> torch.Tensor:
        """Return x [T, K] in token order."""
        raise NotImplementedError(f"{self.name}: tokens_of")

    def route_again(
        self, problem: Problem, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None, **sizes: int
    ) -> Problem:
        """Return the problem made again from tokens and their experts.

        Args:
            problem: gives the weights and what else stays.
            x: [T, K] in token order.  ids: int32 [T, k].  weights: [T, k], or None where the case multiplies none in.
            sizes: other dimensions to change: B for another block size.
        """
        raise NotImplementedError(f"{self.name}: route_again")


class Layer(FloatOp):
    """An op of two matrix products with an activation between them, whose stages a kernel may store."""

    layer = True

    def implied_size(self, letter: str, sizes: dict[str, int]) -> int | None:
        return {"K": sizes["H"], "N": 2 * sizes["I"]}.get(letter)

    # ---- Laws and diagnosis ----

    sums_products = True
    has_exact_data = True
