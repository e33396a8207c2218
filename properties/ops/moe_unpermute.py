"""moe_unpermute: the weighted sum over each token's slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

import torch

from moeracle.ref.band import Band, sum_band
from moeracle.ref.contract import Contract
from moeracle.ref.dispatch import moe_unpermute

from ..case import Case
from ..cases.record import Piece, Tensors
from ..golden.derive import slot_sum
from ..golden.rational import as_tensor, scaled
from ..judge.floats import all_rows, pieces
from ..optable import ROUTINGS, Argument, Result
from ..problem import Problem
from ..statistics import Errors, errors_of_sum
from .families import FloatOp, rounded


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

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    sums: Mapping[str, str] = {"sum_schedule": "k"}

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": (problem.args["topk_weights"].shape[0], problem.args["y"].shape[1])}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        y, weights, inv = problem.args["y"], problem.args["topk_weights"], problem.args["inv"]
        rows_of = inv.long().reshape(weights.shape)
        for tokens in pieces(all_rows(weights)):
            terms = y[rows_of[tokens]].double() * weights[tokens].double()[:, :, None]
            yield "out", tokens, 0, sum_band(Band(terms, terms), rules, y.dtype, multiplied=True, exact=exact)

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
            terms = [rows[r] for r in of_slot[t]]
            out.append(slot_sum(terms, [Fraction(f) for f in factors], H, contract, y.dtype, True))
        return {"out": as_tensor(out, H, y.dtype)}

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
