"""Does a bisection name the right stage? Every known fault, in kernels that store their stages and in fused ones.

And the other way round: legal kernels are asked every question, and whatever is answered wrongly is a false conviction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..cases.case import Case
from ..cases.record import record_of
from ..faults import Fault
from ..hunt.must_run import must_run
from ..simulate import LEGAL, SimulatedKernel, simulated_kernel
from ..trial.trial import Known, run_trial
from .families import FUSED as QUESTIONS
from .isolate import Bench, Probe
from .stages import StageReport, bisect_stages
from .truth import stage_in_op

STORED, FUSED, ONE_OP = "stored", "fused", "op"
LAYER = "moe_w4a16"
# Two layers for the legal kernels: all that differs between them may matter to a probe.
LEGAL_CASES = (
    "moe_w4a16/T9-E5-k2-H96-I160-G32/bf16/exllama-sym/uniform/normal/s7",
    "moe_w4a16/T9-E8-k3-H128-I64-G32/fp16/awq-asym/uniform/normal/s7",
)
Progress = Callable[[str, int, int], None]
_KNOWN: Known = {}  # the faults of a layer are sought on the same cases


@dataclass
class Planted:
    """One fault in one kernel.

    Args:
        id, op, kind: the fault, the kernel's op, and STORED, FUSED or ONE_OP.
        case: on which it fails.
        expected, found: stages.
        also: the stage whose faults nobody can tell from it by outputs, or "".
        probe: the question that convicted, or "".
        stored_expected, stored_found: the first illegal stored stage, of STORED kernels; else "".
        fault: the id that the diagnosis names, or "".
        calls, seconds: what it took.
    """

    id: str
    op: str
    kind: str
    case: str
    expected: str
    found: str
    also: str = ""
    probe: str = ""
    stored_expected: str = ""
    stored_found: str = ""
    fault: str = ""
    calls: int = 0
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """ "right", "tied" (no output tells the right stage from the one named) or "wrong"."""
        if self.found == self.expected and self.stored_found == self.stored_expected:
            return "right"
        return "tied" if self.also == self.expected else "wrong"


@dataclass
class BisectMatrix:
    """Everything that `run_bisect_matrix` found; `convicted` holds (kernel, case, probe) of legal kernels."""

    planted: list[Planted] = field(default_factory=list)
    legal: int = 0
    questions: int = 0
    convicted: list[tuple[str, str, Probe]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing wrong, nobody convicted without fault."""
        return not self.convicted and all(p.verdict != "wrong" for p in self.planted)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "planted": [{**vars(p), "verdict": p.verdict} for p in self.planted],
            "legal": {
                "kernels": self.legal, "questions": self.questions,
                "convicted": [{"kernel": k, "case": c, "probe": vars(p)} for k, c, p in self.convicted],
            },
            "seconds": round(self.seconds, 3),
        }  # fmt: skip


def fused(kernel: SimulatedKernel) -> SimulatedKernel:
    """Return the kernel of a layer with everything but its output kept to itself."""

    def fn(*args: Any) -> Any:
        return {"out": kernel.fn(*args)["out"]}

    vars(fn)["__self__"] = getattr(kernel.fn, "__self__", None)  # still a simulation's, whose memory call_here knows
    return replace(kernel, fn=fn)


def failing_case(kernel: SimulatedKernel) -> Case | None:
    """Return the first of the fixed cases on which a kernel is illegal, or None."""
    trials = ((c, run_trial(kernel, c, explain=False, known=_KNOWN)) for c in must_run(kernel))
    return next((c for c, verdict in trials if verdict.status == "illegal"), None)


def plant_and_bisect(
    fault: Fault, op: str, kind: str, case: Case | None = None, contract: str | None = None
) -> Planted | None:
    """Bisect a kernel that has one fault; None where no fixed case shows it (a fused output may hide it).

    Args:
        fault: planted under its own contract.
        op: one of the fault's.
        kind: STORED or FUSED for moe_w4a16, ONE_OP for others.
        case: to bisect on; None: the first fixed one that fails.
        contract: what the kernel keeps otherwise; None: the fault's own, or the op's default.
    """
    kernel = fault.kernel(op, contract)
    kernel = fused(kernel) if kind == FUSED else kernel
    case = case or failing_case(kernel)
    if case is None:
        return None
    report = bisect_stages(kernel, case, shrink_seconds=0)
    last = report.probes[-1] if report.probes else None
    planted = Planted(fault.id, op, kind, str(case), stage_in_op(fault, op), report.stage, report.also)
    planted.probe = last.name if last is not None and not last.passed else ""
    if kind == STORED:
        planted.stored_expected, planted.stored_found = fault.stage, report.verdict.stage
    planted.fault = str((report.fault or {}).get("id", ""))
    planted.calls, planted.seconds = report.calls, report.seconds
    return planted


def question(kernel: SimulatedKernel, case: Case) -> StageReport:
    """Ask a fused kernel every question, whatever the answers."""
    report = StageReport(run_trial(kernel, case, explain=False))
    bench = Bench(kernel, case, kernel.contract)
    report.probes = [probe for family in QUESTIONS for probe in family(bench)]
    report.calls = bench.calls
    return report


def run_bisect_matrix(
    faults: Iterable[Fault],
    kinds: Sequence[str] = (FUSED, STORED, ONE_OP),
    *,
    contract: str | None = None,
    legal: bool = True,
    progress: Progress | None = None,
) -> BisectMatrix:
    """Bisect every fault in every kind of kernel that can have it, then question the legal ones.

    Args:
        faults: which ones.
        kinds: FUSED and STORED for those of moe_w4a16, ONE_OP for every other op that they befall.
        contract: what the kernels keep otherwise; None: each fault's own, or the op's default.
        legal: whether to question the legal kernels.
        progress: called with what is done, how much, of how much.
    """
    started = time.monotonic()
    matrix = BisectMatrix()
    jobs = [
        (fault, op, kind)
        for fault in faults
        for op in fault.ops
        for kind in kinds
        if record_of(op).bisected_by_stages == (kind != ONE_OP) and fault.why_not(op, contract) is None
    ]
    for done, (fault, op, kind) in enumerate(jobs):
        planted = plant_and_bisect(fault, op, kind, contract=contract)
        if planted is not None:
            matrix.planted.append(planted)
        if progress:
            progress(f"{fault.id} {op} {kind}", done + 1, len(jobs))
    for done, (contract, order) in enumerate(LEGAL if legal else ()):
        kernel = fused(simulated_kernel(LAYER, contract, order))
        matrix.legal += 1
        for text in LEGAL_CASES:
            report = question(kernel, Case.parse(text))
            matrix.questions += len(report.probes)
            matrix.convicted += [(kernel.name, text, probe) for probe in report.probes if not probe.passed]
        if progress:
            progress("legal kernels", done + 1, len(LEGAL))
    matrix.seconds = time.monotonic() - started
    return matrix
