"""quantize_int8: the int8 quantizer of the lm_head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from moeracle.ref.contract import Contract

from ..case import Case
from ..cases.changes import FACTOR, scaled
from ..cases.record import Agreement, Comparison, Tensors
from ..data import activations, bell, spread_out, tiny
from ..generator import FORMATS, Bits, Stream, integer_bits, to_tensor
from ..laws.batch import law_permuting_tokens, law_splitting_batches
from ..laws.scaling import law_scaling_by_powers_of_two
from ..laws.weights import law_negating_weights, law_quantizing_again
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

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_scaling_by_powers_of_two,
        law_negating_weights,
        law_quantizing_again,
    )

    elementwise = True
    token_letter = "V"
    token_args = ("w",)

    def token_axes(self, value: torch.Tensor) -> tuple[str, ...]:
        return ("row", "k")[: value.ndim]

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        return [("w", {"w": scaled(problem.args["w"])})]

    def scaled_results(self, problem: Problem, results: Tensors) -> Iterator[Comparison]:
        """Codes stay and scales grow, but for rows below the quantizer's floor."""
        V, K = problem.case.V, problem.case.K
        floor = results["scale"].double() > 1e-11  # the quantizer's 1e-10 / 127, and room
        per_group = floor.reshape(V, -1)
        wide = per_group.repeat_interleave(K // per_group.shape[1], 1)
        yield Comparison("codes", results["codes"].int(), ("row", "k"), wide)
        scale = results["scale"].double() * FACTOR
        yield Comparison("scale", scale, ("row", "group")[: scale.ndim], floor)

    def agreement(self, problem: Problem, got: Tensors, expected: Tensors, *, ties: bool) -> Iterator[Agreement]:
        """Scales within the two approximate divisions' 2^-21; codes equal unless the quotient is that near a tie."""
        scale, other = expected["scale"].double(), got["scale"].double()
        axes = ("row", "group")[: scale.ndim]
        yield Agreement("scale", (other - scale).abs() <= scale * 2.0**-21, other, scale, axes)
        w, per_group = problem.args["w"].double(), scale.reshape(problem.case.V, -1)
        quotient = w / per_group.repeat_interleave(problem.case.K // per_group.shape[1], 1)
        from_tie = (quotient - quotient.floor() - 0.5).abs()
        clear = from_tie > quotient.abs() * 2.0**-19 + 2.0**-30
        codes, wanted = got["codes"].int(), expected["codes"].int()
        yield Agreement("codes", codes == wanted, codes, wanted, ("row", "k"), clear)

    # ---- Inference, bisection and the bench ----
