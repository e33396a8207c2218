"""judge(): could a kernel that keeps the contract have stored these bits?

Shape and dtype and device first, then every element: one legal value where the data or the op are exact, the derived
interval elsewhere. An infinity passes only where it is legal, and NaN only where nothing else is, or beside the number
that other forms of an activation have there (docs/numerics.md).
"""

from __future__ import annotations

from typing import Any

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.contracts.contract import contract as named_contract

from ..cases.case import Case, Problem
from ..cases.optable import OPS
from ..cases.record import record_of
from ..cases.words import in_order
from ..common.torch_state import our_arithmetic
from ..common.verdict import Verdict, failed
from ..compare.floats import sums_may_overflow, tallied
from ..compare.index_parts import take
from ..compare.shapes import Output, as_outputs, wrong_shape
from ..compare.sums import require_cover
from ..compare.tally import SAMPLE
from ..diagnose import search, tell
from .explain import explain_failure

__all__ = ["judge"]


def judge(
    problem: Problem | Case, output: Any, contract: Contract | str | None = None, *, explain: bool = True
) -> Verdict:
    """Say whether a kernel that keeps the contract could have produced `output`.

    Args:
        problem: a built Problem, or a Case to build on the CPU.
        output: what the kernel returned: a tensor, a tuple of tensors, or for moe_w4a16 also a dict of the stages
            that it stores, which are then judged one from the other.
        contract: a Contract, or a preset's name with overrides; None takes the op's default.
        explain: on a failure, also say under which contract or tolerance it would have passed.
    Returns:
        Verdict; .ok, .text(), .stages.
    Raises:
        ValueError: an unknown contract, or one with a schedule that does not cover its sum.
    """
    if isinstance(problem, Case):
        problem = problem.build()
    case = problem.case
    rules = named_contract(contract if contract is not None else OPS[case.op].default_contract)
    require_cover(case, rules)
    verdict = Verdict(case.op, str(case), contract=rules.name)
    with our_arithmetic():
        if record_of(case.op).has("judge_parts"):
            return _judge_parts(problem, output, rules, verdict, explain)
        return _judge_floats(problem, output, rules, verdict, explain)


def _judge_parts(problem: Problem, output: Any, rules: Contract, verdict: Verdict, explain: bool) -> Verdict:
    parts = take(verdict, problem, output)
    if parts is None:
        return verdict
    record_of(problem.case.op).judge_parts(problem, parts, verdict)
    if explain and verdict.status == "illegal":
        _diagnosed(verdict, problem, record_of(problem.case.op).by_name(parts) or {}, rules)
    return verdict


def _judge_floats(problem: Problem, output: Any, rules: Contract, verdict: Verdict, explain: bool) -> Verdict:
    op = problem.case.op
    outputs = as_outputs(op, output)
    complaint = outputs if isinstance(outputs, str) else wrong_shape(problem, outputs, rules)
    if complaint:
        return failed(verdict, "shape", "", complaint)
    assert isinstance(outputs, dict)
    problem, outputs = in_order(problem, outputs)
    if sums_may_overflow(problem, rules):
        verdict.status = "vacuous"
        verdict.reason = f"sums not yet scaled may overflow fp32 under contract {rules.name!r}: NaN would be legal"
        return verdict
    tallies = tallied(problem, outputs, rules, SAMPLE)
    for tally in tallies:
        verdict.stages.append(tally.finish(_is_conditioned(op, tally.result.stage, outputs)))
        if tally.result.illegal:
            verdict.illegal_at[tally.result.stage] = tally.illegal_mask().reshape(outputs[tally.result.stage].shape)
    bad = next((tally for tally in tallies if tally.result.illegal), None)
    if bad is not None:
        return explain_failure(verdict, problem, outputs, bad, rules, explain)
    drifting = next((stage for stage in verdict.stages if stage.drift.complaint), None)
    if drifting is not None:
        failed(verdict, "statistics", drifting.stage, drifting.drift.complaint)
        return _diagnosed(verdict, problem, outputs, rules) if explain else verdict
    vacuous = next((tally for tally in tallies if tally.vacuous), None)
    if vacuous is not None:
        verdict.status, verdict.stage = "vacuous", vacuous.result.stage
        verdict.reason = f"{vacuous.vacuous} would pass as {verdict.stage}: the case has too little signal to judge by"
    return verdict


def _diagnosed(verdict: Verdict, problem: Problem, outputs: Output, rules: Contract) -> Verdict:
    """Add what a failure looks like that explain_failure does not see: integers, and statistics."""
    tell(verdict, search(problem, outputs, rules, verdict.stage))
    return verdict


def _is_conditioned(op: str, stage: str, outputs: Output) -> bool:
    """Say whether a stage was judged from the kernel's own input to it; an op of one stage always is."""
    before = {"a": "h", "y": "a", "out": "y"}.get(stage) if OPS[op].layer else None
    return before is None or before in outputs
