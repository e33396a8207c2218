"""What a failure prints: how many elements, the worst one, where they are, and what would have hidden them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from moeracle.ref.bounds.band import Band, nan_or_value
from moeracle.ref.contracts.contract import CHOICES, PRESETS, Contract

from ..cases.case import Problem
from ..cases.record import record_of
from ..common.verdict import Verdict
from ..compare.error_map import failure_maps
from ..compare.floats import tallied
from ..compare.locate import describe
from ..compare.ranks import say_ranks
from ..compare.shapes import Output, without_codes, wrong_shape
from ..compare.tally import Tally, Worst
from ..diagnose import search, tell

EXPLAIN_UP_TO = 1 << 22  # elements of all outputs together for which other contracts are tried
VACUOUS = " (vacuous: zeros pass too)"
LARGEST = torch.finfo(torch.float64).max
MOST_ULP = 1_000_000
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
    worst, result, record = tally.worst, tally.result, record_of(problem.case.op)
    assert worst is not None
    name = f"{result.stage}[{record.place(problem, result.stage, worst.row, worst.column)}]"
    rows = record.rows(problem, result.stage)
    verdict.summary = [
        f"{result.illegal:,} of {result.judged:,} elements illegal; worst {name}: got {worst.got:.8g}, "
        f"legal {_legal(worst)} ({_distance(worst, record.result_dtype(result.stage, problem.case))})",
        describe(tally.illegal_mask(), rows.name, rows.experts, rows.group),
    ]
    of_ranks = "" if rules.ranks is None else say_ranks(problem, rules.ranks, result.stage, tally.illegal_mask())
    verdict.summary += [of_ranks] if of_ranks else []
    line = rows.line or rows.name
    verdict.maps = failure_maps(result.stage, tally.outside_ulp(), line, rows.experts, rows.slots)
    if explain:
        verdict.summary.append(f"would pass at: {_would_pass(problem, outputs, result.stage, rules)}")
        mask = tally.illegal_mask()
        tell(verdict, search(problem, outputs, rules, result.stage, mask, width_ulp=result.width_ulp))
    verdict.status, verdict.tier, verdict.stage = "illegal", _tier(worst), result.stage
    verdict.reason = verdict.summary[0]
    return verdict


def _legal(worst: Worst) -> str:
    ends = [end for end in (worst.lo, worst.hi) if not math.isnan(end)]
    if len(ends) == 2:
        return f"[{worst.lo:.8g}, {worst.hi:.8g}]"
    legal = Band(torch.tensor(worst.lo), torch.tensor(worst.hi))
    either = ends and bool(nan_or_value(legal, torch.tensor(ends[0])))
    return f"NaN or {ends[0]:.8g}" if either else "NaN"


def _tier(worst: Worst) -> str:
    if not all(map(math.isfinite, (worst.got, worst.lo, worst.hi))):
        return "nonfinite"
    return "bits" if worst.exact else "interval"


def _distance(worst: Worst, dtype: torch.dtype) -> str:
    if _tier(worst) == "nonfinite":
        return "not finite"
    if not dtype.is_floating_point:
        return f"off by {abs(worst.got - worst.lo):g}"
    if worst.lo == worst.hi == 0:
        return "legal is 0"
    if (
        worst.ulp > MOST_ULP
    ):  # a number of ulp says how far a result is off, not how wrong one is that has nothing right
        return f"outside by {max(worst.lo - worst.got, worst.got - worst.hi):.3g}"
    return f"{worst.ulp:,.0f} ulp outside" if worst.ulp >= 1 else "under 1 ulp outside"


def _would_pass(problem: Problem, outputs: Output, stage: str, rules: Contract) -> str:
    """Name the contracts that allow this output, and the absolute tolerance that would have hidden the errors."""
    allowing: list[str] = []
    if sum(value.numel() for value in outputs.values()) <= EXPLAIN_UP_TO:
        seen = [rules]
        for name, preset in PRESETS.items():
            preset = preset if rules.ranks is None else replace(preset, ranks=rules.ranks)
            if all(preset.differences(other) for other in seen):
                seen.append(preset)
                remark = _allowed(problem, outputs, preset)
                text = name if rules.ranks is None else f"{name},ranks={rules.ranks}"
                allowing += [] if remark is None else [f"contract '{text}'{remark}"]
        allowing = allowing or _elsewhere(problem, outputs, rules) or ["no contract"]
    whole = next(t for t in tallied(problem, outputs, rules, EVERYTHING) if t.result.stage == stage)
    return " | ".join([*allowing, _tolerance(whole.largest_error, whole.largest_expected)])


def _elsewhere(problem: Problem, outputs: Output, rules: Contract) -> list[str]:
    """Name the contracts that allow this output and differ only in where the router weight enters."""
    if "topk_weights" not in problem.args:
        return []
    kept = [part for part in rules.name.split(",") if part.partition("=")[0] != "router_weight"]
    others = [where for where in CHOICES["router_weight"] if where != rules.router_weight]
    named = {where: ",".join([*kept, f"router_weight={where}"]) for where in others}
    rivals = {name: replace(rules, name=name, router_weight=where) for where, name in named.items()}
    remarks = {name: _allowed(problem, outputs, rival) for name, rival in rivals.items()}
    return [f"contract '{name}'{remark}" for name, remark in remarks.items() if remark is not None]


def _allowed(problem: Problem, outputs: Output, rules: Contract) -> str | None:
    """Return None if a contract forbids the output, else what is to be said about its allowing it."""
    if wrong_shape(problem, outputs, rules) or without_codes(problem, rules):
        return None
    tallies = tallied(problem, outputs, rules, EVERYTHING, to_first_illegal=True)
    if any(tally.result.illegal for tally in tallies):
        return None
    return VACUOUS if any(tally.vacuous == "zeros" for tally in tallies) else ""


def _tolerance(error: float, expected: float) -> str:
    """Return the smallest two-digit atol that hides an error, and whether an output of zeros passes it too."""
    if not error < LARGEST:  # an infinity counts as the largest number
        return "no atol"
    text = f"{error:.2g}"
    if float(text) < error:  # it was rounded down
        step = 10.0 ** (math.floor(math.log10(error)) - 1)
        text = f"{(math.floor(error / step) + 1) * step:.2g}"
    return f"atol={text}" + (VACUOUS if float(text) >= expected else "")
