"""silu_and_mul: the activation between the two GEMMs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from moeracle.ref.activation import silu_and_mul
from moeracle.ref.band import exactly
from moeracle.ref.contract import Contract
from moeracle.ref.interval_moe import silu_mul_band

from ..case import Case
from ..cases.record import Piece, Tensors
from ..golden.derive import activated
from ..judge.floats import all_rows, pieces
from ..optable import Argument, Result
from ..problem import Problem
from ..statistics import Errors, errors_of_silu
from .families import FloatOp, rounded


class SiluAndMul(FloatOp):
    """What the harness knows of silu_and_mul."""

    name = "silu_and_mul"
    summary = "out = silu(h[:, :I]) * h[:, I:], silu(g) = g / (1 + exp(-g))."
    arguments = (Argument("h", "D [R, 2I]", "Gates, then ups."),)
    results = (Result("out", "D [R, I]", "Activations.", ("row", "n")),)
    dims = ("T", "I")
    data = ("normal", "outliers", "wide", "subnormal", "integers", "samesign", "allgates")
    data_flags = ("strided",)

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        R, columns = problem.args["h"].shape
        return {"out": (R, columns // 2)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        h = problem.args["h"]
        for rows in pieces(all_rows(h)):
            yield "out", rows, 0, silu_mul_band(exactly(h[rows]), rules, h.dtype)

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        return errors_of_silu(rules)

    def open_zero_sign(self, case: Case, stage: str) -> bool:
        return True

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return rounded({"out": silu_and_mul(problem.args["h"], dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        h = problem.args["h"]
        return {"out": activated(h, contract, h.dtype, True)}

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
