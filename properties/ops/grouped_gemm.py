"""grouped_gemm: rows in the order of experts, one weight an expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.grouped_gemm import expert_spans, grouped_gemm
from moeracle.ref.ops.moe_permute import moe_permute
from moeracle.ref.weights.weight import Int4Weight

from ..bisect.made import Layer
from ..cases.build import routed_gemm
from ..cases.case import Case, Problem
from ..cases.changes import expert_map_of, local_slots
from ..cases.inputs import expert_map, strided
from ..cases.optable import GEMM_DATA, PLACEMENTS, ROUTINGS, SCALES, Argument, Result
from ..cases.record import Piece, Rows, Tensors
from ..golden.derive import biased, int4_sums
from ..infer.drive import Dots
from ..infer.found import OF_GEMM, Inference
from ..infer.late import find_bias
from ..laws.batch import law_batch_invariance, law_permuting_tokens, law_splitting_batches
from ..laws.experts import law_other_experts_weights, law_relabelling_experts
from ..laws.scaling import law_linearity, law_scaling_by_powers_of_two
from ..laws.weights import law_layouts_agree, law_negative_scales
from .families import WEIGHT_OF_EXPERTS, RoutedGemm, rounded


class GroupedGemm(RoutedGemm):
    """What the harness knows of grouped_gemm."""

    name = "grouped_gemm"
    summary = "out[r] = x[r] @ dequantized(w[e])^T for the rows r of expert e."
    arguments = (
        Argument("x", "D [R, K]", "Rows in the order of experts."),
        WEIGHT_OF_EXPERTS,
        Argument(
            "expert_offsets",
            "int64 [E+1]",
            "Rows expert_offsets[e] to expert_offsets[e+1] are expert e's; rows "
            "past the last are nobody's and may hold anything.",
            within=("0", "R"),
        ),
    )
    results = (Result("out", "D [R, N]", "The products.", ("row", "n")),)
    dims = ("T", "E", "k", "N", "K", "G")
    weight = True
    routings = ROUTINGS
    data = GEMM_DATA
    routing_flags = PLACEMENTS
    data_flags = ("strided", *SCALES)
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

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": (problem.args["x"].shape[0], problem.args["w"].N)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        """Dot products of each expert's rows; what rows of no local expert hold is open."""
        spans = (
            (e, torch.arange(start, stop, device=problem.device))
            for e, start, stop in expert_spans(problem.args["expert_offsets"])
        )
        for rows, band in self.routed_bands(problem, spans, 1, rules, exact):
            yield "out", rows, 0, band

    def settled(self, problem: Problem, output: Any) -> Any:
        return output[: int(problem.args["expert_offsets"][-1])]

    def other_experts(self, problem: Problem, stage: str = "out") -> torch.Tensor | None:
        of_slots = super().other_experts(problem, stage)
        if of_slots is None:
            return None
        row_of = problem.truth["inv"].long()  # of each slot
        of_rows = torch.full_like(of_slots, -1)
        of_rows[row_of] = torch.where(of_slots >= 0, row_of[of_slots.clamp(min=0)], -1)
        return of_rows

    def rows(self, problem: Problem, stage: str) -> Rows:
        offsets, R = problem.args["expert_offsets"].cpu(), problem.args["x"].shape[0]
        experts = torch.bucketize(torch.arange(R), offsets[1:], right=True)
        experts[int(offsets[-1]) :] = -1
        return Rows("row", experts)

    def operand_rows(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        _, experts = super().operand_rows(problem)
        return problem.args["x"][problem.truth["inv"].long()], experts

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return rounded({"out": grouped_gemm(*problem.args.values(), dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Dot products of each expert's rows; rows of no expert are 0."""
        x, w, offsets = problem.args["x"], problem.args["w"], problem.args["expert_offsets"]
        out = torch.zeros(x.shape[0], w.N, dtype=x.dtype)
        for e, start, stop in expert_spans(offsets):
            sums = int4_sums(x[start:stop], w.expert(e), contract, x.dtype)
            out[start:stop] = biased(sums, w.N, None, contract, x.dtype)
        return {"out": out}

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_batch_invariance,
        law_relabelling_experts,
        law_other_experts_weights,
        law_scaling_by_powers_of_two,
        law_linearity,
        law_layouts_agree,
        law_negative_scales,
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

    inferred = (*OF_GEMM, "bias")

    def find_around_gemm(self, dots: Dots, rules: Contract, opaque: bool, result: Inference) -> Contract:
        return find_bias(dots, rules, result)

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        return {"x": x, **weights, "expert_offsets": torch.tensor([0, len(x)])}

    def made_problem(self, case: Case, layer: Layer, w: Int4Weight) -> Problem:
        rows, offsets, inv = moe_permute(layer.x, layer.ids, case.E, None)
        args = {"x": strided(rows, case), "w": w, "expert_offsets": offsets}
        return Problem(case, args, {"topk_ids": layer.ids, "inv": inv, "expert_map": None}, True)

    def made_rows(self, problem: Problem, layer: Layer, out: torch.Tensor) -> torch.Tensor:
        rows = problem.truth["inv"].cpu().long()
        return torch.where((rows >= 0)[:, None], out[rows.clamp(min=0)], 0.0)
