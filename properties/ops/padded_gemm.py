"""padded_gemm: slots in padded blocks, one expert a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.dispatch import moe_align_block_size
from moeracle.ref.weight import Int4Weight

from ..build import routed_gemm
from ..case import Case
from ..infer.found import OF_GEMM
from ..infer.routing import find_router_weight
from ..inputs import expert_map, strided
from ..optable import GEMM_DATA, ROUTINGS, Argument, Result
from ..problem import Problem
from .families import RoutedGemm

if TYPE_CHECKING:
    from ..bisect.made import Layer
    from ..infer.drive import Dots
    from ..infer.found import Inference


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

    # ---- Inference, bisection and the bench ----

    inferred = (*OF_GEMM, "router_weight")

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        ids, experts, end = moe_align_block_size(torch.zeros(len(x), 1, dtype=torch.int32), case.B, 1)
        blocks = {"sorted_token_ids": ids, "expert_ids": experts, "num_tokens_post_padded": end}
        return {"x": x, **weights, **blocks, "topk_weights": None, "top_k": 1}

    def find_around_gemm(self, dots: Dots, rules: Contract, opaque: bool, result: Inference) -> Contract:
        return find_router_weight(dots, rules, result)

    def made_problem(self, case: Case, layer: Layer, w: Int4Weight) -> Problem:
        sorted_ids, expert_ids, end = moe_align_block_size(layer.ids, case.B, case.E, None)
        args = {"x": strided(layer.x, case), "w": w, "sorted_token_ids": sorted_ids, "expert_ids": expert_ids}
        weights = layer.router.float() if "weight" in case.flags else None
        args |= {"num_tokens_post_padded": end, "topk_weights": weights, "top_k": case.k}
        return Problem(case, args, {"topk_ids": layer.ids, "block_size": case.B, "expert_map": None}, True)
