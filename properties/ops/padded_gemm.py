"""padded_gemm: slots in padded blocks, one expert a block."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch

from moeracle.ref.bounds.band import exactly, store, weigh_band
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.errors import require
from moeracle.ref.ops.moe_permute import moe_align_block_size
from moeracle.ref.ops.padded_gemm import infer_block_size, padded_gemm, padded_rows
from moeracle.ref.rounding import round_in_fp64
from moeracle.ref.weights.weight import Int4Weight

from ..bisect.made import Layer
from ..cases.build import routed_gemm
from ..cases.case import Case, Problem
from ..cases.changes import expert_map_of, topk_ids_of
from ..cases.inputs import expert_map, strided
from ..cases.optable import GEMM_DATA, PLACEMENTS, ROUTINGS, SCALES, Argument, Result
from ..cases.record import Piece, Rows, Tensors
from ..golden.derive import int4_sums, weighed
from ..golden.rational import as_tensor
from ..infer.drive import Dots
from ..infer.found import OF_GEMM, Inference
from ..infer.late import find_bias
from ..infer.routing import find_router_weight
from ..laws.batch import law_batch_invariance, law_permuting_tokens, law_splitting_batches
from ..laws.experts import (
    law_block_size,
    law_order_inside_blocks,
    law_other_experts_weights,
    law_relabelling_experts,
    law_zero_router_weight,
)
from ..laws.scaling import law_linearity, law_scaling_by_powers_of_two
from ..laws.weights import law_layouts_agree, law_negative_scales
from .families import WEIGHT_OF_EXPERTS, RoutedGemm, rounded


class PaddedGemm(RoutedGemm):
    """What the harness knows of padded_gemm."""

    name = "padded_gemm"
    summary = (
        "out[s] = x[s // top_k] @ dequantized(w[e])^T for each slot s in a block of expert e, times its "
        "router weight where given."
    )
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        WEIGHT_OF_EXPERTS,
        Argument(
            "sorted_token_ids",
            "int32 [P]",
            "Slots t*top_k+j by expert, as moe_align_block_size returns them; T*top_k and more is padding.",
        ),
        Argument(
            "expert_ids",
            "int32 [P / block]",
            "The expert of each block; rows of a block of expert -1 are zero.",
            within=("-1", "E-1"),
            read="num_tokens_post_padded/B",
        ),
        Argument("num_tokens_post_padded", "int32 [1]", "How many places are used."),
        Argument("topk_weights", "float32 [T, k]", "Router weights, multiplied into the result.", True, flag="weight"),
        Argument("top_k", "int", "Slots a token.", size="k"),
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
    routing_flags = (*PLACEMENTS, "weight")
    data_flags = ("strided", *SCALES)
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

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": (problem.args["x"].shape[0] * problem.args["top_k"], problem.args["w"].N)}

    def spans(self, problem: Problem) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (expert, its slots), block by block."""
        a = problem.args
        ids, experts, end = a["sorted_token_ids"], a["expert_ids"], a["num_tokens_post_padded"]
        R, E = a["x"].shape[0] * a["top_k"], a["w"].E or 1
        block = problem.truth.get("block_size") or infer_block_size(len(ids), len(experts), R, E, int(end))
        return padded_rows(ids, experts, end, R, block)

    def known_from(self, args: dict[str, Any], sizes: dict[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
        """The block size, which the lengths show unless they are ambiguous, and each slot's expert of this rank."""
        ids, experts, end = (args[name] for name in ("sorted_token_ids", "expert_ids", "num_tokens_post_padded"))
        T, k = args["x"].shape[0], args["top_k"]
        block = sizes.get("B") or infer_block_size(len(ids), len(experts), T * k, sizes["E"], int(end))
        whole = int(end) % block == 0 and int(end) <= len(experts) * block
        must = f"must divide num_tokens_post_padded = {int(end)}, and {len(experts)} such blocks must hold it"
        require(whole, f"block_size: got {block}, {must}")
        of_slot = torch.full((T * k,), -1, dtype=torch.int32, device=ids.device)
        for e, rows in padded_rows(ids, experts, end, T * k, block):
            of_slot[rows] = e
        return {"B": block}, {"block_size": block, "topk_ids": of_slot.reshape(T, k)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        """Dot products, times the router weight; rows of experts elsewhere and of ignored ids must be zero."""
        x, w, weights, top_k = (problem.args[name] for name in ("x", "w", "topk_weights", "top_k"))
        idle = torch.ones(x.shape[0] * top_k, dtype=torch.bool, device=x.device)
        row_weight = None if weights is None else weights.reshape(-1, 1).double()
        late = rules.router_weight == "gemm2_dtype"
        before_store = None if late else row_weight
        for rows, band in self.routed_bands(problem, self.spans(problem), top_k, rules, exact, before_store):
            idle[rows] = False
            if row_weight is not None and late:  # in D, after the store
                band = weigh_band(store(band, rules, x.dtype), round_in_fp64(row_weight[rows], x.dtype))
            yield "out", rows, 0, band
        rest = idle.nonzero().flatten()
        yield "out", rest, 0, exactly(torch.zeros(len(rest), w.N, device=x.device))

    def rows(self, problem: Problem, stage: str) -> Rows:
        ids = problem.truth.get("topk_ids")
        return Rows("row", None if ids is None else ids.flatten().cpu())

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        block = problem.truth.get("block_size")
        return rounded({"out": padded_gemm(*problem.args.values(), block_size=block, dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Dot products of gathered rows, times the router weight where there is one; rows of nobody are 0."""
        x, w, weights, top_k = (problem.args[name] for name in ("x", "w", "topk_weights", "top_k"))
        out = torch.zeros(x.shape[0] * top_k, w.N, dtype=x.dtype)
        for e, rows in self.spans(problem):
            factors = None if weights is None else weights.reshape(-1)[rows].double().tolist()
            early = None if factors is None or contract.router_weight == "gemm2_dtype" else list(map(Fraction, factors))
            sums = int4_sums(x[rows // top_k], w.expert(e), contract, x.dtype, early)
            late = factors if early is None else None
            out[rows] = as_tensor(weighed(sums, late, contract, x.dtype), w.N, x.dtype)
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
        law_zero_router_weight,
        law_block_size,
        law_order_inside_blocks,
        law_negative_scales,
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

    inferred = (*OF_GEMM, "router_weight", "bias")

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        ids, experts, end = moe_align_block_size(torch.zeros(len(x), 1, dtype=torch.int32), case.B, 1)
        blocks = {"sorted_token_ids": ids, "expert_ids": experts, "num_tokens_post_padded": end}
        return {"x": x, **weights, **blocks, "topk_weights": None, "top_k": 1}

    def find_around_gemm(self, dots: Dots, rules: Contract, opaque: bool, result: Inference) -> Contract:
        return find_bias(dots, find_router_weight(dots, rules, result), result)

    def made_problem(self, case: Case, layer: Layer, w: Int4Weight) -> Problem:
        sorted_ids, expert_ids, end = moe_align_block_size(layer.ids, case.B, case.E, None)
        args = {"x": strided(layer.x, case), "w": w, "sorted_token_ids": sorted_ids, "expert_ids": expert_ids}
        weights = layer.router.float() if "weight" in case.flags else None
        args |= {"num_tokens_post_padded": end, "topk_weights": weights, "top_k": case.k}
        return Problem(case, args, {"topk_ids": layer.ids, "block_size": case.B, "expert_map": None}, True)
