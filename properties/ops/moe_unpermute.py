"""moe_unpermute: the weighted sum over each token's slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.dispatch import moe_permute

from ..bisect.suspects import REDUCTION
from ..build import rows_of_values
from ..case import Case
from ..generator import FORMATS, Bits, Stream, to_tensor
from ..infer.small import find_unpermute
from ..inputs import DYADIC_STEPS, EXACT
from ..optable import ROUTINGS, Argument, Result
from ..problem import Problem
from ..routings import draw_topk
from .families import FloatOp

if TYPE_CHECKING:
    from ..infer.calls import Calls
    from ..infer.found import Inference


class MoeUnpermute(FloatOp):
    """What the harness knows of moe_unpermute."""

    name = "moe_unpermute"
    summary = "out[t] = sum over slots j of topk_weights[t, j] * y[inv[t*k+j]], in fp32, rounded once."
    arguments = (
        Argument("y", "D [R, K]", "Rows in the order of experts."),
        Argument("topk_weights", "float32 [T, k]", "Router weights."),
        Argument("inv", "int32 [R]", "The row of each slot t*k+j."),
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

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    inferred = ("topk_sum", "store_rounding", "deterministic")
    probe_experts = 8
    probe_slots = 8

    def find_rules(self, calls: Calls, case: Case, result: Inference) -> Contract:
        return find_unpermute(calls, case, result)

    one_stage = REDUCTION
    step_of_layer = True
