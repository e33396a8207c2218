"""Families of ops: what the ops of one kind have in common, so that each record says only what is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moeracle.ref.contract import Contract

from ..build import gemm_weight_plan
from ..case import Case
from ..cases.record import OpRecord
from ..data import PLAIN, power_scales
from ..generator import FORMATS
from ..infer.fit import int4_sums
from ..infer.found import OF_GEMM
from ..problem import Problem
from ..weights import WeightPlan, int4_weight

if TYPE_CHECKING:
    from ..infer.drive import Dots


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


class FloatOp(OpRecord):
    """An op that returns one tensor of floats."""


class OneGemm(FloatOp):
    """An op that is one matrix product."""

    # ---- Inference, bisection and the bench ----

    inferred: tuple[str, ...] = OF_GEMM

    def predicted_sums(
        self, dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract
    ) -> torch.Tensor:
        return int4_sums(dots, x, q, s, rules)


class RoutedGemm(OneGemm):
    """A matrix product whose rows belong to experts."""

    # ---- Inference, bisection and the bench ----

    def probe_weights(self, dots: Dots, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        return {"w": dots.pack(q[None], s[None])}


class Layer(FloatOp):
    """An op of two matrix products with an activation between them, whose stages a kernel may store."""

    layer = True

    def implied_size(self, letter: str, sizes: dict[str, int]) -> int | None:
        return {"K": sizes["H"], "N": 2 * sizes["I"]}.get(letter)

    # ---- Inference, bisection and the bench ----

    def probe_weights(self, dots: Dots, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        H, I = dots.site.case.H, dots.site.case.I
        return self.layer_weights(dots, q, s, torch.zeros(H, I), torch.ones(H, I // dots.G))

    def predicted_sums(
        self, dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract
    ) -> torch.Tensor:
        return int4_sums(dots, x, q, s, rules)
