"""`bisect_stages`: from a failing case to one stage, the element, the region, the named fault, the smallest case.

Where the kernel stores its stages, each is judged from the kernel's own input to it, and the probes only say which part
of the failing stage it is. Where it stores nothing but the output, the probes do all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..cases.case import Case
from ..cases.cost import Allowance
from ..cases.kernel_like import KernelLike
from ..cases.record import record_of
from ..common.endings import ENDINGS
from ..common.verdict import Verdict
from ..hunt.effort import PROFILES
from ..hunt.history import confirm
from ..hunt.hunt import judge_cases
from ..hunt.shrink import shrink
from ..trial.trial import run_trial
from .families import Family
from .isolate import Bench, Probe, UnansweredError
from .suspects import FALLBACK, INPUTS

Progress = Callable[[str, int, int], None]
OF_A_LAW = (
    "every element of this case is legal by itself; the law compares its answer with that to a changed problem, and "
    "no stage can be told from that: bisect a case that is illegal by itself, such as one like the changed problem"
)
OF_A_CONTRACT = "it is the contract that is wrong: what it allows says nothing of any stage"
NO_RESULT = ("call", "shape", *ENDINGS)  # tiers of a kernel that gives no result to ask about
PROBE_SIZES = {"T": 16, "E": 8, "H": 256, "I": 256, "K": 256, "N": 256, "V": 256}


@dataclass
class StageReport:
    """What `moeracle bisect stages` found.

    Args:
        verdict: of the case that was given.
        smallest: of the smallest case that still fails at the same stage; None where nothing failed.
        stage: the convicted stage, one of STAGES or OTHER_STAGES, or an op that is a stage itself; "" if nobody is.
        also: another stage whose faults nobody could tell from it by outputs; "" mostly.
        how: "stored" (the kernel stores the stage), "probes", "op" (the kernel is that stage), or "".
        probes: every question asked, in order.
        calls: how often the kernel was called by probes.
        probed: the case whose dimensions the probes had.
        notes: what a reader must know, in lines.
        seconds: all of it.
    """

    verdict: Verdict
    smallest: Verdict | None = None
    stage: str = ""
    also: str = ""
    how: str = ""
    probes: list[Probe] = field(default_factory=list)
    calls: int = 0
    probed: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def fault(self) -> dict[str, Any] | None:
        """The known fault that explains the given failure; the smallest one where nobody could look at that.

        One or two elements of a smallest case are soon explained by a fault that the whole case refutes.
        """
        from ..diagnose import NONE  # which simulates, and so imports the judge

        for verdict in (self.verdict, self.smallest):
            if verdict is not None and (verdict.diagnosis or f"looks like: {NONE}" in verdict.summary):
                found = verdict.diagnosis
                return found if found and found.get("sure") else None
        return None

    @property
    def max_ratio(self) -> float:
        """Largest error over bound of the given case; infinite where it could not be judged by elements."""
        if self.verdict.status == "illegal" and not self.verdict.stages:
            return float("inf")
        return max((stage.max_ratio for stage in self.verdict.stages), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "status": self.verdict.status, "stage": self.stage, "also": self.also, "how": self.how, "fault": self.fault,
            "max_ratio": self.max_ratio, "probed": self.probed, "probes": [asdict(p) for p in self.probes],
            "calls": self.calls, "verdict": self.verdict.as_dict(), "notes": list(self.notes),
            "smallest": None if self.smallest is None else self.smallest.as_dict(), "seconds": round(self.seconds, 3),
        }  # fmt: skip


def bisect_stages(
    kernel: KernelLike,
    case: Case,
    *,
    device: str | None = None,
    shrink_seconds: float | None = None,
    progress: Progress | None = None,
) -> StageReport:
    """Find the first wrong stage of a kernel on a case.

    Args:
        kernel: of any op; moe_w4a16 is probed stage by stage, a GEMM or a reader of weights part by part.
        case: what to judge.
        device: where to run; None takes the kernel's.
        shrink_seconds: for how long the failing case is made smaller; 0: not at all; None: as many cases, by what they
            cost, on every machine.
        progress: called with what is done, how much of it, and of how much.
    Raises:
        ValueError: the device is not there, or the case cannot be built.
    """
    started = time.monotonic()
    where = device or kernel.device
    report = StageReport(_as_check(kernel, case, where))
    if report.verdict.tier in ("law", "contract"):
        report.notes.append(OF_A_LAW if report.verdict.tier == "law" else OF_A_CONTRACT)
    elif report.verdict.status == "illegal":
        _convict(report, kernel, case, where, progress)
        _shrink(report, kernel, case, where, shrink_seconds, progress)
        _settle(report)
    report.seconds = time.monotonic() - started
    return report


def _as_check(kernel: KernelLike, case: Case, where: str) -> Verdict:
    """Return what `check` says of a case: of its bits, then of its laws, then of another process's answer."""

    def run(kernel: KernelLike, case: Case, *, device: str, explain: bool) -> Verdict:
        return run_trial(kernel, case, device=where, explain=explain)

    result = judge_cases(kernel, [case], run=run)
    confirm(kernel, result, run)
    said = result.failures or result.verdicts
    return said[0] if said else run_trial(kernel, case, device=where)  # it declines the case


def _convict(report: StageReport, kernel: KernelLike, case: Case, device: str, progress: Progress | None) -> None:
    verdict, record = report.verdict, record_of(case.op)
    if verdict.tier in NO_RESULT:
        report.notes.append("the kernel does not get as far as a result, so no stage can be told")
        return
    if verdict.tier == "inputs":
        report.stage = INPUTS
        report.notes.append("an input is written over: no stage is accused of a wrong value")
        return
    if record.one_stage:
        report.stage, report.how = record.one_stage, "op"
        return
    stored = (verdict.stage or "out") if record.layer else "h"
    conditioned = record.layer and any(s.stage == "h" for s in verdict.stages)
    smaller = _probe_case(kernel, case, device)
    report.probed, report.how = str(smaller), "stored" if conditioned else "probes"
    rules = kernel.contract_for(smaller)
    bench = record.probe_bench(kernel, smaller, rules, observe=stored, device=device)
    _ask(report, bench, record.questions(stored if conditioned else ""), progress)
    last = report.probes[-1] if report.probes else None
    if last is not None and not last.passed:
        report.stage, report.also = record.stage_shown(last.suspect, stores=False), last.also
    elif conditioned or record.last_stage:
        report.stage = record.last_stage or FALLBACK[stored]
        report.notes.append(f"no probe is answered wrongly: {record.last_words}")
    else:
        report.notes.append("no probe is answered wrongly: what is wrong with this case does not show in isolation")


def _ask(report: StageReport, bench: Bench, families: tuple[Family, ...], progress: Progress | None) -> None:
    """Put the questions in turn, up to the first that is answered wrongly."""
    for done, family in enumerate(families):
        try:
            for probe in family(bench):
                report.probes.append(probe)
                if not probe.passed:
                    return
        except UnansweredError as error:
            report.notes.append(f"a question got no answer, what it asks is left open: {error}")
        finally:
            report.calls = bench.calls
        if progress:
            progress("probes", done + 1, len(families))


def _probe_case(kernel: KernelLike, case: Case, device: str) -> Case:
    """Return the case in sizes that hundreds of calls can afford, if it still fails there."""
    sizes = {d: min(n, PROBE_SIZES.get(d, n)) for d, n in case.sizes.items()}
    if "k" in sizes and "E" in sizes:
        sizes["E"] = max(sizes["E"], sizes["k"])
    try:
        smaller = case.replace(**sizes)
    except ValueError:
        return case
    if smaller == case or kernel.why_not(smaller) is not None:
        return case
    return smaller if run_trial(kernel, smaller, device=device, explain=False).status == "illegal" else case


def _shrink(
    report: StageReport, kernel: KernelLike, case: Case, device: str, seconds: float | None, progress: Progress | None
) -> None:
    verdict = report.verdict
    if verdict.tier in ENDINGS:  # each try would end a process, or wait for one that hangs
        report.smallest = verdict
        return
    allowance, started, seen = Allowance(PROFILES["smoke"].shrink_cost), time.monotonic(), 0
    kind = (verdict.tier == "determinism", verdict.tier in (*NO_RESULT, "inputs"), verdict.stage)

    def still_fails(smaller: Case) -> bool:
        nonlocal seen
        if kernel.why_not(smaller) is not None:
            return False
        if not (allowance.covers(smaller) if seconds is None else time.monotonic() - started < seconds):
            return False
        seen += 1
        if progress:
            progress("shrinking", seen, seen)
        found = run_trial(kernel, smaller, device=device, explain=False)
        same = (found.tier == "determinism", found.tier in (*NO_RESULT, "inputs"), found.stage)
        return found.status == "illegal" and same == kind

    least = shrink(case, still_fails)
    report.smallest = run_trial(kernel, least, device=device) if least != case else verdict
    if report.smallest.status != "illegal":  # it fails only sometimes
        report.notes.append("the smallest case does not fail every time: the kernel's answers differ from run to run")
        report.smallest = verdict


def _settle(report: StageReport) -> None:
    """Between two stages whose faults give the same outputs, let a known fault that is sure decide."""
    from .truth import stage_of_id  # the register of faults simulates, which imports the judge

    fault = report.fault
    if not report.also or fault is None:
        return
    stages = {stage_of_id(id) for id in (fault["id"], *fault["equals"])} - {""}
    if stages == {report.also}:
        report.notes.append(f"no output tells {report.stage} from {report.also}; {fault['id']} decides")
        report.stage, report.also = report.also, report.stage
