"""int4_linear: a dense linear layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from moeracle.ref.band import add_band, exactly
from moeracle.ref.contract import Contract
from moeracle.ref.gemm import int4_linear
from moeracle.ref.interval import dot_band, dot_weights

from ..cases.record import Piece, Tensors
from ..golden.derive import biased, int4_values
from ..golden.rational import dots, scaled
from ..judge.floats import all_rows, pieces
from ..optable import GEMM_DATA, Argument, Result
from ..problem import Problem
from .families import OneGemm, rounded


class Int4Linear(OneGemm):
    """What the harness knows of int4_linear."""

    name = "int4_linear"
    summary = "out = x @ dequantized(w)^T + bias."
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        Argument(
            "w",
            "Int4Weight [N, K]",
            "The weight, in the layout that the kernel declares; its attributes "
            "are packed, scale, zero, layout, G, N, K.",
        ),
        Argument("bias", "D [N]", "Added to the sum before the store.", True),
    )
    results = (Result("out", "D [T, N]", "The product.", ("token", "n")),)
    dims = ("T", "N", "K", "G")
    weight = True
    data = GEMM_DATA
    data_flags = ("bias", "strided")

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": (problem.args["x"].shape[0], problem.args["w"].N)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        """Dot products; the bias is added in fp32 before the store."""
        x, w, bias = problem.args["x"], problem.args["w"], problem.args.get("bias")
        weights = dot_weights(w, rules, x.dtype)
        for rows in pieces(all_rows(x)):
            band = dot_band(exactly(x[rows]), weights, rules, x.dtype, exact=exact)
            yield "out", rows, 0, band if bias is None else add_band(band, bias)

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return rounded({"out": int4_linear(*problem.args.values(), dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Dot products, plus bias in fp32, stored."""
        x, w, bias = problem.args["x"], problem.args["w"], problem.args.get("bias")
        return {"out": biased(dots(scaled(x), int4_values(w, contract, x.dtype)), bias, contract, x.dtype)}

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
