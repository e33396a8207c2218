"""tiny_dot: one dot product a token."""

from __future__ import annotations

from moeracle.ref.interval_shared import TINY_DOT

from ..optable import GEMM_DATA, Argument, Result
from .families import FloatOp


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

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
