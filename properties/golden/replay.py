"""Replaying kernels on a golden set's stored inputs: legal or not, how far from correctly rounded, the same bits?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from moeracle.ref.contracts.contract import Contract, contract

from ..cases.case import Case, Problem
from ..cases.kernel_like import KernelLike
from ..cases.record import record_of
from ..common.guard import Guarded
from ..judge import judge
from ..trial.call import call, ending_of
from .compare import INTEGER, compare_all, ulp_distance
from .derive import derive
from .store import Entry, GoldenSet
from .tensors import Tensors, as_output, results_of
from .verify import Finding, by_file, stored_problem


@dataclass
class Replayed:
    """One kernel's replay.

    Args:
        kernel, op, contract: what ran, under what.
        cases: fixtures it ran on.
        elements, equal: elements compared with the correctly rounded ones, and how many are the same.
        ulp: the largest distance from them, in representable values.
        recorded: entries that hold this kernel's own bits.
        skipped: fixtures of its op that it does not take.
        findings: what is not as it was.
    """

    kernel: str
    op: str
    contract: str
    cases: int = 0
    elements: int = 0
    equal: int = 0
    ulp: float = 0.0
    recorded: int = 0
    skipped: int = 0
    findings: list[Finding] = field(default_factory=list)


def run_kernel(kernel: KernelLike, problem: Problem, device: str) -> tuple[Tensors | None, str]:
    """Run a kernel once on guarded inputs and poisoned memory; return its results by name, or why there are none.

    Returns:
        Contiguous tensors on the CPU and "", or None and one line.
    """
    guarded = Guarded(problem.to(device).args)
    try:
        output = call(kernel, guarded.args, 0, problem.case)
    except Exception as error:  # whatever a user's kernel raises is a finding, not our crash
        return None, ending_of(error)[1][0]
    changed = guarded.written()
    if changed:
        return None, f"wrote into its input {changed}; inputs must be unchanged"
    results = results_of(problem.case.op, output)
    return results, "" if results else f"returned {_form(output)}, must return what the op returns"


def _form(output: object) -> str:
    kinds = f" ({output.layout}, on {output.device})" if isinstance(output, torch.Tensor) else ""
    return f"{type(output).__name__}{kinds}"


def replay(
    golden: GoldenSet, kernel: KernelLike, device: str, progress: Callable[[int, int], None] | None = None
) -> Replayed:
    """Run one kernel on every fixture of its op and say what is not as it was.

    Args:
        golden: a set that was read.
        kernel: a kernel's record.
        device: where it runs.
        progress: called with fixtures done and all.
    """
    result = Replayed(kernel.name, kernel.op, kernel.contract.name)
    groups = list(by_file(golden.named(kernel.op)))
    for done, (_, group) in enumerate(groups):
        case = Case.parse(group[0].case)
        if kernel.why_not(case) is not None:
            result.skipped += 1
        else:
            _replay_one(golden, kernel, device, group, result)
        if progress:
            progress(done + 1, len(groups))
    return result


def _replay_one(golden: GoldenSet, kernel: KernelLike, device: str, group: list[Entry], result: Replayed) -> None:
    name = group[0].literal or group[0].case

    def report(text: str) -> None:
        result.findings.append(Finding("kernel", name, kernel.name, text))

    try:
        problem, _ = stored_problem(golden, group[0])
    except ValueError:  # this version cannot build the case: verify_set says so
        result.skipped += 1
        return
    rules = kernel.contract_for(problem.case)
    got, complaint = run_kernel(kernel, problem, device)
    result.cases += 1
    if got is None:
        report(complaint)
        return
    verdict = judge(problem, as_output(kernel.op, got), rules, explain=False)
    illegal = verdict.status == "illegal"
    own = [entry for entry in group if entry.kernel == kernel.name]
    for entry in own:
        result.recorded += 1
        changes = compare_all(*_closed(problem, golden.results_of(entry), got))
        if changes and (illegal or rules.deterministic):
            legal = f"illegal under {rules.name!r}" if illegal else f"all legal under {rules.name!r}"
            report(
                "; ".join(change.text() for change in changes) + f"; {legal}; recorded {entry.date} ({entry.reason})"
            )
    if illegal and not own:
        report(f"illegal{' at stage ' * bool(verdict.stage)}{verdict.stage}: {verdict.reason}")
    if not illegal:
        _measure(result, *_closed(problem, expected(golden, group, problem, rules), got))


def _closed(problem: Problem, old: Tensors, new: Tensors) -> tuple[Tensors, Tensors]:
    """Return two kernels' results with what their op leaves open made equal, where their form is the same."""
    record = record_of(problem.case.op)
    if set(old) != set(new) or any(old[name].shape != new[name].shape for name in old):
        return old, new
    first, second = (record.settled(problem, record.as_output(side)) for side in (old, new))
    return results_of(record.name, first) or old, results_of(record.name, second) or new


def rounding_key(rules: Contract, case: Case) -> tuple[object, ...]:
    """Return all that the correctly rounded results depend on."""
    cast = rules.weight_rounding if rules.weight == "cast" else "exact"
    in_dtype = rules.sum_in_dtype(case.sizes.get("k", 1))
    return cast, rules.stores, rules.store_rounding, rules.silu, rules.router_weight, rules.gate, in_dtype


def expected(golden: GoldenSet, group: list[Entry], problem: Problem, rules: Contract) -> Tensors:
    """Return the correctly rounded results under a kernel's contract: the stored ones if the set has them."""
    wanted = rounding_key(rules, problem.case)
    for entry in group:
        with suppress(ValueError):  # a contract that this version does not know: verify_set says so
            if not entry.kernel and rounding_key(contract(entry.contract), problem.case) == wanted:
                return golden.results_of(entry)
    try:
        return derive(problem, rules)
    except ValueError:
        return {}


def _measure(result: Replayed, correct: Tensors, got: Tensors) -> None:
    for name, value in correct.items():
        theirs = got.get(name)
        if theirs is None or (theirs.dtype, theirs.shape) != (value.dtype, value.shape) or not value.numel():
            continue
        same = value == theirs  # -0 is as good as +0
        result.elements += same.numel()
        result.equal += int(same.sum())
        if value.dtype in INTEGER:
            result.ulp = max(result.ulp, float(torch.where(same, 0.0, ulp_distance(value, theirs)).max()))
