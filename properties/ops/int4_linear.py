"""int4_linear: a dense linear layer."""

from __future__ import annotations

from ..optable import GEMM_DATA, Argument, Result
from .families import OneGemm


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

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
