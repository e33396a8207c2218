"""topk_softmax: the router."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.routing import topk_softmax

from ..case import Case
from ..cases.record import Tensors
from ..golden.derive import to_fp32
from ..golden.rational import as_tensor
from ..golden.transcendental import softmax_fp32
from ..judge.index_parts import tally_mask
from ..judge.topk import about_id, chosen_weights, softmax, wrong_ids
from ..optable import Argument, Result
from ..problem import Problem
from ..verdict import Verdict
from .families import TupleOp


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

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        shape = problem.args["logits"].shape[0], problem.args["top_k"]
        return {"weights": shape, "ids": shape}

    def judge_parts(self, problem: Problem, parts: list[torch.Tensor], verdict: Verdict) -> None:
        """k distinct experts, descending, none surely larger passed over, ties to the lowest id."""
        logits, _, renormalize = problem.args.values()
        weights, ids = parts[0].double(), parts[1].long()
        scores = softmax(logits)
        wrong = wrong_ids(logits, scores, ids)
        tally_mask(verdict, self.result("ids"), wrong, "bits", lambda t, j: about_id(logits, ids, t, j))
        expected, spread = chosen_weights(scores, ids.clamp(0, logits.shape[1] - 1), renormalize)
        bad = ~((weights - expected).abs() <= spread)  # so written that NaN is bad
        tier = "interval" if bool(weights[bad].isfinite().all()) else "nonfinite"

        def tell(t: int, j: int) -> str:
            legal = f"{float(expected[t, j]):.8g} ± {float(spread[t, j]):.2g}"
            return f"got {float(weights[t, j]):.8g}, legal {legal}"

        tally_mask(verdict, self.result("weights"), bad, tier, tell)

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        logits, k, renormalize = problem.args.values()
        return self.named(topk_softmax(logits, k, renormalize=renormalize))

    def compared(self, output: Any) -> torch.Tensor:
        weights: torch.Tensor = output[0]
        return weights

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

    def cost(self, case: Case) -> int:
        return max(1, case.R) * case.sizes["E"]

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
