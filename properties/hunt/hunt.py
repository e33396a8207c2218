"""Hunting for a counterexample: fixed cases first, then Hypothesis, then laws; deterministic for a given seed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from moeracle.ref.errors import require

from ..cases.case import Case
from ..cases.kernel_like import KernelLike
from ..common.endings import Ended, Interrupted
from ..common.verdict import Verdict, failed
from .effort import HuntResult, profile_named
from .must_run import must_run, spread
from .pooled import check_pooled
from .search import MOST_ENDINGS, Judge, Progress, Run, Spent, check_laws, drawn_cases, run_fixed, search
from .shard import Shard
from .tall import tall_cases

__all__ = ["CasesOfHunt", "hunt", "judge_cases", "not_judged"]


class CasesOfHunt(NamedTuple):
    """The cases of a hunt in place of a kernel's own: of one size, say.

    Args:
        fixed: judged first, in this order; the laws are put to some of them.
        drawn: a Hypothesis strategy of cases that the kernel takes.
    """

    fixed: Sequence[Case]
    drawn: Any


def not_judged(kernel: KernelLike, error: str = "") -> HuntResult:
    """Return the result of a kernel of which nothing was judged.

    Args:
        kernel: which.
        error: why, where judging failed.
    Returns:
        HuntResult, without a verdict.
    """
    result = _start(kernel, 0, 0)
    result.error = error
    return result


@contextmanager
def _settled(judge: Judge) -> Iterator[None]:
    """Add what ended the kernel's process to the failures, at the end, and at Ctrl-C hand on what was found."""
    result, started = judge.result, time.monotonic()
    try:
        yield
    except Ended as ended:  # of `supports`, say: whoever asked it did not judge
        verdict = Verdict(result.op, ended.case, result.kernel, result.contract)
        judge.ended.append(failed(verdict, ended.tier, "", *ended.lines))
        result.verdicts.append(verdict)
    except KeyboardInterrupt as stop:
        raise Interrupted(str(stop), result) from stop
    finally:
        result.failures[:0] = judge.ended[:MOST_ENDINGS]
        result.seconds = time.monotonic() - started


def _start(kernel: KernelLike, seed: int, examples: int) -> HuntResult:
    source = getattr(kernel, "source", "")
    return HuntResult(
        kernel.name, kernel.op, kernel.layout, kernel.contract.name, kernel.device, seed, examples, source=source
    )


def hunt(
    kernel: KernelLike,
    *,
    profile: str = "ci",
    examples: int | None = None,
    seed: int = 0,
    run: Run | None = None,
    fixed: bool = True,
    laws: bool = True,
    more: Sequence[Case] = (),
    again: Sequence[Case] = (),
    salt: int = 0,
    progress: Progress | None = None,
    cases: CasesOfHunt | None = None,
    shard: Shard | None = None,
    spent: Spent | None = None,
) -> HuntResult:
    """Look for a case that a kernel gets wrong: fixed cases, then drawn ones, then laws; stop at the first failure.

    Args:
        kernel: the kernel under judgement; it runs on its own device.
        profile: "smoke", "ci" or "nightly": how many cases, how large.
        examples: drawn cases, instead of the profile's number; 0 draws none.
        seed: the same seed draws the same cases.
        run: judges one case; `run_trial` unless given.
        more: further cases, judged after the fixed ones; those that the kernel declines are skipped.
        again: cases that failed once, judged before all others, with the laws; without those that the kernel declines.
        fixed, laws: whether to begin with the fixed cases, and to end with the laws.
        salt: added to the seeds of all cases, even, so that nobody knows their data beforehand.
        progress: called with a phase's name, cases done and cases in all.
        cases: judged in place of those that the kernel's declaration and the profile give.
        shard: the part of all these cases that is judged; statistics over all cases are of this part.
        spent: says whether the time is over: then nothing but shrinking begins, and `left` says what was not judged.
    Returns:
        The HuntResult; without failures, everything that was judged was legal.
    Raises:
        ValueError: an unknown profile, or a negative number of examples.
    """
    effort = profile_named(profile)
    count = effort.examples if examples is None else examples
    require(count >= 0, f"examples: got {count}, must be 0 or more")
    result = _start(kernel, seed, count)
    judge = Judge(kernel, run or _run_trial(), result, effort.shrink_cost, shard, spent)
    with _settled(judge):
        first = must_run(kernel) if cases is None else list(cases.fixed)
        first = [_salted(case, salt) for case in first]
        taken = [case for case in again if kernel.why_not(case) is None]
        failure = run_fixed(judge, taken, progress, "cases that failed once")
        if failure is None and laws and taken:
            failure = check_laws(judge, taken, progress)
        if failure is None and fixed:
            failure = run_fixed(judge, first, progress)
        if failure is None and more:
            failure = run_fixed(judge, [_salted(case, salt) for case in more], progress, "cases of given shapes")
        tall = [] if cases else tall_cases(kernel, profile, seed)[: count // 3]  # of the drawn cases' number
        if failure is None and tall:
            failure = run_fixed(judge, [_salted(case, salt) for case in tall], progress, "tall cases")
        if failure is None and count:
            strategy = drawn_cases(kernel, profile) if cases is None else cases.drawn
            strategy = strategy.map(partial(_salted, salt=salt)) if salt else strategy
            failure = search(judge, strategy, count - len(tall), seed, progress)
        failure = failure or check_pooled(judge)
        if failure is None and laws:
            failure = check_laws(judge, spread(first, effort.law_cases), progress)
        result.failures = [failure] if failure else []
    return result


def _salted(case: Case, salt: int) -> Case:
    return case.replace(seed=case.seed + salt) if salt else case


def judge_cases(
    kernel: KernelLike,
    cases: Sequence[Case],
    *,
    run: Run | None = None,
    laws: bool = True,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> HuntResult:
    """Judge exactly the given cases, all of them, without drawing or shrinking: first the bits, then the laws.

    Args:
        kernel: which.
        cases: what to judge, in this order.
        run: how one case is run; None: run_trial.
        laws: whether laws are put to a case whose bits are legal.
        progress: called with what is done, how many cases were judged, and how many there are.
        spent: as in `hunt`.
    Returns:
        HuntResult, whose failures are the illegal verdicts.
    """
    result = _start(kernel, 0, 0)
    judge = Judge(kernel, run or _run_trial(), result, 0, spent=spent)
    with _settled(judge):
        for done, case in enumerate(cases):
            if judge.stops("cases", len(cases) - done):
                break
            verdict = judge(case)
            # A law speaks where bounds are too wide, too.
            if laws and verdict is not None and verdict.status in ("legal", "vacuous"):
                verdict = check_laws(judge, [case])
            elif verdict is not None and verdict.status == "illegal" and verdict not in judge.ended:
                verdict = judge.explained(case)
            if verdict is not None and verdict.status == "illegal" and verdict not in judge.ended:
                result.failures.append(verdict)
            if progress:
                progress("cases", done + 1, len(cases))
    return result


def _run_trial() -> Run:
    from ..trial.trial import run_trial

    return run_trial
