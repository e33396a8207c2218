"""Does a failure come back in a fresh process? If not, what a kernel kept between calls has a part in it: find which.

The replay line of a failure must show it again. A failure that needs an earlier call is replayed with that call before
it (`--after CASE`); one that comes and goes says in how many tries it came.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cases.case import Case
from ..cases.cost import operations
from ..cases.kernel_like import KernelLike
from ..common.endings import ENDINGS
from ..common.verdict import Verdict
from ..trial.trial import differs_elsewhere
from .effort import HuntResult
from .hunt import judge_cases
from .search import Run

STEADY = 2  # further tries of two runs that differed: what comes and goes must say so
TRIES = 6  # of a failure that no history brings back
LARGE = 1 << 28  # operations (cases/cost.py) of a case that is put to another process
MOST_AFTER = 4  # cases that a replay line names; a longer history is the hunt itself
MOST_HISTORY = 120  # calls that are made again to find the one that matters


def confirm(kernel: KernelLike, result: HuntResult, run: Run | None = None, given: Sequence[Case] = ()) -> None:
    """Ask a fresh process for each failure of a hunt, and say what its replay needs where it needs more than its case.

    Without failures, one case is put to a fresh process, whose bits must be the same.

    Nothing is done for a kernel that runs in this process, or in one that others share: it cannot be made fresh.

    Args:
        kernel: as it was judged.
        result: of the hunt; its failures are completed.
        run: how one case is run; None: run_trial.
        given: cases that were run before the first, as the user asked.
    """
    if not result.failures:
        return _ask_another_process(kernel, result)
    seen = [verdict.case for verdict in result.verdicts]
    for failure in result.failures:
        if failure.tier in (*ENDINGS, "statistics") or not _renew(kernel):
            continue
        case = Case.parse(failure.case)
        failure.after = [str(before) for before in given]
        again = _fails(kernel, case, given, run)
        alike = again is not None and _kind(again) == _kind(failure)
        if alike and failure.tier != "determinism":
            continue
        if alike and all(_fails(kernel, case, given, run) for _ in range(STEADY)):
            continue
        first = seen.index(failure.case) if failure.case in seen else len(seen)
        history = [*given, *(Case.parse(text) for text in dict.fromkeys(seen[:first]))][-MOST_HISTORY:]
        needed = None if alike else _needed(kernel, case, history, run, failure)
        if needed is None:
            came = sum(_fails(kernel, case, history, run) is not None for _ in range(TRIES))
            why = "a race, or the order of calls"
            if again is not None and not alike:
                why += f"; called first, it failed as tier={again.tier} stage={again.stage}"
            failure.summary.append(f"it came back in {came} of {TRIES} tries in fresh processes: {why}")
        elif len(needed) <= MOST_AFTER:
            failure.after = [str(before) for before in needed]
            failure.summary.append(f"{_when_first(again)}: it keeps something between calls")
        else:
            failure.summary.append(
                f"{_when_first(again)}: it needs {len(needed)} calls before it, as a whole run makes them"
            )


def _ask_another_process(kernel: KernelLike, result: HuntResult) -> None:
    """Put one legal case to a fresh process: whether its bits are those of the process that has judged all others."""
    legal = [verdict for verdict in result.judged if verdict.ok]
    small = [verdict for verdict in legal if operations(Case.parse(verdict.case)) < LARGE]
    if not small or not getattr(kernel.fn, "alone", False) or not kernel.contract.deterministic:
        return
    case = Case.parse(max(small, key=lambda verdict: verdict.judged).case)
    failure = differs_elsewhere(kernel, case, kernel.fn.renew)  # type: ignore[attr-defined]
    if failure is not None:
        result.verdicts[:] = [failure if verdict.case == failure.case else verdict for verdict in result.verdicts]
        result.failures.append(failure)


def _renew(kernel: KernelLike) -> bool:
    """Let the next call be a fresh process's; False where that cannot be."""
    renew = getattr(kernel.fn, "renew", None)
    return renew is not None and bool(renew())


def _kind(failure: Verdict) -> tuple[str, str]:
    return failure.tier, failure.stage


def _when_first(again: Verdict | None) -> str:
    """Say what a kernel does with a failing case that is the first it is called with."""
    if again is None:
        return "right when it is called first"
    return f"wrong otherwise when it is called first (tier={again.tier} stage={again.stage})"


def _fails(kernel: KernelLike, case: Case, before: Sequence[Case], run: Run | None) -> Verdict | None:
    """Return how a case fails in a fresh process after others, or None."""
    _renew(kernel)
    judge_cases(kernel, before, run=run, laws=False)
    return next(iter(judge_cases(kernel, [case], run=run).failures), None)


def _needed(
    kernel: KernelLike, case: Case, history: list[Case], run: Run | None, failure: Verdict
) -> list[Case] | None:
    """Return the calls of a history that bring a failure back: one, if one does; None if not even all of them do."""

    def comes_back(before: list[Case]) -> bool:
        again = _fails(kernel, case, before, run)
        return again is not None and _kind(again) == _kind(failure)

    if not history or not comes_back(history):
        return None
    enough, too_few = len(history), 0  # of the last calls
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if comes_back(history[-middle:]):
            enough = middle
        else:
            too_few = middle
    last = history[-enough:]
    return last[:1] if enough > 1 and comes_back(last[:1]) else last
