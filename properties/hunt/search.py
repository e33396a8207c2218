"""The three ways to look for a counterexample: given cases, cases that Hypothesis draws, and laws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..cases.case import Case
from ..cases.cost import Allowance
from ..cases.kernel_like import KernelLike, takes_extra, words_read
from ..cases.optable import PLACEMENTS, zero_forms
from ..cases.record import record_of
from ..common.endings import ENDINGS
from ..common.verdict import Verdict
from .effort import HuntResult
from .shard import Shard
from .shrink import shrink

MOST_ENDINGS = 2  # after which a kernel is given up
FEW = 16  # illegal elements that a fault may predict by chance: bf16 has 8 bits, and there are a hundred faults
LOOKS = "looks like: "
Run = Callable[..., Verdict]
Progress = Callable[[str, int, int], None]
Spent = Callable[[], bool]


class _GivenUp(BaseException):  # not an Exception: Hypothesis must not shrink it
    pass


class _Found(Exception):  # noqa: N818  (not an error: the hunt's way out of Hypothesis)
    pass


class Judge:
    """Judges each case once: a kernel that answers differently each time must not confuse the shrinker.

    Args:
        kernel: the kernel under judgement.
        run: `run_trial(kernel, case, device=...)` or a stand-in.
        shrink_cost: what unseen cases may cost after the first failure, in smallest cases.
        shard: the part of all cases that is looked at; what fails is shrunk through any.
        spent: says whether the time is over; asked before each case.
    """

    def __init__(
        self,
        kernel: KernelLike,
        run: Run,
        result: HuntResult,
        shrink_cost: int,
        shard: Shard | None = None,
        spent: Spent | None = None,
    ) -> None:
        self.kernel, self.run, self.result, self.shrink_cost = kernel, run, result, shrink_cost
        self.shard, self.spent = shard or Shard(), spent
        self.memo: dict[str, Verdict | None] = {}
        self.allowance: Allowance | None = None
        self.kind: tuple[str, ...] | None = None
        self.first: Case | None = None  # the case that is being shrunk
        self.ended: list[Verdict] = []  # of cases that ended the kernel's process: they are not shrunk

    @property
    def given_up(self) -> bool:
        """Whether the kernel's process ended so often that it is not run any more."""
        return len(self.ended) >= MOST_ENDINGS

    def stops(self, phase: str, rest: int) -> bool:
        """Say whether no further case is judged: the kernel is given up, or the time is over, which is noted.

        Args:
            phase: what is being judged.
            rest: how many cases of it are left. What failed already is shrunk, whatever time it is.
        """
        if rest and self.kind is None and self.spent is not None and self.spent():
            self.result.left[phase] += rest
            return True
        return self.given_up

    def __call__(self, case: Case) -> Verdict | None:
        """Return the verdict on a case, or None if the kernel does not take it or shrinking has cost enough."""
        text = str(case)
        if text not in self.memo:
            reason = self.kernel.why_not(case)
            if reason is None and self.allowance is not None and not self.allowance.covers(case):
                return None
            self.memo[text] = None if reason else self._judged(case)
            if reason and self.kind is None:
                self.result.skipped[reason] += 1
        return self.memo[text]

    def _judged(self, case: Case) -> Verdict:
        verdict = self.run(self.kernel, case, device=self.kernel.device, explain=False)
        self.result.verdicts.append(verdict)
        if verdict.tier in ENDINGS:
            self.ended.append(verdict)
        if verdict.status in ("skipped", "vacuous"):
            self.result.skipped[verdict.reason or verdict.status] += 1
        return verdict

    def same_failure(self, case: Case) -> bool:
        """Say whether the case fails as the first failure did: shrinking must not slide from one bug to another."""
        verdict = self(case)
        if verdict is None or verdict.status != "illegal" or verdict.tier in ENDINGS:
            return False
        kind = (verdict.tier, verdict.stage)
        if self.kind is None:
            self.kind, self.allowance, self.first = kind, Allowance(self.shrink_cost), case
        return kind == self.kind

    def explained(self, case: Case) -> Verdict:
        """Return the verdict of a case that failed, with its explanation: too slow for every step of shrinking."""
        seen = self.memo[str(case)]
        assert seen is not None
        again = self.run(self.kernel, case, device=self.kernel.device, explain=True)
        # A kernel that fails only sometimes keeps the verdict that was seen.
        same = (again.status, again.tier, again.stage) == (seen.status, seen.tier, seen.stage)
        verdict = again if same else seen
        if not same:
            seen.summary.append(f"{LOOKS}not told: when this case was judged again, it did not fail in this way")
        self.result.verdicts[:] = [verdict if v is seen else v for v in self.result.verdicts]
        return self._confirmed(verdict, case)

    def _confirmed(self, verdict: Verdict, case: Case) -> Verdict:
        """Take back a fault that explains the few elements of a shrunk case, but not the case that it came from."""
        few = verdict.diagnosis
        if not few or not few["sure"] or verdict.illegal >= FEW or self.first in (None, case):
            return verdict
        whole = self.run(self.kernel, self.first, device=self.kernel.device, explain=True)
        said = next((line for line in whole.summary if line.startswith(LOOKS)), f"{LOOKS}not told")
        if whole.illegal <= verdict.illegal or said.startswith(f"{LOOKS}not "):
            return verdict
        many = whole.diagnosis or {"sure": False}
        if many["sure"]:
            if many["id"] == few["id"]:
                return verdict
            said += " where it was found"
        verdict.diagnosis = whole.diagnosis
        verdict.summary = [said if line.startswith(LOOKS) else line for line in verdict.summary]
        return verdict


def run_fixed(
    judge: Judge, cases: Iterable[Case], progress: Progress | None = None, phase: str = "fixed cases"
) -> Verdict | None:
    """Judge cases in order; return the first failure, shrunk, or None."""
    listed = [case for case in cases if judge.shard.has(case)]
    for done, case in enumerate(listed):
        if judge.stops(phase, len(listed) - done):
            return None
        if judge.same_failure(case):
            return judge.explained(shrink(case, judge.same_failure))
        if progress:
            progress(phase, done + 1, len(listed))
    return None


def search(judge: Judge, strategy: Any, examples: int, seed: int, progress: Progress | None = None) -> Verdict | None:
    """Let Hypothesis draw `examples` cases; return the first failure, shrunk by Hypothesis, or None."""
    from hypothesis.errors import Flaky, Unsatisfiable

    from .strategies import each_drawn

    drawn = 0

    def hunted(case: Case) -> None:
        nonlocal drawn
        if judge.stops("drawn cases", examples - drawn):
            raise _GivenUp
        shrinking = judge.kind is not None
        if not shrinking and not judge.shard.has(case):
            drawn += 1  # another shard judges it
            return
        if judge.same_failure(case):
            raise _Found(str(case))
        drawn += 0 if shrinking else 1
        if progress:
            progress("shrinking" if shrinking else "drawn cases", drawn, examples)

    try:
        if not judge.stops("drawn cases", examples):
            each_drawn(strategy, examples, seed, hunted, shrink=True)
    except _GivenUp:
        return None
    except _Found as found:
        return judge.explained(Case.parse(str(found)))
    except Unsatisfiable:
        judge.result.skipped["supports() refuses every case drawn"] += 1
    except Flaky:
        # Cannot happen while verdicts are remembered, but a failure once seen must never be lost to it.
        seen = [v.case for v in judge.result.verdicts if v.status == "illegal"]
        return judge.explained(Case.parse(min(seen, key=len))) if seen else None
    return None


def check_laws(judge: Judge, cases: Sequence[Case], progress: Progress | None = None) -> Verdict | None:
    """Put each law of the kernel's op to each case that it takes; return the first that is broken, shrunk, or None."""
    kernel = judge.kernel
    mine = [case for case in cases if judge.shard.has(case)]
    if judge.stops("laws", len(mine)):
        return None
    pairs = [(law, case) for case in mine if kernel.why_not(case) is None for law in laws_of(kernel.op)]
    for done, (law, case) in enumerate(pairs):
        if judge.stops("laws", len(pairs) - done):
            return None
        verdict = law(kernel, case)
        if verdict is not None and verdict.tier in ENDINGS:
            judge.ended.append(verdict)
            judge.result.verdicts.append(verdict)
            continue
        if verdict is not None and verdict.status == "illegal":
            verdict = _smallest_breach(judge, law, case, verdict)
            verdict.summary.append(f"{LOOKS}not told: a law compares answers, and no known fault is told from those")
            judge.result.verdicts.append(verdict)
            return verdict
        if verdict is not None and verdict.ok:
            judge.result.law_checks[law.__name__] += 1
        if progress:
            progress("laws", done + 1, len(pairs))
    return None


def _smallest_breach(judge: Judge, law: Any, case: Case, verdict: Verdict) -> Verdict:
    allowance = Allowance(judge.shrink_cost)
    breaches = {str(case): verdict}

    def breaks(smaller: Case) -> bool:
        if judge.kernel.why_not(smaller) is not None or not allowance.covers(smaller):
            return False
        found = law(judge.kernel, smaller)
        if found is not None and found.status == "illegal":
            breaches[str(smaller)] = found
        return str(smaller) in breaches

    return breaches[str(shrink(case, breaks))]


def laws_of(op: str) -> Sequence[Any]:
    """Return the laws that every kernel for `op` must obey."""
    return record_of(op).laws


def drawn_cases(kernel: KernelLike, profile: str) -> Any:
    """Return the Hypothesis strategy of cases that a kernel takes."""
    from .strategies import cases

    return cases(
        kernel.op,
        layouts=(kernel.layout,) if kernel.layout else tuple(zero_forms(words_read(kernel))),
        zeros=kernel.zeros,
        dtypes=kernel.dtypes,
        supports=lambda case: kernel.why_not(case) is None,
        profile=profile,
        without=() if takes_extra(kernel) else PLACEMENTS,
        weights=words_read(kernel),
    )
