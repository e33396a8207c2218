"""topk_softmax: the router."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.topk_softmax import topk_softmax
from moeracle.ref.weights.weight import Int4Weight

from ..cases.case import Case, Problem
from ..cases.changes import with_args
from ..cases.data import bell, spread_out
from ..cases.optable import Argument, Result
from ..cases.record import Tensors
from ..common.generator import FORMATS, Bits, Format, Stream, integer_bits, to_tensor
from ..common.verdict import Verdict
from ..compare.index_parts import tally_mask
from ..compare.topk import about_id, chosen_weights, softmax, tally_weights, wrong_ids
from ..golden.derive import to_fp32
from ..golden.rational import as_tensor
from ..golden.transcendental import softmax_fp32
from ..laws.batch import law_permuting_tokens, law_splitting_batches
from ..laws.experts import law_relabelling_experts
from ..laws.routing import law_choosing_fewer, law_weights_are_probabilities
from ..laws.softmax import clear_rows, topk_tolerance
from .families import LOGITS, RENORMALIZE, Router

NONFINITE_ROWS = 6  # rows take turns: clean, one NaN, one +inf, one -inf, all -inf, all NaN


class TopkSoftmax(Router):
    """What the harness knows of topk_softmax."""

    name = "topk_softmax"
    summary = (
        "softmax of each row in fp32; the k largest, ties to the lowest expert, in descending order; divided "
        "by their sum under renormalize."
    )
    arguments = (
        LOGITS,
        Argument("top_k", "int", "Experts a token, 1..E.", size="k"),
        RENORMALIZE,
    )
    results = (
        Result("weights", "float32 [T, k]", "Router weights, descending.", ("token", "slot")),
        Result("ids", "int32 [T, k]", "The chosen experts.", ("token", "slot")),
    )
    dims = ("T", "E", "k")
    routing_flags = ("renorm",)
    also_run = ({"T": 33, "E": 60, "k": 4, "data": "wide"},)  # exponentials of some logits alone overflow fp32
    starter = "return ref.topk_softmax(logits, top_k, renormalize=renormalize)"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """topk_softmax: logits [T, E], top_k, renormalize."""
        args = {"logits": router_logits(case), "top_k": case.k, "renormalize": "renorm" in case.flags}
        return Problem(case, args)

    # ---- Judging: shapes, bands, references, derivations ----

    def judge_parts(self, problem: Problem, parts: list[torch.Tensor], verdict: Verdict) -> None:
        """k distinct experts, descending, none surely larger passed over, ties to the lowest id."""
        logits, _, renormalize = problem.args.values()
        weights, ids = parts[0].double(), parts[1].long()
        scores = softmax(logits)
        wrong = wrong_ids(logits, scores, ids)
        tally_mask(verdict, self.result("ids"), wrong, "bits", lambda t, j: about_id(logits, ids, t, j))
        expected, spread = chosen_weights(scores, ids.clamp(0, logits.shape[1] - 1), renormalize)
        tally_weights(verdict, self.result("weights"), weights, expected, spread)

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        logits, k, renormalize = problem.args.values()
        return self.named(topk_softmax(logits, k, renormalize=renormalize))

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Scores correctly rounded to fp32, the k largest, ties to the lowest id; one more rounding to renormalize."""
        logits, k, renormalize = problem.args.values()
        weights, ids = [], []
        for row in logits.double().tolist():
            scores = softmax_fp32(row)
            chosen = sorted(range(len(row)), key=lambda e: (-scores[e], e))[:k]
            total = sum((Fraction(scores[e]) for e in chosen), Fraction(0)) if renormalize else Fraction(1)
            weights.append([to_fp32(Fraction(scores[e]) / total) if total else 0.0 for e in chosen])
            ids.append(chosen)
        return {"weights": as_tensor(weights, k, torch.float32), "ids": torch.tensor(ids).reshape(-1, k).int()}

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_relabelling_experts,
        law_choosing_fewer,
        law_weights_are_probabilities,
    )

    def rename_experts(
        self, problem: Problem, expected: Tensors, name: torch.Tensor, weights: dict[str, Int4Weight]
    ) -> tuple[Problem, Tensors]:
        logits = torch.empty_like(problem.args["logits"])
        logits[:, name] = problem.args["logits"]
        ids = name[expected["ids"].long().clamp(0, problem.case.E - 1)]
        return with_args(problem, logits=logits), {**expected, "ids": ids}

    def clear(self, problem: Problem, expected: Tensors, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
        logits = problem.args["logits"]
        return clear_rows(logits, problem.case.k, ties=ties), topk_tolerance(logits, expected["weights"])


def router_logits(case: Case) -> torch.Tensor:
    """Return logits [T, E] of a router's case: normal, ties, nonfinite, outliers or wide."""
    fmt, stream = FORMATS[case.dtype], Stream(case.seed, "logits")
    logits = to_tensor(_logits(case, fmt, stream), fmt)
    if case.data == "nonfinite":
        _spoil(logits, stream, case.seed)
    return logits


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
