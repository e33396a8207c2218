"""Families of ops: what the ops of one kind have in common, so that each record says only what is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.weight import Int4Weight

from ..bisect.families import OF_ONE_GEMM, OF_READER, Family
from ..bisect.isolate import Bench
from ..bisect.isolate_ops import OneOpBench
from ..bisect.suspects import GEMM1, GEMM2, ROUTING, SCALE
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
    from ..bisect.made import Layer as MadeLayer
    from ..bisect.made import Weight
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

    # ---- Inference, bisection and the bench ----

    step_of_layer = True
    probe_bench: type[Bench] = OneOpBench
    last_stage: str = SCALE
    last_words = "what is left of reading a weight is named"

    def questions(self, stored: str) -> tuple[Family, ...]:
        return OF_READER

    def made_problem(self, case: Case, layer: MadeLayer, w: Int4Weight) -> Problem:
        return Problem(case, {"w": w}, exact=True)

    def made_rows(self, problem: Problem, layer: MadeLayer, out: torch.Tensor) -> torch.Tensor:
        """x times what was read."""
        weights = self.as_weights(layer.w13, out if "E" in problem.case.sizes else out[None])
        answers = [weights[layer.ids[t].clamp(min=0)] @ layer.x[t].double() for t in range(len(layer.x))]
        return torch.cat(answers)

    def as_weights(self, made: Weight, out: torch.Tensor) -> torch.Tensor:
        """Return what was read as weights [E, N, K], float64."""
        return out

    def flops(self, case: Case, rows: int) -> int:
        return 0


class FloatOp(OpRecord):
    """An op that returns one tensor of floats."""


class OneGemm(FloatOp):
    """An op that is one matrix product."""

    # ---- Inference, bisection and the bench ----

    inferred: tuple[str, ...] = OF_GEMM
    probe_bench: type[Bench] = OneOpBench
    last_stage = GEMM1

    def predicted_sums(
        self, dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract
    ) -> torch.Tensor:
        return int4_sums(dots, x, q, s, rules)

    def questions(self, stored: str) -> tuple[Family, ...]:
        return OF_ONE_GEMM

    def stage_shown(self, stage: str, stores: bool) -> str:
        """What it returns is what it stores, and without experts nothing is routed."""
        unrouted = stage == ROUTING and "E" not in self.dims
        return GEMM1 if stores or unrouted or stage == GEMM2 else stage


class RoutedGemm(OneGemm):
    """A matrix product whose rows belong to experts."""

    # ---- Inference, bisection and the bench ----

    step_of_layer = True
    timed_as = ("gemm1", "gemm2")
    timed_by_default = True

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
