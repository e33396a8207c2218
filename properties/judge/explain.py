"""What a failure prints: how many elements, the worst one, where they are, and what would have hidden them."""

from __future__ import annotations

import math
from typing import Any

import torch

from moeracle.ref.contract import PRESETS, Contract

from ..problem import Problem
from ..verdict import Verdict
from .error_map import failure_maps
from .floats import FLOAT_JUDGES
from .locate import describe
from .shapes import Output, wrong_shape
from .tally import Tally, Worst

EXPLAIN_UP_TO = 1 << 22  # elements of all outputs together for which other contracts are tried
VACUOUS = " (vacuous: zeros pass too)"
EVERYTHING = 1 << 62  # a sample that leaves nothing out


def explain_failure(
    verdict: Verdict, problem: Problem, outputs: Output, tally: Tally, rules: Contract, explain: bool
) -> Verdict:
    """Turn a verdict into a failure of the first stage that has illegal elements.

    Args:
        verdict: to fill in.
        tally: of that stage.
        rules: the contract that was broken.
        explain: also say what would have let it pass, which takes as long as a dozen judgements.
    """
    worst, result, op = tally.worst, tally.result, problem.case.op
    assert worst is not None
    name = f"{result.stage}[{_place(problem, result.stage, worst.row, worst.column)}]"
    verdict.summary = [
        f"{result.illegal:,} of {result.judged:,} elements illegal; worst {name}: got {worst.got:.8g}, "
        f"legal [{worst.lo:.8g}, {worst.hi:.8g}] ({_distance(worst, op)})",
        describe(tally.illegal_mask(), *_labels(problem, result.stage)),
    ]
    verdict.maps = _maps(problem, tally)
    if explain:
        from ..diagnose import search, tell  # simulations are judged, so their files import the judge

        verdict.summary.append(f"would pass at: {_would_pass(problem, outputs, result.stage, rules)}")
        mask = tally.illegal_mask()
        tell(verdict, search(problem, outputs, rules, result.stage, mask, width_ulp=result.width_ulp))
    verdict.status, verdict.tier, verdict.stage = "illegal", _tier(worst), result.stage
    verdict.reason = verdict.summary[0]
    return verdict


def _maps(problem: Problem, tally: Tally) -> list[dict[str, Any]]:
    """Return the failing stage's error maps, by token and by expert."""
    stage = tally.result.stage
    name, experts, _ = _labels(problem, stage)
    routed = problem.case.op == "moe_w4a16" and stage != "out"
    slots = problem.args["topk_ids"].shape[1] if routed else 1
    return failure_maps(stage, tally.outside_ulp(), "token" if routed else name, experts, slots)


def _tier(worst: Worst) -> str:
    if not all(map(math.isfinite, (worst.got, worst.lo, worst.hi))):
        return "nonfinite"
    return "bits" if worst.exact else "interval"


def _distance(worst: Worst, op: str) -> str:
    if _tier(worst) == "nonfinite":
        return "not finite"
    if op == "unpack_int4":
        return f"off by {abs(worst.got - worst.lo):g}"
    return f"{worst.ulp:,.0f} ulp outside" if worst.ulp >= 1 else "under 1 ulp outside"


def _place(problem: Problem, stage: str, row: int, column: int) -> str:
    op = problem.case.op
    if op == "moe_w4a16" and stage != "out":
        k = problem.args["topk_ids"].shape[1]
        return f"token {row // k}, slot {row % k}, n {column}"
    if op in ("unpack_int4", "dequantize_int4"):
        N = problem.args["w"].N
        expert = f"expert {row // N}, " if problem.args["w"].E is not None else ""
        return f"{expert}n {row % N}, k {column}"
    return f"{_row_name(op)} {row}, {'v' if op == 'int8_lm_head' else 'n'} {column}"


def _row_name(op: str) -> str:
    return "row" if op in ("grouped_gemm", "padded_gemm", "silu_and_mul") else "token"


def _labels(problem: Problem, stage: str) -> tuple[str, torch.Tensor | None, int]:
    """Return what a row is called, its expert if it has one, and the columns' group size, for locate.describe."""
    op, args = problem.case.op, problem.args
    if op in ("unpack_int4", "dequantize_int4"):
        w = args["w"]
        experts = None if w.E is None else torch.arange(w.E).repeat_interleave(w.N)
        return "row", experts, w.G if w.G < w.K else 0
    if op == "moe_w4a16" and stage != "out":
        return "row", args["topk_ids"].flatten().cpu(), 0
    if op == "padded_gemm" and "topk_ids" in problem.truth:
        return "row", problem.truth["topk_ids"].flatten().cpu(), 0
    if op == "grouped_gemm":
        offsets, R = args["expert_offsets"].cpu(), args["x"].shape[0]
        experts = torch.bucketize(torch.arange(R), offsets[1:], right=True)
        experts[int(offsets[-1]) :] = -1
        return "row", experts, 0
    return _row_name(op), None, 0


def _would_pass(problem: Problem, outputs: Output, stage: str, rules: Contract) -> str:
    """Name the contracts that allow this output, and the absolute tolerance that would have hidden the errors."""
    allowing: list[str] = []
    if sum(value.numel() for value in outputs.values()) <= EXPLAIN_UP_TO:
        seen = [rules]
        for name, preset in PRESETS.items():
            if all(preset.differences(other) for other in seen):
                seen.append(preset)
                remark = _allowed(problem, outputs, preset)
                allowing += [] if remark is None else [f"contract '{name}'{remark}"]
        allowing = allowing or ["no contract"]
    whole = next(
        t for t in FLOAT_JUDGES[problem.case.op](problem, outputs, rules, EVERYTHING) if t.result.stage == stage
    )
    return " | ".join([*allowing, _tolerance(whole.largest_error, whole.largest_expected)])


def _allowed(problem: Problem, outputs: Output, rules: Contract) -> str | None:
    """Return None if a contract forbids the output, else what is to be said about its allowing it."""
    if wrong_shape(problem, outputs, rules):
        return None
    tallies = FLOAT_JUDGES[problem.case.op](problem, outputs, rules, EVERYTHING)
    if any(tally.result.illegal for tally in tallies):
        return None
    return VACUOUS if any(tally.vacuous == "zeros" for tally in tallies) else ""


def _tolerance(error: float, expected: float) -> str:
    """Return the smallest two-digit atol that hides an error, and whether an output of zeros passes it too."""
    if not math.isfinite(error):
        return "no atol"
    text = f"{error:.2g}"
    if float(text) < error:  # it was rounded down
        step = 10.0 ** (math.floor(math.log10(error)) - 1)
        text = f"{(math.floor(error / step) + 1) * step:.2g}"
    return f"atol={text}" + (VACUOUS if float(text) >= expected else "")
