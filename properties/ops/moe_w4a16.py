"""moe_w4a16: the whole Mixture-of-Experts layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch

from moeracle.ref.bounds.deferred import whole
from moeracle.ref.bounds.moe_w4a16 import layer_bands
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.errors import require
from moeracle.ref.ops.moe_w4a16 import moe_w4a16, rows_by_expert
from moeracle.ref.weights.weight import Int4Weight

from ..bisect.families import FUSED, OF_STORED, Family
from ..bisect.isolate import Bench
from ..cases.build import layer_inputs, with_bias
from ..cases.case import Case, Problem
from ..cases.changes import ids_here, multiplied, with_args, with_larger_scales
from ..cases.exact import plan_moe
from ..cases.inputs import DYADIC_STEPS, EXACT, as_given, expert_map, rows_of
from ..cases.optable import GEMM_DATA, IDS, PLACEMENTS, ROUTINGS, SCALES, Argument, Result
from ..cases.record import JudgedPiece, Piece, Rows, Tensors
from ..cases.routings import draw_topk
from ..cases.weights import int4_weight
from ..common.drift import Errors
from ..common.generator import Stream
from ..compare.other_expert import slots_of_other_experts
from ..compare.statistics import errors_of_sum
from ..golden.derive import activated, int4_sums, rows_of_floats, slot_sum, store, to_fp32, weighed
from ..golden.rational import as_tensor
from ..infer.drive import Dots
from ..infer.found import OF_GEMM, Inference
from ..infer.late import find_bias
from ..infer.routing import find_layer
from ..laws.batch import law_batch_invariance, law_permuting_tokens, law_splitting_batches
from ..laws.experts import (
    law_order_of_slots,
    law_other_experts_weights,
    law_relabelling_experts,
    law_zero_router_weight,
)
from ..laws.scaling import law_scaling_by_powers_of_two
from ..laws.weights import law_layouts_agree
from .families import TOPK_IDS, Layer, rounded, stored_before

AFTER_SILU = ("unpermute", "gemm2", "gemm2_dtype")  # where a router weight may enter without passing the activation
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
        Argument("w13", "Int4Weight [E, 2I, H]", "First weights: gate rows, then up rows; under +ungated [E, I, H]."),
        Argument("w2", "Int4Weight [E, H, I]", "Second weights."),
        Argument("topk_weights", "float32 [T, k]", "Router weights."),
        TOPK_IDS,
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
    routing_flags = (*PLACEMENTS, *IDS)
    data_flags = ("strided", *SCALES)
    extra = Argument(
        "expert_map",
        "int32 [all experts]",
        "The local number of each expert, -1 for experts on another rank; only for kernels with a sixth parameter; "
        "None where every expert is here.",
        True,
    )
    starter = "return ref.moe_w4a16(x, w13, w2, topk_weights, topk_ids).to(x.dtype)"
    starter_contract = "megakernel,weight=exact,accumulator=fp32,stores=out"

    def weight_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
        return {"w13": (2 * sizes["I"], sizes["H"]), "w2": (sizes["H"], sizes["I"])}

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """moe_w4a16: x [T, H], w13 [E, 2I, H], w2 [E, H, I], topk_weights and topk_ids [T, k], expert_map if any.

        E counts the experts of this rank.
        """
        x, plan13, plan2, exact = layer_inputs(case, case.k)
        here, mapping = case.local_experts, expert_map(case)
        plans = {"w13": plan13, "w2": plan2}
        w13, w2 = (with_bias(case, name, int4_weight(case, name, here, plan)) for name, plan in plans.items())
        exact = exact and "bias" not in case.flags  # a gate may then be no multiple of 128
        steps = DYADIC_STEPS * (case.data == "onehot2")
        if case.data in EXACT:
            symmetric = case.zero_layout is None
            steps = plan_moe(case.data, case.H, case.I, case.k, symmetric, case.bits).weight_steps
        chosen = draw_topk(case.routing, case.T, case.E, case.k, case.seed, dyadic_steps=steps)
        ids, weights = as_given(case, *chosen)
        args = {"x": rows_of(x, case), "w13": w13, "w2": w2, "topk_weights": weights, "topk_ids": ids}
        args |= {} if mapping is None else {"expert_map": mapping}
        return Problem(case, args, exact=exact)

    # ---- Judging: shapes, bands, references, derivations ----

    sums: Mapping[str, str] = {"schedule": "H", "gemm2_schedule": "I", "sum_schedule": "k"}

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        T, k = problem.args["topk_ids"].shape
        H, I = problem.args["w2"].N, problem.args["w2"].K
        return {"h": (T * k, problem.args["w13"].N), "a": (T * k, I), "y": (T * k, H), "out": (T, H)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        x, w13, w2, weights = (problem.args[name] for name in ("x", "w13", "w2", "topk_weights"))
        before, ids = stored_before(given), ids_here(problem)
        for stage, rows, band in layer_bands(x, w13, w2, weights, ids, rules, given=before, exact=exact):
            yield stage, rows, 0, whole(band)

    def judged_bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[JudgedPiece]:
        x, w13, w2, weights = (problem.args[name] for name in ("x", "w13", "w2", "topk_weights"))
        before, ids = stored_before(given), ids_here(problem)
        for stage, rows, band in layer_bands(x, w13, w2, weights, ids, rules, given=before, exact=exact, defer=True):
            yield stage, rows, 0, band

    def settled(self, problem: Problem, output: Any) -> Any:
        if not isinstance(output, dict):
            return output
        mine = (ids_here(problem) >= 0).reshape(-1, 1)
        return {name: torch.where(mine, t, 0) if name in ("h", "a", "y") else t for name, t in output.items()}

    def other_experts(self, problem: Problem, stage: str = "out") -> torch.Tensor | None:
        return slots_of_other_experts(ids_here(problem), None) if stage in ("h", "a", "y") else None

    def result_dtype(self, name: str, case: Case) -> torch.dtype:
        return super().result_dtype("out" if name == "partial" else name, case)

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        if stage not in ("partial", "out"):
            return super().errors(case, rules, stage)
        over_ranks = rules.ranks is not None and rules.ranks.partial  # how many slots are one rank's, tokens decide
        return None if over_ranks else errors_of_sum(case.k, rules)

    def rows(self, problem: Problem, stage: str) -> Rows:
        if stage == "out":
            return Rows("token")
        ids = problem.args["topk_ids"]
        if stage == "partial":
            return Rows("row", line="rank", slots=max(1, len(ids)))
        return Rows("row", ids.flatten().cpu(), line="token", slots=ids.shape[1])

    def place(self, problem: Problem, stage: str, row: int, column: int) -> str:
        if stage == "out":
            return super().place(problem, stage, row, column)
        if stage == "partial":
            rank, token = divmod(row, len(problem.args["x"]))
            return f"rank {rank}, token {token}, n {column}"
        k = problem.args["topk_ids"].shape[1]
        return f"token {row // k}, slot {row % k}, n {column}"

    def operand_rows(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows [R, H] that w13 is multiplied by, and the expert [R] of each."""
        ids = ids_here(problem).long()
        return problem.args["x"].repeat_interleave(ids.shape[1], 0), ids.flatten()

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        stages: Tensors = {}
        moe_w4a16(**problem.args, gated="ungated" not in problem.case.flags, dtype=dtype, stages=stages)
        return rounded(stages, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Each stage from the one before as it is stored; only the stages that the contract stores are returned.

        Raises:
            ValueError: the contract adds partial sums of ranks, of which no fixture is kept.
        """
        over_ranks = contract.ranks is not None and contract.ranks.partial
        require(not over_ranks, f"ranks: got {contract.ranks}, must be None or of rows (no partial sum is derived)")
        x, w13, w2, topk_weights = (problem.args[name] for name in ("x", "w13", "w2", "topk_weights"))
        topk_ids = ids_here(problem)
        dtype, (T, k), H, I = x.dtype, topk_ids.shape, w2.N, w2.K
        R, keep = T * k, store(contract, dtype, "y")
        factor = [Fraction(f) for f in topk_weights.double().flatten().tolist()]
        gated = w13.N == 2 * I
        h, a = torch.zeros(R, w13.N, dtype=dtype), torch.zeros(R, I, dtype=dtype)
        y_rows: list[list[Fraction]] = [[Fraction(0)] * H] * R
        mine = [Fraction(0)] * R
        for e, rows in rows_by_expert(topk_ids):
            slots, of_x = rows.tolist(), x[rows // k]
            if contract.router_weight == "input_dtype":
                of_x = (of_x.float() * topk_weights.reshape(-1, 1)[rows].to(dtype).float()).to(dtype)
            sums = int4_sums(of_x, w13.expert(e), contract, dtype)
            if contract.router_weight == "input":
                sums = [[Fraction(to_fp32(v * factor[r])) for v in row] for r, row in zip(slots, sums, strict=True)]
            h_rounding, h_dtype = (
                (store(contract, dtype, "h"), dtype) if "h" in contract.stores else (to_fp32, torch.float32)
            )
            h_e = as_tensor(rows_of_floats(sums, h_rounding), w13.N, h_dtype)
            a_e = activated(h_e, contract, dtype, "a" in contract.stores, "a", gated)
            h[rows], a[rows] = h_e.to(dtype), a_e.to(dtype)
            of_rows = [factor[r] for r in slots] if contract.router_weight == "gemm2" else None
            y_e = int4_sums(a_e, w2.expert(e), contract, dtype, of_rows)
            for r, row in zip(slots, y_e, strict=True):
                y_rows[r], mine[r] = _finished(row, factor[r], contract, dtype), Fraction(1)
        y = as_tensor(rows_of_floats(y_rows, keep), H, dtype)
        multiplied = contract.router_weight == "unpermute"
        factors = [f * m for f, m in zip(factor, mine, strict=True)] if multiplied else mine
        by_expert, out = contract.slot_order == "experts", []
        for t, ids in enumerate(topk_ids.tolist()):
            slots = [t * k + j for j in (sorted(range(k), key=lambda j: ids[j]) if by_expert else range(k))]
            of_token = [y_rows[r] for r in slots], [factors[r] for r in slots]
            out.append(slot_sum(*of_token, H, contract, dtype, multiplied))
        stages = {"h": h, "a": a, "y": y, "out": as_tensor(out, H, dtype)}
        return {name: stage for name, stage in stages.items() if name in contract.stores}

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_batch_invariance,
        law_relabelling_experts,
        law_other_experts_weights,
        law_zero_router_weight,
        law_order_of_slots,
        law_scaling_by_powers_of_two,
        law_layouts_agree,
    )

    token_args = ("x", "topk_weights", "topk_ids")
    over_ranks = True

    def exact_under(self, problem: Problem, rules: Contract) -> Problem:
        """Gates are multiples of 128, whose silu is exact: no other router weight than 1 may come before it."""
        problem = super().exact_under(problem, rules)
        if rules.router_weight in AFTER_SILU:
            return problem
        return with_args(problem, topk_weights=torch.ones_like(problem.args["topk_weights"]))

    def experts_kept(self, problem: Problem, experts: torch.Tensor) -> list[torch.Tensor]:
        """A token needs all of its experts kept, so those of one token are, for each of a few tokens."""
        ids = ids_here(problem)
        tokens = Stream(problem.case.seed, "law.pivot").below((PIVOTS,), ids.shape[0]).tolist()
        kept = [torch.isin(experts, ids[t]) for t in dict.fromkeys(tokens)]
        return [mask for mask in kept if not bool(mask.all())]

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        # In fp16 a product that is stored or added in D may be subnormal, where rounding does not scale.
        args, fp16 = problem.args, problem.case.dtype == "fp16"
        in_d = contract.sum_in_dtype(problem.case.k) or contract.rounds_partials
        in_fp32 = contract.router_weight == "unpermute" and not in_d
        ways: list[tuple[str, dict[str, Any]]] = []
        if contract.router_weight in AFTER_SILU and (in_fp32 or not fp16):
            ways.append(("the router weights", {"topk_weights": multiplied(args["topk_weights"])}))
        if not fp16:
            ways.append(("w2's scales", {"w2": with_larger_scales(args["w2"])}))
        return ways

    # ---- Inference, bisection and the bench ----

    inferred = (*OF_GEMM, "bias", "stores", "silu", "activation", "router_weight", "topk_sum", "slot_order")
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
        return find_bias(dots, find_layer(dots, rules, opaque, result), result)

    bisected_by_stages = True
    probe_bench = Bench
    timed_as = ("layer",)
    timed_by_default = True

    def questions(self, stored: str) -> tuple[Family, ...]:
        return OF_STORED.get(stored, FUSED)


def _finished(row: list[Fraction], factor: Fraction, contract: Contract, dtype: torch.dtype) -> list[Fraction]:
    """Return one row of y as the top-k sum reads it: weighed where GEMM2 does that, rounded where it is stored."""
    in_d = contract.router_weight == "gemm2_dtype"
    if "y" in contract.stores or in_d:
        stored = weighed([row], [float(factor)] if in_d else None, contract, dtype, "y")[0]
        return [Fraction(v) for v in stored]
    return row
