"""One trial: build a case, run the kernel on guarded inputs and poisoned memory, twice, and judge what it stored."""

from __future__ import annotations

import inspect
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract

from ..cases.case import Case, Problem
from ..cases.kernel_like import KernelLike, takes_extra
from ..cases.optable import OPS
from ..cases.record import record_of
from ..common.guard import POISONS, Guarded, different_bits, digest, poisoned, same_bits
from ..common.torch_state import current, switched
from ..common.verdict import Verdict, failed
from ..compare.error_map import difference_map
from ..diagnose.runs import tell_difference
from ..judge import judge

__all__ = ["run_trial"]

RUNS = 2
UNSTEADY = "a race, atomics, or memory read before it was written"
_OURS = ("trial/trial.py", "common/guard.py", "common/torch_state.py", "laws/bench.py", "golden/replay.py")
_NOT_THE_KERNEL = (str(Path(torch.__file__).parent), *(str(Path(__file__).parents[1] / name) for name in _OURS))


def run_trial(kernel: KernelLike, case: Case, *, device: str | None = None, explain: bool = True) -> Verdict:
    """Judge one kernel on one case.

    Args:
        kernel: op, name, contract, device, fn and why_not, as @moeracle.kernel makes.
        case: what to build.
        device: where to run; None takes the kernel's.
        explain: on a failure, also look which contract or tolerance would have let it pass.
    Returns:
        Verdict; whatever the kernel does, except killing the process, ends as one.
    Raises:
        ValueError: the device is not there, or the case cannot be built.
    """
    start = time.perf_counter()
    verdict = Verdict(case.op, str(case), kernel.name, kernel.contract.name)
    reason = kernel.why_not(case)
    if reason is not None:
        verdict.status, verdict.reason = "skipped", reason
        return verdict
    problem = case.build(device or kernel.device)
    rules = kernel.contract_for(case)
    verdict = _run_and_judge(kernel, problem, rules, verdict, explain)
    verdict.kernel, verdict.contract = kernel.name, rules.name
    verdict.seconds = time.perf_counter() - start
    return verdict


def _run_and_judge(kernel: KernelLike, problem: Problem, rules: Contract, verdict: Verdict, explain: bool) -> Verdict:
    guarded, case = Guarded(problem.args), problem.case
    outputs = []
    for run in range(RUNS):
        try:
            output = call(kernel, guarded.args, run, case)
        except (Exception, SystemExit) as error:  # whatever a user's kernel raises is a finding, not our crash
            return failed(verdict, "call", "", f"raised {one_line(error)}")
        outputs.append(_copied(output) if run + 1 < RUNS else output)  # a kernel may reuse its output's memory
        changed = guarded.written()
        if changed:
            return failed(verdict, "inputs", "", f"wrote into its input {changed}; inputs must be unchanged")
    first, second = outputs
    verdict = judge(problem, first, rules, explain=explain)
    if verdict.tier != "shape":
        verdict.bits = {name: digest(t) for name, t in _tensors(first, case.op).items() if isinstance(t, torch.Tensor)}
    if verdict.tier in ("shape", "nonfinite"):  # NaN that nobody wrote is better described by where it shows
        return verdict
    difference = _difference(problem, first, second)
    if difference and (rules.deterministic or not difference[0]):
        stage, *lines = difference
        if stage:
            lines += [_which_is_legal(verdict, judge(problem, second, rules, explain=False))]
        verdict = failed(verdict, "determinism", stage, *lines)
        verdict.maps = _difference_maps(problem, first, second, stage)
        if explain and stage:
            tell_difference(verdict, problem, _tensors(first, case.op), _tensors(second, case.op), rules)
    elif difference and verdict.ok:
        verdict = judge(problem, second, rules, explain=explain)
    return verdict


def call(
    kernel: KernelLike, args: dict[str, Any], run: int, case: Case | None = None, poison: float | None = None
) -> Any:
    """Call the kernel on its arguments, fresh memory poisoned for this run or with a value, and wait for it.

    Raises:
        KeyboardInterrupt: whoever waited gave up; its message says what for: only there a hanging kernel is reported.
    """
    try:
        with poisoned(run, poison), switched(current()):  # what a kernel switches in torch ends with its call
            output = kernel.fn(*args.values())
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except TypeError as error:
        complaint = wrong_signature(kernel)
        if complaint:
            raise TypeError(complaint) from error
        raise
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{kernel.name} had not returned from {case or 'a probe'}") from interrupt
    return output


def wrong_signature(kernel: KernelLike) -> str:
    """Say in one line that a kernel cannot take its op's arguments, and which they are; "" where it can, or may."""
    op = OPS[kernel.op]
    try:
        inspect.signature(kernel.fn).bind(*op.arguments, *([op.extra] if op.extra and takes_extra(kernel) else []))
    except TypeError:
        takes = f"{kernel.name}{inspect.signature(kernel.fn)}"
        return (
            f"{takes} cannot be called with the {len(op.arguments)} arguments of {op.name}; "
            f"must be {op.signature(kernel.name)} (moeracle op {op.name} explains each)"
        )
    except ValueError:  # a builtin function shows no signature
        return ""
    return ""


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


def one_line(error: BaseException) -> str:
    """Return "Type: message (file:line)" of an exception, on one line; the place is the kernel's, not torch's or ours.

    Where the kernel was not even entered (too few parameters, say), there is no place.
    """
    text = " ".join(str(error).split()) or "no message"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_KERNEL)]
    where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {text[:300]}{where}"
