"""From a verdict to a pytest outcome: skipped with the reason, or failed with the verdict's own text."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.common.verdict import Verdict
from moeracle.properties.hunt.budget import TimeBudget
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.hunt.hunt import not_judged
from moeracle.properties.hunt.search import Run
from moeracle.properties.hunt.shard import Shard
from moeracle.properties.trial.trial import run_trial

JUDGED = "moeracle_judged"
BROKEN = "moeracle_broken"  # the kernel that a failed test is about, and how it failed
LEFT = "moeracle_left"  # what a test did not judge because the time was over


Prepare = Callable[[KernelLike], "tuple[KernelLike, Run | None]"]


class Requested(NamedTuple):
    """What a session asks of every kernel beside its profile, as the options of `moeracle check` of these names do.

    Args:
        cases: judged in place of all others, if there are any.
        after: run before those.
        shapes: returns a kernel's cases of given shapes, which are judged too; None: no shapes were given.
        require: sizes that must have been judged, "T>=4096".
        max_skipped: the largest share of cases that may be skipped; None: any.
        shard: the part of all cases that is judged.
        budget: the time that the session may take; None: any.
        again: cases that failed once, judged before a kernel's hunt.
    """

    cases: tuple[Case, ...] = ()
    after: tuple[Case, ...] = ()
    shapes: Callable[[KernelLike], list[Case]] | None = None
    require: tuple[str, ...] = ()
    max_skipped: float | None = None
    shard: Shard = Shard()
    budget: TimeBudget | None = None
    again: tuple[Case, ...] = ()


@dataclass
class Known:
    """A failure of a kernel that is known.

    Args:
        expired: why the entry does not hold any more, or "".
        quarantine: why the kernel is not run, or "".
        settle: returns what a result is beside the entry: the fields of JSON, `wrong` among them, and `text`.
        said: what it returned.
    """

    expired: str
    quarantine: str
    settle: Callable[[HuntResult], dict[str, Any]]
    said: dict[str, Any] | None = None


class Subject:
    """A kernel, the TARGET text that a replay line names, and how it is judged: as `moeracle check` judges it.

    Args:
        kernel: as it was declared.
        target: the text.
        prepare: returns the kernel under the contract that it is judged by, and how one case is run; asked once.
        requested: what the session asks beside.
    Attributes:
        found: what this process found, test by test.
        known: what --moeracle-known says of the kernel, or None.
    """

    def __init__(
        self, kernel: KernelLike, target: str, prepare: Prepare | None = None, requested: Requested | None = None
    ) -> None:
        self.kernel, self.target, self.prepare, self.requested = kernel, target, prepare, requested or Requested()
        self.found: list[HuntResult] = []
        self.known: Known | None = None
        self._legal: dict[str, Verdict] = {}

    @property
    def name(self) -> str:
        """op.kernel."""
        return f"{self.kernel.op}.{self.kernel.name}"

    @functools.cached_property
    def judged(self) -> tuple[KernelLike, Run | None]:
        """The kernel with its contract, which is inferred where none was declared, and how one case is run."""
        return (self.kernel, None) if self.prepare is None else self.prepare(self.kernel)

    def run(self, kernel: KernelLike, case: Case, **how: Any) -> Verdict:
        """Judge one case; one that this process has found legal is not run again, by the hunt after the fixed cases."""
        if str(case) not in self._legal:
            verdict = (self.judged[1] or run_trial)(kernel, case, **how)
            if not verdict.ok:
                return verdict
            self._legal[str(case)] = verdict
        return self._legal[str(case)]

    def keep(self, *verdicts: Verdict) -> None:
        """Keep the verdicts of a test, for the session's reports."""
        result = not_judged(self.judged[0])
        result.verdicts = list(verdicts)
        result.failures = [verdict for verdict in verdicts if verdict.status == "illegal"]
        result.seconds = sum(verdict.seconds for verdict in verdicts)
        self.found.append(result)


def settle(request: pytest.FixtureRequest, verdict: Verdict, subject: Subject) -> None:
    """Count what was judged, then skip or fail as the verdict says; legal passes."""
    subject.keep(verdict)
    if verdict.status in ("skipped", "vacuous"):
        pytest.skip(verdict.reason or verdict.status)
    count(request, verdict.judged)
    if verdict.status == "illegal":
        fail(request, verdict, subject)


def count(request: pytest.FixtureRequest, elements: int) -> None:
    """Remember how many elements a test judged; properties travel from xdist's workers to its controller."""
    request.node.user_properties.append((JUDGED, elements))


def left(item: Any, what: str, subject: Subject) -> None:
    """Skip a test of which something was not judged because the time was over: it is no pass.

    Args:
        item: pytest's.
        what: in words and counts.
        subject: whose test it is.
    """
    item.user_properties.append((LEFT, f"{subject.name}|{what}"))
    budget = subject.requested.budget
    pytest.skip(f"--moeracle-time-budget: {budget.seconds if budget else 0:g} s are over; not judged: {what}")


def fail(request: pytest.FixtureRequest, verdict: Verdict, subject: Subject) -> None:
    """Fail the test with the verdict's text and nothing else: a traceback of ours would not help."""
    how = f"tier={verdict.tier} stage={verdict.stage}".removesuffix(" stage=")
    request.node.user_properties.append((BROKEN, f"[{verdict.op}] {subject.kernel.name} of {subject.target}|{how}"))
    target, _, device = subject.target.partition(" --device ")
    text = verdict.text(target)
    pytest.fail(f"{text} --device {device}" if device else text, pytrace=False)
