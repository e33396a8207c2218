"""moe_w4a16: the whole Mixture-of-Experts layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.weight import Int4Weight

from ..bisect.families import FUSED, OF_STORED, Family
from ..bisect.isolate import Bench
from ..build import layer_inputs
from ..case import Case
from ..exact import plan_moe
from ..infer.found import OF_GEMM
from ..infer.routing import find_layer
from ..inputs import DYADIC_STEPS, EXACT, rows_of
from ..optable import GEMM_DATA, ROUTINGS, Argument, Result
from ..problem import Problem
from ..routings import draw_topk
from ..weights import int4_weight
from .families import Layer

if TYPE_CHECKING:
    from ..infer.drive import Dots
    from ..infer.found import Inference


class MoeW4A16(Layer):
    """What the harness knows of moe_w4a16."""

    name = "moe_w4a16"
    summary = (
        "y[s] = (silu(x[t] @ w13[e][:I]^T) * (x[t] @ w13[e][I:]^T)) @ w2[e]^T for each slot s of token t; "
        "out[t] = sum of topk_weights * y."
    )
    arguments = (
        Argument("x", "D [T, H]", "Activations."),
        Argument("w13", "Int4Weight [E, 2I, H]", "First weights: gate rows, then up rows."),
        Argument("w2", "Int4Weight [E, H, I]", "Second weights."),
        Argument("topk_weights", "float32 [T, k]", "Router weights."),
        Argument(
            "topk_ids", "int32 [T, k]", "The chosen experts of each token, 0..E-1; -1 marks a slot that does nothing."
        ),
    )
    results = (
        Result("h", "D [T*k, 2I]", "After GEMM1; a kernel may leave it out.", ("row", "n")),
        Result("a", "D [T*k, I]", "After silu and product; a kernel may leave it out.", ("row", "n")),
        Result("y", "D [T*k, H]", "After GEMM2; a kernel may leave it out.", ("row", "n")),
        Result("out", "D [T, H]", "The layer's output.", ("token", "n")),
    )
    dims = ("T", "E", "k", "H", "I", "G")
    weight = True
    routings = ROUTINGS
    data = (*GEMM_DATA, "sweep", "onehot2")
    data_flags = ("strided",)
    starter = "return ref.moe_w4a16(x, w13, w2, topk_weights, topk_ids).to(x.dtype)"
    starter_contract = "megakernel,weight=exact,accumulator=fp32,stores=out"

    def weight_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
        return {"w13": (2 * sizes["I"], sizes["H"]), "w2": (sizes["H"], sizes["I"])}

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """moe_w4a16: x [T, H], w13 [E, 2I, H], w2 [E, H, I], topk_weights and topk_ids [T, k]."""
        x, plan13, plan2, exact = layer_inputs(case, case.k)
        w13, w2 = int4_weight(case, "w13", case.E, plan13), int4_weight(case, "w2", case.E, plan2)
        steps = DYADIC_STEPS * (case.data == "onehot2")
        if case.data in EXACT:
            steps = plan_moe(case.data, case.H, case.I, case.k, case.zero_layout is None).weight_steps
        ids, weights = draw_topk(case.routing, case.T, case.E, case.k, case.seed, dyadic_steps=steps)
        args = {"x": rows_of(x, case), "w13": w13, "w2": w2, "topk_weights": weights, "topk_ids": ids}
        return Problem(case, args, exact=exact)

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    inferred = (*OF_GEMM, "stores", "silu", "router_weight", "topk_sum")
    probe_experts = 8

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        ids = torch.zeros(len(x), 1, dtype=torch.int32)
        return {"x": x, **weights, "topk_weights": torch.ones(len(x), 1), "topk_ids": ids}

    def layer_weights(
        self, dots: Dots, q13: torch.Tensor, s13: torch.Tensor, q2: torch.Tensor, s2: torch.Tensor
    ) -> dict[str, Int4Weight]:
        E = dots.site.case.E
        q13, s13, q2, s2 = (part.expand(E, -1, -1) for part in (q13, s13, q2, s2))
        return {"w13": dots.pack(q13, s13), "w2": dots.pack(q2, s2)}

    def find_around_gemm(self, dots: Dots, rules: Contract, opaque: bool, result: Inference) -> Contract:
        return find_layer(dots, rules, opaque, result)

    bisected_by_stages = True
    probe_bench = Bench
    timed_as = ("layer",)
    timed_by_default = True

    def questions(self, stored: str) -> tuple[Family, ...]:
        return OF_STORED.get(stored, FUSED)
