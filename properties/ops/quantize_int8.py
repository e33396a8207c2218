"""quantize_int8: the int8 quantizer of the lm_head."""

from __future__ import annotations

from ..optable import Argument, Result
from .families import TupleOp


class QuantizeInt8(TupleOp):
    """What the harness knows of quantize_int8."""

    name = "quantize_int8"
    summary = (
        "scale = max(amax, 1e-10) / 127 of each group; codes = w / scale, rounded to nearest even, within -128..127."
    )
    arguments = (
        Argument("w", "D [V, K]", "The weight; D may be fp32 too."),
        Argument("group_size", "int", "G, or -1 for one group a row."),
    )
    results = (
        Result("codes", "int8 [V, K]", "Codes.", ("row", "k")),
        Result("scale", "float32 [V] or [V, K/G]", "Scales.", ("row", "k")),
    )
    dims = ("V", "K", "G")
    dtypes = ("bf16", "fp16", "fp32")
    data = ("normal", "outliers", "wide", "subnormal", "integers")

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
