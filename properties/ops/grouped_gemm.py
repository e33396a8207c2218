"""grouped_gemm: rows in the order of experts, one weight an expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moeracle.ref.dispatch import moe_permute
from moeracle.ref.weight import Int4Weight

from ..build import routed_gemm
from ..case import Case
from ..inputs import expert_map, strided
from ..optable import GEMM_DATA, ROUTINGS, Argument, Result
from ..problem import Problem
from .families import RoutedGemm

if TYPE_CHECKING:
    from ..bisect.made import Layer


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

    # ---- Inference, bisection and the bench ----

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        return {"x": x, **weights, "expert_offsets": torch.tensor([0, len(x)])}

    def made_problem(self, case: Case, layer: Layer, w: Int4Weight) -> Problem:
        rows, offsets, inv = moe_permute(layer.x, layer.ids, case.E, None)
        args = {"x": strided(rows, case), "w": w, "expert_offsets": offsets}
        return Problem(case, args, {"topk_ids": layer.ids, "inv": inv, "expert_map": None}, True)

    def made_rows(self, problem: Problem, layer: Layer, out: torch.Tensor) -> torch.Tensor:
        rows = problem.truth["inv"].cpu().long()
        return torch.where((rows >= 0)[:, None], out[rows.clamp(min=0)], 0.0)
