"""silu_and_mul: the activation between the two GEMMs."""

from __future__ import annotations

from ..optable import Argument, Result
from .families import FloatOp


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

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
