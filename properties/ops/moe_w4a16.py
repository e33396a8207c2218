"""moe_w4a16: the whole Mixture-of-Experts layer."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.contract import Contract

from ..build import layer_inputs
from ..case import Case
from ..cases.changes import scaled, scaled_weight
from ..exact import plan_moe
from ..generator import Stream
from ..inputs import DYADIC_STEPS, EXACT, rows_of
from ..laws.batch import law_permuting_tokens, law_splitting_batches
from ..laws.experts import (
    law_order_of_slots,
    law_other_experts_weights,
    law_relabelling_experts,
    law_zero_router_weight,
)
from ..laws.scaling import law_scaling_by_powers_of_two
from ..laws.weights import law_layouts_agree
from ..optable import GEMM_DATA, ROUTINGS, Argument, Result
from ..problem import Problem
from ..routings import draw_topk
from ..weights import int4_weight
from .families import Layer

PIVOTS = 2  # tokens whose experts are kept in turn by the law about other experts


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

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_relabelling_experts,
        law_other_experts_weights,
        law_zero_router_weight,
        law_order_of_slots,
        law_scaling_by_powers_of_two,
        law_layouts_agree,
    )

    token_args = ("x", "topk_weights", "topk_ids")

    def experts_kept(self, problem: Problem, experts: torch.Tensor) -> list[torch.Tensor]:
        """A token needs all of its experts kept, so those of one token are, for each of a few tokens."""
        ids = problem.args["topk_ids"]
        tokens = Stream(problem.case.seed, "law.pivot").below((PIVOTS,), ids.shape[0]).tolist()
        kept = [torch.isin(experts, ids[t]) for t in dict.fromkeys(tokens)]
        return [mask for mask in kept if not bool(mask.all())]

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        # In fp16 a product that is stored or added in D may be subnormal, where rounding does not scale.
        args, fp16 = problem.args, problem.case.dtype == "fp16"
        in_fp32 = contract.router_weight == "unpermute" and not contract.sum_in_dtype(problem.case.k)
        ways: list[tuple[str, dict[str, Any]]] = []
        if contract.router_weight != "input" and (in_fp32 or not fp16):
            ways.append(("the router weights", {"topk_weights": scaled(args["topk_weights"])}))
        if not fp16:
            ways.append(("w2's scales", {"w2": scaled_weight(args["w2"])}))
        return ways

    # ---- Inference, bisection and the bench ----
