"""moe_unpermute: the weighted sum over each token's slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch

from moeracle.ref.bounds.band import Band, sum_band
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.moe_permute import moe_permute, moe_unpermute

from ..bisect.suspects import REDUCTION
from ..cases.build import rows_of_values
from ..cases.case import Case, Problem
from ..cases.changes import multiplied, with_args
from ..cases.inputs import DYADIC_STEPS, EXACT
from ..cases.optable import ROUTINGS, Argument, Result
from ..cases.record import Piece, Tensors
from ..cases.routings import draw_topk
from ..common.drift import Errors
from ..common.generator import FORMATS, Bits, Stream, to_tensor
from ..compare.floats import all_rows, pieces
from ..compare.statistics import errors_of_sum
from ..golden.derive import slot_sum
from ..golden.rational import as_tensor, scaled
from ..infer.calls import Calls
from ..infer.found import Inference
from ..infer.small import find_unpermute
from ..laws.batch import law_batch_invariance, law_permuting_tokens, law_splitting_batches
from ..laws.experts import law_order_of_slots, law_zero_router_weight
from ..laws.scaling import law_scaling_by_powers_of_two
from .families import FloatOp, rounded


class MoeUnpermute(FloatOp):
    """What the harness knows of moe_unpermute."""

    name = "moe_unpermute"
    summary = "out[t] = sum over slots j of topk_weights[t, j] * y[inv[t*k+j]], in fp32, rounded once."
    arguments = (
        Argument("y", "D [R, K]", "Rows in the order of experts."),
        Argument("topk_weights", "float32 [T, k]", "Router weights."),
        Argument("inv", "int32 [R]", "The row of each slot t*k+j.", within=("0", "R-1")),
    )
    results = (Result("out", "D [T, K]", "The sum over slots.", ("token", "n")),)
    dims = ("T", "E", "k", "K")
    routings = ROUTINGS
    data = ("normal", "outliers", "cancelling", "wide", "subnormal", "integers", "samesign")
    starter = "return ref.moe_unpermute(y, topk_weights, inv).to(y.dtype)"
    starter_contract = "grouped,accumulator=fp32"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """moe_unpermute: y [R, K] in expert order, topk_weights [T, k], inv [R]; ignored slots' rows are zero."""
        T, k, K = case.T, case.k, case.K
        exact = case.data in EXACT
        ids, weights = draw_topk(case.routing, T, case.E, k, case.seed, dyadic_steps=DYADIC_STEPS if exact else 0)
        of_slot = rows_of_values(case, T * k).reshape(T, k, K)
        if case.data == "cancelling":  # slot 2i+1 undoes slot 2i, but for an ulp in half of the elements
            pairs, fmt = k // 2, FORMATS[case.dtype]
            ulp: Bits = (Stream(case.seed, "ulp").bits((T, pairs, K), 8) & 1).astype(fmt.uint)
            of_slot[:, 1 : 2 * pairs : 2] = (of_slot[:, 0 : 2 * pairs : 2] ^ fmt.uint(fmt.sign)) + ulp
            weights[:, 1 : 2 * pairs : 2] = weights[:, 0 : 2 * pairs : 2]
        y_of_slot = to_tensor(of_slot.reshape(T * k, K), FORMATS[case.dtype])
        y_of_slot[ids.reshape(-1) < 0] = 0
        _, _, inv = moe_permute(torch.empty(T, 0), ids, case.E)
        y = torch.empty_like(y_of_slot)
        y[inv.long()] = y_of_slot
        return Problem(case, {"y": y, "topk_weights": weights, "inv": inv}, {"topk_ids": ids}, exact)

    # ---- Judging: shapes, bands, references, derivations ----

    sums: Mapping[str, str] = {"sum_schedule": "k"}

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": (problem.args["topk_weights"].shape[0], problem.args["y"].shape[1])}

    def known_from(self, args: dict[str, Any], sizes: dict[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
        """As many experts as slots, the least: no tensor shows how many there are."""
        return {"E": sizes.get("E", sizes["k"])}, {}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        y, weights, inv = problem.args["y"], problem.args["topk_weights"], problem.args["inv"]
        rows_of = inv.long().reshape(weights.shape)
        for tokens in pieces(all_rows(weights)):
            of_slot = rows_of[tokens]  # rows lie in the order of experts
            terms = y[of_slot].double() * weights[tokens].double()[:, :, None]
            band = sum_band(Band(terms, terms), rules, y.dtype, multiplied=True, exact=exact, experts=of_slot)
            yield "out", tokens, 0, band

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        return errors_of_sum(case.k, rules)

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return rounded({"out": moe_unpermute(*problem.args.values(), dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """The weighted sum over slots."""
        y, weights, inv = problem.args["y"], problem.args["topk_weights"], problem.args["inv"]
        (T, k), H = weights.shape, y.shape[1]
        rows, of_slot = scaled(y).fractions(), inv.reshape(T, k).tolist()
        out = []
        for t, factors in enumerate(weights.double().tolist()):
            slots = list(zip(of_slot[t], map(Fraction, factors), strict=True))
            if contract.slot_order == "experts":  # the order in which rows lie
                slots.sort(key=lambda slot: slot[0])
            terms = [rows[r] for r, _ in slots]
            out.append(slot_sum(terms, [factor for _, factor in slots], H, contract, y.dtype, True))
        return {"out": as_tensor(out, H, y.dtype)}

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_batch_invariance,
        law_zero_router_weight,
        law_order_of_slots,
        law_scaling_by_powers_of_two,
    )

    has_exact_data = True

    def take_tokens(self, problem: Problem, index: torch.Tensor) -> Problem:
        case, args = problem.case, problem.args
        ids, k, K = problem.truth["topk_ids"][index], case.k, case.K
        of_slot = args["y"][args["inv"].long()].reshape(-1, k, K)[index].reshape(-1, K)
        inv = moe_permute(torch.empty(len(index), 0), ids, case.E)[2]
        y = torch.empty_like(of_slot)
        y[inv.long()] = of_slot
        new = {"y": y, "topk_weights": args["topk_weights"][index], "inv": inv}
        return Problem(case.replace(T=len(index)), new, {"topk_ids": ids}, problem.exact)

    def silent_slot(self, problem: Problem, silent: torch.Tensor) -> Problem | None:
        """The row itself is replaced."""
        y = problem.args["y"].clone()
        rows = problem.args["inv"].long().reshape(silent.shape)[silent]
        y[rows] = y[rows].flip(1).neg()
        return with_args(problem, y=y)

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        # In fp16 a product that is added in D may be subnormal, where rounding does not scale.
        if problem.case.dtype == "fp16" and contract.sum_in_dtype(problem.case.k):
            return []
        return [("the router weights", {"topk_weights": multiplied(problem.args["topk_weights"])})]

    # ---- Inference, bisection and the bench ----

    inferred = ("topk_sum", "store_rounding", "deterministic")
    probe_experts = 8
    probe_slots = 8

    def find_rules(self, calls: Calls, case: Case, result: Inference) -> Contract:
        return find_unpermute(calls, case, result)

    one_stage = REDUCTION
    step_of_layer = True
