"""quantize_int8: the int8 quantizer of the lm_head."""

from __future__ import annotations

import numpy as np

from ..bisect.suspects import QUANTIZER
from ..case import Case
from ..data import activations, bell, spread_out, tiny
from ..generator import FORMATS, Bits, Stream, integer_bits, to_tensor
from ..optable import Argument, Result
from ..problem import Problem
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
    starter = "return ref.quantize_int8(w, group_size)"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """quantize_int8: w [V, K], group_size."""
        fmt, stream, shape = FORMATS[case.dtype], Stream(case.seed, "w"), (case.V, case.K)
        if case.data == "integers":  # multiples of s/2 with the largest at 127 s: half of them are ties
            values = stream.below(shape, 509) - 254
            values[:, :: case.K if case.G == -1 else case.G] = 254
            lower: Bits = (stream.below((case.V, 1), 6) << fmt.mantissa).astype(fmt.uint)  # a power of two for each row
            bits = integer_bits(values, -1, fmt)
            bits = np.where(values == 0, bits, bits - lower)
        elif case.data == "wide":
            bits = spread_out(stream, fmt, shape, -14 if fmt.mantissa == 10 else -30, 10)
        elif case.data == "subnormal":  # and a row of zeros, whose amax is below the quantizer's floor
            bits = tiny(stream, fmt, shape)
            bits[0] = 0
        elif case.data == "outliers":
            bits = activations("outliers", fmt, *shape, case.seed)
        else:
            bits = bell(stream, fmt, shape, -5)
        return Problem(case, {"w": to_tensor(bits, fmt), "group_size": case.G}, exact=case.data == "integers")

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    nothing_inferred = "no contract names a rounding of it; `moeracle check` judges its codes and scales"

    one_stage = QUANTIZER
