"""topk_softmax: the router."""

from __future__ import annotations

import numpy as np
import torch

from ..bisect.suspects import ROUTING
from ..case import Case
from ..data import bell, spread_out
from ..generator import FORMATS, Bits, Format, Stream, integer_bits, to_tensor
from ..optable import Argument, Result
from ..problem import Problem
from .families import TupleOp

NONFINITE_ROWS = 6  # rows take turns: clean, one NaN, one +inf, one -inf, all -inf, all NaN


class TopkSoftmax(TupleOp):
    """What the harness knows of topk_softmax."""

    name = "topk_softmax"
    summary = (
        "softmax of each row in fp32; the k largest, ties to the lowest expert, in descending order; divided "
        "by their sum under renormalize."
    )
    arguments = (
        Argument("logits", "D [T, E]", "Router logits; D may be fp32 too."),
        Argument("top_k", "int", "Experts a token, 1..E."),
        Argument("renormalize", "bool", "Whether the chosen weights are divided by their sum."),
    )
    results = (
        Result("weights", "float32 [T, k]", "Router weights, descending.", ("token", "slot")),
        Result("ids", "int32 [T, k]", "The chosen experts.", ("token", "slot")),
    )
    dims = ("T", "E", "k")
    dtypes = ("bf16", "fp16", "fp32")
    data = ("normal", "ties", "nonfinite", "outliers", "wide")
    routing_flags = ("renorm",)
    starter = "return ref.topk_softmax(logits, top_k, renormalize=renormalize)"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """topk_softmax: logits [T, E], top_k, renormalize."""
        fmt, stream = FORMATS[case.dtype], Stream(case.seed, "logits")
        logits = to_tensor(_logits(case, fmt, stream), fmt)
        if case.data == "nonfinite":
            _spoil(logits, stream, case.seed)
        return Problem(case, {"logits": logits, "top_k": case.k, "renormalize": "renorm" in case.flags})

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    nothing_inferred = "its weights are fp32 within a bound that no contract changes; `moeracle check` judges them"

    one_stage = ROUTING


def _logits(case: Case, fmt: Format, stream: Stream) -> Bits:
    shape = (case.T, case.E)
    if case.data == "ties":  # four values, and every third row all equal
        values = stream.below(shape, 4) - 1
        values[::3] = values[::3, :1]
        return integer_bits(values, -1, fmt)
    if case.data == "wide":
        return spread_out(stream, fmt, shape, -12, 6)
    bits = bell(stream, fmt, shape)
    if case.data == "outliers":  # one expert far ahead: the others' scores almost vanish
        bits[np.arange(case.T), stream.below((case.T,), case.E)] = integer_bits(np.array([24]), 0, fmt)[0]
    return bits


def _spoil(logits: torch.Tensor, stream: Stream, seed: int) -> None:
    T, E = logits.shape
    at = stream.below((T,), E)
    for row in range(T):
        kind = (row + seed) % NONFINITE_ROWS
        value = float(["0", "nan", "inf", "-inf", "-inf", "nan"][kind])
        if kind >= 4:
            logits[row] = value
        elif kind:
            logits[row, int(at[row])] = value
