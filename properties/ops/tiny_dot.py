"""tiny_dot: one dot product a token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.interval_shared import TINY_DOT, tiny_dot_band
from moeracle.ref.shared_expert import tiny_dot

from ..case import Case
from ..cases.record import Piece, Tensors
from ..golden.derive import store, tiny_sums
from ..golden.rational import as_tensor
from ..golden.transcendental import sigmoid_fp32
from ..judge.floats import all_rows, pieces
from ..optable import GEMM_DATA, Argument, Result
from ..problem import Problem
from ..statistics import Errors, errors_of_dot
from .families import FloatOp, rounded


class TinyDot(FloatOp):
    """What the harness knows of tiny_dot."""

    name = "tiny_dot"
    summary = "out[t] = x[t] . w, through a sigmoid where asked."
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        Argument("w", "D [K]", "The other vector."),
        Argument("sigmoid", "bool", "Whether the result goes through a sigmoid in fp32."),
    )
    results = (Result("out", "D [T, 1]", "The dot products.", ("token", "n")),)
    dims = ("T", "K")
    data = tuple(name for name in GEMM_DATA if name != "codes16")
    data_flags = ("sigmoid", "strided")
    default_contract = TINY_DOT

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    sums: Mapping[str, str] = {"schedule": "K"}

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": (problem.args["x"].shape[0], 1)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        x, w, sigmoid = problem.args.values()
        for rows in pieces(all_rows(x)):
            yield "out", rows, 0, tiny_dot_band(x[rows], w, rules, sigmoid=sigmoid, exact=exact)

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        return None if "sigmoid" in case.flags else errors_of_dot(case.K, rules)

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        x, w, sigmoid = problem.args.values()
        return rounded({"out": tiny_dot(x, w, sigmoid=sigmoid, dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """One dot product a token, rounded to fp32, through the sigmoid if asked, stored."""
        x, w, sigmoid = problem.args.values()
        keep = store(contract, x.dtype)
        rows = [[keep(sigmoid_fp32(s) if sigmoid else s)] for s in tiny_sums(x, w)]
        return {"out": as_tensor(rows, 1, x.dtype)}

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
