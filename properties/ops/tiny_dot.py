"""tiny_dot: one dot product a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moeracle.ref.accumulate import accumulate
from moeracle.ref.contract import Contract
from moeracle.ref.interval_shared import TINY_DOT

from .. import data
from ..build import gemm_plan, variant_of
from ..case import Case
from ..data import activations, bell, tiny
from ..generator import FORMATS, Stream, integer_bits, to_tensor
from ..infer.drive import plain_weight
from ..inputs import rows_of
from ..optable import GEMM_DATA, Argument, Result
from ..problem import Problem
from .families import FloatOp

if TYPE_CHECKING:
    from ..infer.drive import Dots


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
    starter = "return ref.tiny_dot(x, w, sigmoid=sigmoid).to(x.dtype)"
    starter_contract = "grouped,accumulator=fp32"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """tiny_dot: x [T, K], w [K], sigmoid."""
        fmt, plan, variant = FORMATS[case.dtype], gemm_plan(case), variant_of(case)
        variant = data.X_TINY if variant == data.SCALES_TINY else variant  # there are no scales
        x = activations(case.data, fmt, case.T, case.K, case.seed, plan=plan, variant=variant)
        stream = Stream(case.seed, "w")
        if plan is not None:
            low = 0 if case.data == "samesign" else -15
            w = integer_bits(low + stream.below((case.K,), 16 - low), plan.exponent, fmt)
        elif case.data == "stagnation":
            w = np.broadcast_to(data.power_bits(0, fmt), (case.K,)).copy()
        elif case.data == "cancelling":  # as x: neighbours cancel, or the halves do
            half = case.K // 2
            w = bell(stream, fmt, (case.K,))
            first, second = (
                (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if case.K % 16 else (slice(half), slice(half, None))
            )
            w[second] = w[first]
        elif variant == data.OUTPUTS_TINY:
            w = tiny(stream, fmt, (case.K,), bits=3)
        else:
            w = bell(stream, fmt, (case.K,), -(case.K.bit_length() // 2))
        args = {"x": rows_of(x, case), "w": to_tensor(w, fmt), "sigmoid": "sigmoid" in case.flags}
        return Problem(case, args, exact=(plan is not None and plan.exact) or case.data == "onehot")

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    inferred = ("accumulator", "ftz", "store_rounding", "deterministic")
    presets = ("grouped",)  # the others differ in what it does not have

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        return {"x": x, **weights, "sigmoid": False}

    def probe_weights(self, dots: Dots, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        return {"w": plain_weight(q, s, dots.dtype)[0]}

    def predicted_sums(
        self, dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract
    ) -> torch.Tensor:
        assert rules.schedule is not None
        return accumulate(x, plain_weight(q, s, dots.dtype), rules.schedule).double()

    one_stage = "tiny_dot"
