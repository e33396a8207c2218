"""int8_lm_head: the output projection with int8 weights."""

from __future__ import annotations

from ..optable import GEMM_DATA, Argument, Result
from .families import OneGemm


class Int8LmHead(OneGemm):
    """What the harness knows of int8_lm_head."""

    name = "int8_lm_head"
    summary = "out[t, v] = sum over groups of scale[v, g] * (x[t] . codes[v]) + bias[v]."
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        Argument("codes", "int8 [V, K]", "Codes -128..127."),
        Argument("scale", "float32 [V] or [V, K/G]", "One scale a row, or one a group."),
        Argument("bias", "D [V]", "Added to the sum before the store.", True),
    )
    results = (Result("out", "D [T, V]", "Logits.", ("token", "v")),)
    dims = ("T", "V", "K", "G")
    data = tuple(name for name in GEMM_DATA if name != "codes16")
    data_flags = ("bias", "strided")
    default_contract = "int8_lm_head"

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
