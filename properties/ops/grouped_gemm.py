"""grouped_gemm: rows in the order of experts, one weight an expert."""

from __future__ import annotations

import torch

from moeracle.ref.dispatch import moe_permute

from ..build import routed_gemm
from ..case import Case
from ..cases.changes import expert_map_of, local_slots
from ..cases.record import Tensors
from ..inputs import expert_map, strided
from ..laws.batch import law_permuting_tokens, law_splitting_batches
from ..laws.experts import law_other_experts_weights, law_relabelling_experts
from ..laws.scaling import law_linearity, law_scaling_by_powers_of_two
from ..laws.weights import law_layouts_agree
from ..optable import GEMM_DATA, ROUTINGS, Argument, Result
from ..problem import Problem
from .families import RoutedGemm


class GroupedGemm(RoutedGemm):
    """What the harness knows of grouped_gemm."""

    name = "grouped_gemm"
    summary = "out[r] = x[r] @ dequantized(w[e])^T for the rows r of expert e."
    arguments = (
        Argument("x", "D [R, K]", "Rows in the order of experts."),
        Argument(
            "w",
            "Int4Weight [E, N, K]",
            "One weight an expert, in the layout that the kernel declares; E counts the experts of this rank.",
        ),
        Argument(
            "expert_offsets",
            "int64 [E+1]",
            "Rows expert_offsets[e] to expert_offsets[e+1] are expert e's; rows "
            "past the last are nobody's and may hold anything.",
        ),
    )
    results = (Result("out", "D [R, N]", "The products.", ("row", "n")),)
    dims = ("T", "E", "k", "N", "K", "G")
    weight = True
    routings = ROUTINGS
    data = GEMM_DATA
    routing_flags = ("ep2",)
    data_flags = ("strided",)
    starter = "return ref.grouped_gemm(x, w, expert_offsets).to(x.dtype)"
    starter_contract = "grouped,weight=exact,accumulator=fp32"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """grouped_gemm: x [R, K] in expert order, w [E, N, K], expert_offsets int64 [E+1]."""
        args, ids, _, exact = routed_gemm(case)
        mapping = expert_map(case)
        x, offsets, inv = moe_permute(args["x"], ids, case.E, mapping)  # type: ignore[arg-type]
        args["x"], args["expert_offsets"] = strided(x, case), offsets
        return Problem(case, args, {"topk_ids": ids, "inv": inv, "expert_map": mapping}, exact)

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
    )

    def tokens_of(self, problem: Problem) -> torch.Tensor:
        return problem.args["x"][problem.truth["inv"].long()[:: problem.case.k]]

    def route_again(
        self, problem: Problem, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None, **sizes: int
    ) -> Problem:
        case = problem.case.replace(T=ids.shape[0], **sizes)
        rows, offsets, inv = moe_permute(x, ids, case.E, expert_map_of(problem))
        args = {**problem.args, "x": strided(rows, case), "expert_offsets": offsets}
        return Problem(case, args, {**problem.truth, "topk_ids": ids, "inv": inv}, problem.exact)

    def by_token(self, problem: Problem, results: Tensors) -> Tensors:
        case, rows = problem.case, results["out"]
        rows = rows[problem.truth["inv"].long()].reshape(case.T, case.k, rows.shape[1])
        return {"out": torch.where(local_slots(problem)[:, :, None], rows, torch.zeros((), dtype=rows.dtype))}

    def rows_with_meaning(self, problem: Problem) -> torch.Tensor | None:
        return torch.arange(problem.case.R) < int(problem.args["expert_offsets"][-1])

    # ---- Inference, bisection and the bench ----
