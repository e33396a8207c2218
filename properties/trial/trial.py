"""One trial: build a case, run the kernel on guarded inputs and poisoned memory, twice, and judge what it stored."""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Callable
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract

from ..cases.case import Case, Problem
from ..cases.cost import operations
from ..cases.kernel_like import KernelLike
from ..cases.optable import OPS
from ..cases.record import record_of
from ..common.endings import ENDINGS, Ended, InternalError
from ..common.guard import POISONS, Guarded, different_bits, digest, same_bits
from ..common.verdict import Verdict, failed
from ..compare.error_map import difference_map
from ..diagnose.runs import tell_difference
from ..judge.admits import admits_zeros
from .call import call, ending_of
from .ranks import judge_output, ranks_of_difference

__all__ = ["differs_elsewhere", "run_trial"]

RUNS = 2
MOST_KNOWN = 2000  # verdicts that are kept
LARGE = 1 << 34  # operations (cases/cost.py): seconds of building
NOTHING = "allows so many roundings that zeros pass even on a small plain case, in every dtype: it judges nothing"
UNSTEADY = "a race, atomics, or memory read before it was written"
MOST_RATIO = 1 + 2.0**-20  # of error to bound in a legal case: 1, calculated in fp64


Known = dict[Any, Verdict]  # of outputs that are not illegal, by case, contract and bits


def run_trial(
    kernel: KernelLike, case: Case, *, device: str | None = None, explain: bool = True, known: Known | None = None
) -> Verdict:
    """Judge one kernel on one case.

    Args:
        kernel: op, name, contract, device, fn and why_not, as @moeracle.kernel makes.
        case: what to build.
        device: where to run; None takes the kernel's.
        explain: on a failure, also look which contract or tolerance would have let it pass.
        known: verdicts on outputs that were not illegal, taken instead of judging the same bits again; more are added.
            A fault does not show on most cases: what it leaves there is what other kernels left.
    Returns:
        Verdict; whatever the kernel does ends as one; only in a process of its own may it end that.
    Raises:
        ValueError: the device is not there, or the case cannot be built.
        InternalError: the verdict contradicts itself.
    """
    start = time.perf_counter()
    verdict = Verdict(case.op, str(case), kernel.name, kernel.contract.name)
    try:
        reason = kernel.why_not(case)
        if reason is not None:
            verdict.status, verdict.reason = "skipped", reason
            return verdict
        problem = case.build(device or kernel.device)
        rules = kernel.contract_for(case)
    except Ended as ended:  # asking it was enough
        return failed(verdict, ended.tier, "", *ended.lines)
    remarks = getattr(kernel.fn, "remarks", [])  # of a kernel over ranks, what its calls showed beside their results
    remarks.clear()
    verdict = _run_and_judge(kernel, problem, rules, verdict, explain, known)
    verdict.summary[1:1] = dict.fromkeys(remarks) if verdict.status == "illegal" else ()
    verdict.kernel, verdict.contract = kernel.name, rules.name
    if verdict.status == "vacuous" and admits_zeros(rules, case):
        failed(verdict, "contract", verdict.stage, f"contract {rules.name!r} {NOTHING}")
    verdict.seconds = time.perf_counter() - start
    beyond = [stage for stage in verdict.stages if stage.max_ratio > MOST_RATIO and not rules.ftz]
    if verdict.status == "legal" and beyond:
        raise InternalError(f"{case}: judged legal, with error/bound {beyond[0].max_ratio:.3g} at {beyond[0].stage}")
    return verdict


def _run_and_judge(
    kernel: KernelLike, problem: Problem, rules: Contract, verdict: Verdict, explain: bool, known: Known | None
) -> Verdict:
    guarded, case = Guarded(problem.args), problem.case
    outputs, is_new = [], False
    for run in range(RUNS):
        try:
            if run == 0 and (is_new := _is_new(kernel, problem)):
                _call_on_other_values(kernel, problem, 0)
            if run == 1 and is_new and _between(case):
                _call_on_other_values(kernel, problem, 1, times=2)  # what changes by turns is seen, too
            output = call(kernel, guarded.args, run, case)
        except InternalError:
            raise
        except Exception as error:  # whatever a user's kernel raises is a finding, not our crash
            tier, said = ending_of(error)
            return failed(verdict, tier, "", *said)
        outputs.append(_copied(output) if run + 1 < RUNS else output)  # a kernel may reuse its output's memory
        changed = guarded.written()
        if changed:
            return failed(verdict, "inputs", "", f"wrote into its input {changed}; inputs must be unchanged")
    first, second = outputs
    verdict = _judged(problem, first, rules, explain, known)
    later = _written_later(kernel, guarded)  # judging took its time
    if later and (verdict.ok or later[0] in ENDINGS):
        return failed(verdict, *later)
    if verdict.tier != "shape":
        verdict.bits = {name: digest(t) for name, t in _tensors(first, case.op).items() if isinstance(t, torch.Tensor)}
    if verdict.tier in ("shape", "nonfinite"):  # NaN that nobody wrote is better described by where it shows
        return verdict
    difference = _difference(problem, first, second)
    if difference and (rules.deterministic or not difference[0]):
        stage, *lines = difference
        if stage:
            lines += ranks_of_difference(problem, rules, stage, *(_tensors(o, case.op)[stage] for o in (first, second)))
            lines += [_which_is_legal(verdict, judge_output(problem, second, rules, explain=False))]
        verdict = failed(verdict, "determinism", stage, *lines)
        verdict.maps = _difference_maps(problem, first, second, stage)
        if explain and stage:
            tell_difference(verdict, problem, _tensors(first, case.op), _tensors(second, case.op), rules)
    elif difference and verdict.ok:
        verdict = judge_output(problem, second, rules, explain=explain)
    return verdict


def _judged(problem: Problem, output: Any, rules: Contract, explain: bool, known: Known | None) -> Verdict:
    """Judge an output, or take the verdict on the same bits under the same contract."""
    if known is None:
        return judge_output(problem, output, rules, explain=explain)
    found = _tensors(output, problem.case.op).items()
    key = str(problem.case), rules, *((name, _form(t), digest(t)) for name, t in found if isinstance(t, torch.Tensor))
    if len(key) != 2 + len(found) or key not in known:
        verdict = judge_output(problem, output, rules, explain=explain)
        if verdict.status == "illegal" or len(key) != 2 + len(found):
            return verdict
        if len(known) >= MOST_KNOWN:
            known.clear()
        known[key] = verdict
    return copy.deepcopy(known[key])


def _is_new(kernel: KernelLike, problem: Problem) -> bool:
    """Say whether a kernel in a process of its own is first called on other values of the same sizes: what it remembers
    by size, or by address, is wrong then. A very large case is not built twice for that.
    """
    return hasattr(kernel.fn, "is_new") and operations(problem.case) < LARGE and bool(kernel.fn.is_new(problem.case))


def _between(case: Case) -> bool:
    """Say whether there are calls on other values between the two runs of a case: of half of the cases.

    No kernel can tell which, so no number of calls says which one is judged.
    """
    return zlib.crc32(str(case).encode()) % 2 == 1


def _call_on_other_values(kernel: KernelLike, problem: Problem, run: int, times: int = 1) -> None:
    """Call the kernel where the next run's arguments will lie, on other values."""
    other = problem.case.replace(seed=problem.case.seed + 1 + run).build(problem.device)
    for _ in range(times):
        call(kernel, Guarded(other.args).args, run, problem.case)


def differs_elsewhere(kernel: KernelLike, case: Case, renew: Callable[[], Any]) -> Verdict | None:
    """Ask a kernel's process, and then a fresh one, for the same case.

    What a kernel remembers by the values of its inputs is the same in a second run, whether or not it would compute it
    again: a process that has not seen them computes.

    Args:
        kernel: whose contract promises the same bits for the same inputs, and that runs in a process of its own.
        case: a legal one.
        renew: lets the next call be a fresh process's.
    Returns:
        The failure where they differ, else None.
    """
    verdict = Verdict(case.op, str(case), kernel.name, kernel.contract.name)
    try:
        problem = case.build(kernel.device)
        first = call(kernel, Guarded(problem.args).args, 0, case)
        renew()
        second = call(kernel, Guarded(problem.args).args, 0, case)
    except InternalError:
        raise
    except Exception as error:
        tier, said = ending_of(error)
        return failed(verdict, tier, "", *said)
    difference = _difference(problem, first, second)
    if difference is None:
        return None
    stage, line = difference
    verdict = failed(verdict, "determinism", stage, line.replace("second run", "another process"))
    verdict.maps = _difference_maps(problem, first, second, stage)
    return verdict


def _written_later(kernel: KernelLike, guarded: Guarded) -> tuple[str, str, str] | None:
    """Return tier, stage and line if a kernel in a process of its own wrote after it had returned."""
    if not hasattr(kernel.fn, "late"):
        return None
    try:
        late = kernel.fn.late()
    except Ended as ended:
        return ended.tier, "", ended.lines[0]
    if late:
        return "determinism", "", "its result changed after it had returned: a thread or a stream was not waited for"
    changed = guarded.written()
    said = f"wrote into its input {changed} after it had returned; inputs must be unchanged"
    return ("inputs", "", said) if changed else None


def _copied(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.detach().clone()
    if isinstance(output, dict):
        return {name: _copied(value) for name, value in output.items()}
    if isinstance(output, (tuple, list)):
        copies = [_copied(value) for value in output]
        return copies if isinstance(output, list) else tuple(copies)
    return output


def _tensors(output: Any, op: str) -> dict[str, Any]:
    """Return what a kernel returned by the names of its op's results, as far as it has their number."""
    if isinstance(output, dict):
        return output
    if isinstance(output, (tuple, list)):
        names = [result.name for result in OPS[op].results]
        names += [f"result {i}" for i in range(len(names), len(output))]  # more than the op has
        return dict(zip(names, output, strict=False))
    return {"out": output}


def _which_is_legal(first: Verdict, second: Verdict) -> str:
    """Say which of two runs that differ was legal, and what fresh memory held in each."""
    said = {True: "legal", False: "not legal"}
    nan, value = (poison[0] for poison in POISONS)
    runs = f"the first run is {said[first.ok]} (fresh memory held {nan:g}), the second {said[second.ok]} ({value:g})"
    return f"{runs.replace('nan', 'NaN')}"


def _form(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def _difference(problem: Problem, first: Any, second: Any) -> tuple[str, str] | None:
    """Return (stage, one line) if two runs on the same inputs differ in any bit that the op does not leave open.

    The stage is "" where not even the form of the results is the same.
    """
    op = problem.case.op
    forms = [{name: _form(value) for name, value in _tensors(output, op).items()} for output in (first, second)]
    if forms[0] != forms[1]:
        returned = [", ".join(f"{name} {form}" for name, form in of_run.items()) for of_run in forms]
        return "", f"first run returned {returned[0]}; second run {returned[1]}"
    ours, theirs = (_tensors(record_of(op).settled(problem, output), op) for output in (first, second))
    for name, a in ours.items():
        b = theirs[name]
        if not same_bits(a, b):
            wrong = different_bits(a, b)
            at = tuple(wrong.nonzero()[0].tolist())
            fill = torch.tensor(POISONS[1][0 if b.is_floating_point() else 1], dtype=b.dtype)
            unwritten = bool((b[wrong].cpu() == fill).all())
            why = "what fresh memory held: nobody wrote it" if unwritten else UNSTEADY
            return name, (
                f"second run gave other bits in {int(wrong.sum()):,} of {wrong.numel():,} elements, "
                f"first at {list(at)}: {a[at].item():.8g}, then {b[at].item():.8g} ({why})"
            )
    return None


def _difference_maps(problem: Problem, first: Any, second: Any, stage: str) -> list[dict[str, Any]]:
    """Return the map of where two runs' results of one stage differ; none where not even their form is the same."""
    if not stage:
        return []
    op = problem.case.op
    a, b = (_tensors(record_of(op).settled(problem, output), op)[stage] for output in (first, second))
    return [difference_map(stage, "row", different_bits(a, b))]
