"""One fault, planted and hunted: which tier sees it, after how many examples, and what published rules say."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..cases.case import Case
from ..common.verdict import Verdict
from ..diagnose import FEW
from ..faults import find_fault
from ..faults.base import Fault
from ..hunt.hunt import hunt
from ..hunt.must_run import must_run
from ..simulate import SimulatedKernel
from ..trial.trial import Known, run_trial
from .published_rules import RULES, compared, reference_output, rules_that_see

__all__ = ["FaultRun", "hunt_fault"]

DIAGNOSED = ("bits", "interval", "nonfinite", "determinism")  # the tiers whose failures are diagnosed
SEEDS = (0, 1, 2, 3, 4)
NAMED_SEEDS = 2  # with the first of which a fault's name is asked for, too: simulating all others takes a second
SEED_STEP = 1000  # between the seeds of the fixed cases
# How a fault is named on the case that found it: as itself; together with others that have the same output, to the last
# bit; with too few wrong elements to tell by; not at all, since what saw it compares answers or looks at inputs; or
# wrongly: as another, or as none of the known. The last two alone are mistakes.
NAMED = ("itself", "shared", "few", "untold", "none", "another")
_KNOWN: Known = {}  # faults of one op are hunted on the same cases
DRAWN = 20  # cases drawn after the fixed ones saw nothing


@dataclass
class FaultRun:
    """One fault planted in one op and hunted with one seed: which tier saw it, after how many examples and seconds.

    Args:
        seed: of the run.
        seen: whether anything saw the fault.
        tier: which check saw it.
        stage: where it was seen.
        case: the text of the case on which it was seen.
        examples: cases that were run until then.
        seconds: how long that took.
        named: how the diagnosis of that case names the fault, one of NAMED; "" where it was not asked.
        name: the id that was named, or "".
    """

    seed: int
    seen: bool
    tier: str
    stage: str
    case: str
    examples: int
    seconds: float
    named: str = ""
    name: str = ""


@dataclass
class Planted:
    """One fault in one op under one contract; `rules` counts the seeds in which each published rule saw it too."""

    id: str
    op: str
    contract: str
    runs: list[FaultRun] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict)

    @property
    def seen(self) -> bool:
        """Seen with every seed."""
        return all(run.seen for run in self.runs)

    @property
    def comparable(self) -> bool:
        """Whether the op's result holds a float that a tolerance could be put on."""
        return bool(self.rules)

    def seen_by(self, rule: str) -> bool:
        """Whether a published rule saw the fault with every seed."""
        return self.rules.get(rule, 0) == len(self.runs)


def plant_and_hunt(fault: Fault | str, op: str, seeds: Sequence[int] = SEEDS) -> Planted:
    """Hunt one fault, or the one of an id, in one op with each seed, and ask the published rules about the outputs."""
    fault = find_fault(fault) if isinstance(fault, str) else fault
    planted = Planted(fault.id, op, fault.rules(op).name)
    for place, seed in enumerate(seeds):
        run, refused = hunt_fault(fault.kernel(op), seed)
        if place < NAMED_SEEDS:
            run.named, run.name = named_as(fault, op, run)
        planted.runs.append(run)
        if refused is not None:
            for rule in RULES:
                planted.rules[rule] = planted.rules.get(rule, 0) + (rule in refused)
    return planted


def hunt_fault(kernel: SimulatedKernel, seed: int) -> tuple[FaultRun, set[str] | None]:
    """Run a kernel on the fixed cases with this seed, then on drawn cases and laws, until something sees a fault.

    Args:
        kernel: with a fault planted in it.
        seed: of the fixed and of the drawn cases.
    Returns:
        The run, and the published rules that refused any of the outputs that were looked at (None: nothing to compare).
    """
    recorded: list[Any] = []

    @functools.wraps(kernel.fn)  # which keeps its parameters
    def fn(*args: Any) -> Any:
        output = kernel.fn(*args)
        recorded.append(output)
        return output

    started = time.perf_counter()
    cases = [case.replace(seed=case.seed + SEED_STEP * seed) for case in must_run(kernel)]
    verdicts: list[tuple[Case, Any]] = []
    seen: Verdict | None = None
    for case in cases:
        recorded.clear()
        verdict = run_trial(replace(kernel, fn=fn), case, explain=False, known=_KNOWN)
        verdicts.append((case, recorded[0] if recorded else None))
        if verdict.status == "illegal":
            seen = verdict
            break
    examples = len(verdicts)
    if seen is None:
        result = hunt(kernel, profile="smoke", examples=DRAWN, seed=seed, fixed=False)
        seen, examples = next(iter(result.failures), None), examples + len(result.verdicts)
    seconds = time.perf_counter() - started
    found = (True, seen.tier, seen.stage, seen.case) if seen else (False, "", "", "")
    return FaultRun(seed, *found, examples, seconds), _refused(verdicts)


def named_as(fault: Fault, op: str, run: FaultRun) -> tuple[str, str]:
    """Return how a fault is named, one of NAMED, and the id that is named, on the case of a run that saw it."""
    if not run.seen:
        return "", ""
    again = run_trial(fault.kernel(op), Case.parse(run.case))
    found = again.diagnosis
    if found is None:  # of a history, too, there is nothing to be asked again
        return ("none" if again.tier in DIAGNOSED else "untold"), ""
    if found["of"] < FEW:
        return "few", found["id"]
    if not found["sure"]:
        return "none", found["id"]
    if fault.id == found["id"]:
        return ("shared" if found["equals"] else "itself"), found["id"]
    return ("shared" if fault.id in found["equals"] else "another"), found["id"]


def _refused(outputs: list[tuple[Case, Any]]) -> set[str] | None:
    refused: set[str] | None = None
    for case, output in outputs:
        want = compared(case.op, reference_output(case.build()))
        got = compared(case.op, output) if want is not None and output is not None else None
        if got is None or want is None:
            continue
        refused = refused or set()
        # A result of another shape or dtype fails any comparison that does not broadcast.
        refused |= rules_that_see(got, want) if got.shape == want.shape else set(RULES)
    return refused
