"""`bisect_history`: which commit between a good and a bad revision first gave wrong bits.

`git bisect` decides which commit is asked next; history_runner.py judges each and remembers what it found, so that an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.processes import interruptible
from .history_git import Commit, Found, Repository, read_result
from .history_runner import harness_in, step
from .history_state import BAD, GOOD, SKIP, Judged, Memory, Plan

__all__ = ["HistoryReport", "bisect_history"]

OnJudged = Callable[[Commit, Judged, bool], None]


class EndsError(ValueError):
    """GOOD is not good, or BAD is not bad: there is nothing to search between them."""


@dataclass
class HistoryReport:
    """What `moeracle bisect git` found.

    Args:
        plan: what was asked.
        commits: from GOOD to BAD, oldest first.
        judged: commit to what it turned out to be, of those that were asked about.
        found: git's answer.
        diff_stat: of the first bad commit, in lines.
        stages: the report of `bisect stages` on the first bad commit, as plain values; None where it failed.
        remembered: how many of the judgements came from an earlier run.
        notes: what a reader must know, in lines.
        seconds: wall time of this run.
    """

    plan: Plan
    commits: list[Commit]
    judged: dict[str, Judged]
    found: Found = field(default_factory=Found)
    diff_stat: list[str] = field(default_factory=list)
    stages: dict[str, Any] | None = None
    remembered: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def first_bad(self) -> Commit | None:
        """The first bad commit, or None where skipped ones hide it."""
        return next((c for c in self.commits if c.id == self.found.first_bad), None)

    def of_kind(self, *kinds: str) -> list[Commit]:
        """The commits that were skipped for one of these reasons."""
        return [c for c in self.commits if c.id in self.judged and self.judged[c.id].kind in kinds]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        first = self.first_bad
        track = [
            {**vars(c), "position": i, **self.judged[c.id].as_dict()}
            for i, c in enumerate(self.commits)
            if c.id in self.judged
        ]
        return {
            "plan": vars(self.plan), "commits": len(self.commits) - 1, "judged": track,
            "first_bad": None if first is None else vars(first), "suspects": list(self.found.suspects),
            "diff_stat": self.diff_stat, "stages": self.stages, "remembered": self.remembered, "notes": self.notes,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip


def bisect_history(
    repository: Repository,
    plan: Plan,
    *,
    harness: Path | None = None,
    forget: bool = False,
    on_judged: OnJudged | None = None,
    on_waiting: Callable[[], object] = int,
    examine: Callable[[Path], dict[str, Any] | None] | None = None,
) -> HistoryReport:
    """Find the first bad commit.

    Args:
        repository: where the revisions are.
        plan: what to search; an equal plan's earlier judgements are used again.
        harness: a TARGET file that the revisions do not hold: it is copied into the worktree for each of them.
        forget: judge everything anew.
        on_judged: called for each commit as it is judged, and whether that was remembered.
        on_waiting: called if another run of the same plan is at work and must be waited for.
        examine: called in the worktree at the first bad commit, built; its result becomes `stages`.
    Returns:
        HistoryReport.
    Raises:
        EndsError: GOOD is not good or BAD is not bad, and why.
        ValueError: git failed.
    """
    started = time.monotonic()
    repository.check_order(plan.good, plan.bad)
    commits = repository.between(plan.good, plan.bad)
    memory = Memory.of(repository.common, plan)
    known: set[str] = set()
    report = HistoryReport(plan, commits, {})
    by_id = {c.id: c for c in commits}

    def news() -> None:
        for id, judged in memory.all().items():
            if id not in report.judged and id in by_id:
                report.judged[id] = judged
                if on_judged:
                    on_judged(by_id[id], judged, id in known)

    with interruptible(), memory.opened(plan, forget, on_waiting), repository.worktree(plan.good) as tree:
        known |= set(memory.all())
        report.remembered = len(known)
        for commit, want in ((plan.good, GOOD), (plan.bad, BAD)):
            repository.check_out(tree, commit)
            step(memory.folder, tree, commit, harness)
            news()
            _check_end(report.judged[commit], by_id[commit], want)
        report.found = _git_bisect(repository, tree, memory, plan, harness, news)
        news()
        if report.found.first_bad:
            report.diff_stat = repository.diff_stat(report.found.first_bad)
            if examine is not None:
                repository.check_out(tree, report.found.first_bad)
                with harness_in(tree, plan.target, harness):
                    report.stages = examine(tree)
    _remark(report)
    report.seconds = time.monotonic() - started
    return report


def _check_end(judged: Judged, commit: Commit, want: str) -> None:
    if judged.verdict == want:
        return
    option, must = ("--good", "must be legal") if want == GOOD else ("--bad", "must be illegal")
    said = {GOOD: "is legal", BAD: f"is illegal: {judged.reason}", SKIP: f"cannot be judged: {judged.reason}"}
    raise EndsError(f"{option}: {commit.short} {said[judged.verdict]}; {must} on this case")


def _git_bisect(
    repository: Repository, tree: Path, memory: Memory, plan: Plan, harness: Path | None, news: Callable[[], None]
) -> Found:
    """Judge one commit after another in the worktree, as `git bisect` chooses them; return what it says at last."""
    repository.git("checkout", "--quiet", "--force", "--detach", plan.bad, cwd=tree)
    found = read_result(repository.bisect("start", plan.bad, plan.good, cwd=tree))
    while not found.first_bad and not found.suspects:
        judged = step(memory.folder, tree, repository.git("rev-parse", "HEAD", cwd=tree), harness)
        news()
        found = read_result(repository.bisect(judged.verdict, cwd=tree))
    return found


def _remark(report: HistoryReport) -> None:
    flaky = report.of_kind("flaky")
    for commit in flaky:
        report.notes.append(f"{commit.short} is flaky: {report.judged[commit.id].reason}; it was passed over")
    unbuilt = report.of_kind("build", "build timeout")
    if unbuilt:
        report.notes.append(f"{len(unbuilt)} of {len(report.judged)} revisions asked about do not build; passed over")
    for commit in report.of_kind("target", "unjudged"):
        report.notes.append(
            f"{commit.short} could not be judged: {report.judged[commit.id].reason}; it was passed over"
        )
    first = report.first_bad
    if first is not None:
        position = [c.id for c in report.commits].index(first.id)
        before = report.judged.get(report.commits[position - 1].id)
        if before is not None and before.verdict == SKIP:
            report.notes.append(f"the commit before it, {before.commit[:10]}, was passed over ({before.kind})")
