"""padded_gemm: slots in padded blocks, one expert a block."""

from __future__ import annotations

import torch

from moeracle.ref.dispatch import moe_align_block_size

from ..build import routed_gemm
from ..case import Case
from ..cases.changes import expert_map_of, topk_ids_of
from ..cases.record import Tensors
from ..inputs import expert_map, strided
from ..laws.batch import law_permuting_tokens, law_splitting_batches
from ..laws.experts import (
    law_block_size,
    law_order_inside_blocks,
    law_other_experts_weights,
    law_relabelling_experts,
    law_zero_router_weight,
)
from ..laws.scaling import law_linearity, law_scaling_by_powers_of_two
from ..laws.weights import law_layouts_agree
from ..optable import GEMM_DATA, ROUTINGS, Argument, Result
from ..problem import Problem
from .families import RoutedGemm


class PaddedGemm(RoutedGemm):
    """What the harness knows of padded_gemm."""

    name = "padded_gemm"
    summary = (
        "out[s] = x[s // top_k] @ dequantized(w[e])^T for each slot s in a block of expert e, times its "
        "router weight where given."
    )
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        Argument(
            "w",
            "Int4Weight [E, N, K]",
            "One weight an expert, in the layout that the kernel declares; E counts the experts of this rank.",
        ),
        Argument(
            "sorted_token_ids",
            "int32 [P]",
            "Slots t*top_k+j by expert, as moe_align_block_size returns them; T*top_k and more is padding.",
        ),
        Argument("expert_ids", "int32 [P / block]", "The expert of each block; rows of a block of expert -1 are zero."),
        Argument("num_tokens_post_padded", "int32 [1]", "How many places are used."),
        Argument("topk_weights", "float32 [T, k]", "Router weights, multiplied into the result.", True),
        Argument("top_k", "int", "Slots a token."),
    )
    results = (
        Result(
            "out",
            "D [T*k, N]",
            "One row a slot; zero where the slot's expert is elsewhere or its id is -1.",
            ("row", "n"),
        ),
    )
    dims = ("T", "E", "k", "N", "K", "G", "B")
    weight = True
    routings = ROUTINGS
    data = GEMM_DATA
    routing_flags = ("ep2", "weight")
    data_flags = ("strided",)
    starter = (
        "blocks = sorted_token_ids, expert_ids, num_tokens_post_padded\n"
        "    return ref.padded_gemm(x, w, *blocks, topk_weights, top_k).to(x.dtype)"
    )
    starter_contract = "grouped,weight=exact,accumulator=fp32,router_weight=gemm2"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """padded_gemm: x [T, K], w, the three tensors of moe_align_block_size, topk_weights [T, k] or None, top_k."""
        args, ids, weights, exact = routed_gemm(case)
        mapping = expert_map(case)
        sorted_ids, expert_ids, end = moe_align_block_size(ids, case.B, case.E, mapping)
        args["x"] = strided(args["x"], case)  # type: ignore[arg-type]
        args |= {"sorted_token_ids": sorted_ids, "expert_ids": expert_ids, "num_tokens_post_padded": end}
        args |= {"topk_weights": weights if "weight" in case.flags else None, "top_k": case.k}
        return Problem(case, args, {"topk_ids": ids, "block_size": case.B, "expert_map": mapping}, exact)

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_relabelling_experts,
        law_other_experts_weights,
        law_scaling_by_powers_of_two,
        law_linearity,
        law_layouts_agree,
        law_zero_router_weight,
        law_block_size,
        law_order_inside_blocks,
    )

    def tokens_of(self, problem: Problem) -> torch.Tensor:
        x: torch.Tensor = problem.args["x"]
        return x

    def route_again(
        self, problem: Problem, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None, **sizes: int
    ) -> Problem:
        case = problem.case.replace(T=ids.shape[0], **sizes)
        sorted_ids, expert_ids, end = moe_align_block_size(ids, case.B, case.E, expert_map_of(problem))
        args = {**problem.args, "x": strided(x, case), "topk_weights": weights}
        args |= {"sorted_token_ids": sorted_ids, "expert_ids": expert_ids, "num_tokens_post_padded": end}
        return Problem(case, args, {**problem.truth, "topk_ids": ids, "block_size": case.B}, problem.exact)

    def by_token(self, problem: Problem, results: Tensors) -> Tensors:
        rows = results["out"]
        return {"out": rows.reshape(problem.case.T, problem.case.k, rows.shape[1])}

    def silent_slot(self, problem: Problem, silent: torch.Tensor) -> Problem | None:
        return None

    def with_block_size(self, problem: Problem, block: int) -> Problem:
        weights = problem.args["topk_weights"]
        return self.route_again(problem, self.tokens_of(problem), topk_ids_of(problem), weights, B=block)

    # ---- Inference, bisection and the bench ----
