"""Tiles of a user's kernel on one case: each judged in a process of its own first, then timed beside the defaults."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from moeracle.bench.judge import Keeping, complaint_when_timed
from moeracle.isolate.remote_bench import HeldElsewhere
from moeracle.kernels.bench.timing import Timer, Times, compare, ratios
from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.common.endings import Ended
from moeracle.properties.common.guard import same_bits
from moeracle.properties.common.verdict import Verdict, failed
from moeracle.properties.hunt.must_run import must_run, spread
from moeracle.properties.judge import judge
from moeracle.properties.trial.trial import run_trial
from moeracle.target.declaration import Kernel

SMALL = 6  # cases of the hunt that a tile is judged on beside the one that is timed
SPENT_ON = ("starting", "judging", "explaining", "timing")
LOOKS_LIKE = "looks like: "


def small_cases(kernel: Kernel, case: Case) -> list[Case]:
    """Return a few of the hunt's fixed cases, of the form that is timed: others would be compiled for nothing.

    Args:
        kernel: of which they are.
        case: that is timed.
    """
    form = (case.dtype, case.layout, case.zero)
    alike = [c for c in must_run(kernel) if (c.dtype, c.layout, c.zero) == form and kernel.why_not(c) is None]
    return spread(alike, SMALL)


@dataclass
class TileTuner:
    """Judges and times tiles, and counts the seconds of either.

    Args:
        timer: the clock of this process; a kernel's own process reads its own.
        rounds, seconds: of measuring each tile.
        spent: seconds by "starting" (processes, compiling, inputs), "judging", "explaining" (failures) and "timing".
        known: verdicts on outputs that were legal: another tile that stores the same bits is not judged again.
    """

    timer: Timer
    rounds: int = 15
    seconds: float = 0.05
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT_ON, 0.0))
    known: dict[Any, Verdict] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Which part of all that time judging took."""
        return self.spent["judging"] / max(sum(self.spent.values()), 1e-9)

    @contextmanager
    def counted(self, what: str) -> Iterator[None]:
        """Add what passes within to the seconds spent on `what`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.spent[what] += time.monotonic() - start

    def judged(
        self, kernel: Kernel, problems: Sequence[Problem], seen: list[Any]
    ) -> tuple[Verdict | None, HeldElsewhere | None]:
        """Judge one tile: on small cases as `check` does, then on the tensors that are timed.

        Args:
            kernel: with its tile.
            problems: those that are timed.
            seen: (problem, output) found legal under this kernel's contract; takes this tile's.
        Returns:
            The failure, or None; the problems in its process, where it is legal.
        """
        small, rules = small_cases(kernel, problems[0].case), kernel.contract.unscheduled
        try:
            with self.counted("starting"):  # the first call compiles
                kernel.fn.started()  # type: ignore[attr-defined]
                if small:
                    first = small[0].build(kernel.device)
                    kernel.fn.remote(first.args, 0, small[0], None)  # type: ignore[attr-defined]
            for case in small:
                with self.counted("judging"):
                    found = run_trial(kernel, case, explain=False, known=self.known)
                if found.status == "illegal":
                    with self.counted("explaining"):
                        again = run_trial(kernel, case)
                    return (again if again.status == "illegal" else found), None
            with self.counted("starting"):
                held = HeldElsewhere(kernel, problems)
                outputs = [held.output(problem) for problem in problems]
            for problem, output in zip(problems, outputs, strict=True):
                with self.counted("judging"):
                    same = any(of is problem and _same(output, other) for of, other in seen)
                    legal = same or judge(problem, output, rules, explain=False).status == "legal"  # not vacuous
                if not legal:
                    with self.counted("explaining"):
                        return replace(judge(problem, output, rules), kernel=kernel.name), None
                if not same:
                    seen.append((problem, output))
            return None, held
        except Ended as ended:
            verdict = Verdict(kernel.op, str(problems[0].case), kernel.name, kernel.contract.name)
            return failed(verdict, ended.tier, "", *ended.lines), None

    def timed(
        self, kernel: Kernel, held: HeldElsewhere, beside: HeldElsewhere | None
    ) -> tuple[dict[str, Any], Verdict | None]:
        """Time one legal tile, in turn with the defaults, and judge what it stored when it was timed.

        Args:
            kernel: with its tile.
            held: its problems.
            beside: those of the kernel with its defaults; None where it is illegal.
        Returns:
            {"us", "low", "high", "ratio"}: microseconds, and how many times as fast as the defaults, pair by pair; and
            the failure, or None.
        """
        keeping = Keeping(self.timer)
        sides = {"tile": held} | ({"defaults": beside} if beside is not None else {})
        try:
            with self.counted("timing"):
                times, _ = compare(keeping, sides, self.rounds, self.seconds)
            with self.counted("judging"):
                wrong = complaint_when_timed(kernel, held.problems[0], held, keeping.prepared[0])
        except Ended as ended:
            wrong, times = f"when it was timed: {ended.lines[0]}", {}
        if wrong:
            verdict = Verdict(kernel.op, str(held.problems[0].case), kernel.name, kernel.contract.name)
            return {}, failed(verdict, "call" if not times else "determinism", "", wrong)
        return figures(times["tile"], times.get("defaults")), None


def figures(tile: Times, defaults: Times | None) -> dict[str, Any]:
    """Return a tile's times as a row holds them; ratio is None where there are no defaults beside it."""
    ratio = None if defaults is None else round(ratios(tile, defaults).us, 4)
    return {"us": round(tile.us, 3), "low": round(tile.low, 3), "high": round(tile.high, 3), "ratio": ratio}


def fault_of(verdict: Verdict) -> str:
    """Return what a failure looks like, a known fault's name where there is one, or its first line."""
    known = [line.removeprefix(LOOKS_LIKE) for line in verdict.summary if line.startswith(LOOKS_LIKE)]
    if known and verdict.diagnosis and verdict.diagnosis.get("sure"):
        return known[0]
    return verdict.reason or next(iter(verdict.summary), verdict.tier)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    return same_bits(a, b)
