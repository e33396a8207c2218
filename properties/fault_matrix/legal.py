"""Legal kernels through every recipe: whatever is said against one of them is a false alarm."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from ..cases.case import Case
from ..cases.optable import OPS
from ..common.verdict import Verdict
from ..hunt.must_run import must_run
from ..hunt.pooled import pooled_drifts
from ..judge import judge
from ..simulate import HALF, LEGAL, SimulatedKernel, simulated_kernel
from ..trial.trial import run_trial
from .published_rules import compared, reference_output, rules_that_see
from .refused_once import refused_once

__all__ = ["LegalRun", "legal_kernels", "run_legal"]

IN_EVERY_ORDER = ("int4_linear", "grouped_gemm", "padded_gemm", "moe_w4a16")
LARGE = Case.of("moe_w4a16", T=32, E=8, k=4, H=256, I=128, G=32)
ROUTINGS = ("uniform", "zipf1", "onehot", "repeat")


@dataclass
class LegalRun:
    """What was said of one legal kernel.

    Args:
        op, kernel, contract: which.
        cases, vacuous: judged, and of those how many were refused as too weak to judge by.
        judged: elements.
        max_ratio: largest |error| / (bound + half an ulp); at most 1 for a legal kernel.
        max_z: largest |z| of a stage's statistics, in one case or in all of them together.
        seconds: building, running and judging.
        alarms: "case: reason" of every false one.
        outputs: how many outputs the published rules were asked about.
        refused: how many of those each published rule refuses.
    """

    op: str
    kernel: str
    contract: str
    cases: int = 0
    vacuous: int = 0
    judged: int = 0
    max_ratio: float = 0.0
    max_z: float = 0.0
    seconds: float = 0.0
    alarms: list[str] = field(default_factory=list)
    outputs: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def take(self, verdict: Verdict) -> None:
        """Count a verdict."""
        self.cases += 1
        self.judged += verdict.judged
        if verdict.status == "vacuous":
            self.vacuous += 1
        elif verdict.status == "illegal":
            self.alarms.append(f"{verdict.case}: tier {verdict.tier}: {verdict.reason}")
        elif verdict.status == "legal":
            self.max_ratio = max([self.max_ratio, *(stage.max_ratio for stage in verdict.stages)])
            self.max_z = max([self.max_z, *(stage.drift.max_z for stage in verdict.stages)])

    def take_pool(self, verdicts: list[Verdict]) -> None:
        """Judge the statistics of all cases together."""
        for stage, drift in pooled_drifts(verdicts).items():
            self.max_z = max(self.max_z, drift.max_z)
            if drift.complaint:
                self.alarms.append(f"all cases, stage {stage}: tier statistics: {drift.complaint}")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def legal_kernels(ops: Sequence[str] | None = None) -> list[SimulatedKernel]:
    """Return the legal kernels of these ops (None: of all): the GEMMs in every order, the others in one, and more.

    Args:
        ops: names of OPS, or None.
    Returns:
        One SimulatedKernel for each op, contract and order, then those of refused_once.
    """
    kernels = []
    for op in OPS if ops is None else ops:
        kinds: Sequence[tuple[str | None, str]] = LEGAL if op in IN_EVERY_ORDER else [(None, "matmul")]
        kernels += [simulated_kernel(op, contract, order) for contract, order in kinds]
    return [*kernels, *refused_once(ops)]


def run_legal(kernel: SimulatedKernel, least_elements: int = 1_000_000) -> LegalRun:
    """Put a legal kernel through the fixed cases as trials, and moe_w4a16 through larger ones of every recipe.

    Args:
        kernel: a correct one.
        least_elements: how many elements of moe_w4a16 to judge at least, every recipe among them; 0: fixed cases only.
    Returns:
        LegalRun; each of its alarms is a false one.
    """
    started = time.perf_counter()
    run = LegalRun(kernel.op, kernel.name, kernel.contract.name)
    refused: Counter[str] = Counter()
    verdicts = []
    for case in must_run(kernel):
        if kernel.why_not(case) is not None:
            continue
        verdicts.append(run_trial(kernel, case, explain=False))
        run.take(verdicts[-1])
        _ask_the_rules(kernel, case, run, refused)
    large = large_cases() if kernel.op == "moe_w4a16" and least_elements else iter(())
    for done, case in enumerate(large):
        if done >= len(OPS[kernel.op].data) and run.judged >= least_elements:
            break
        if kernel.why_not(case) is not None:
            continue
        problem = case.build()
        verdicts.append(judge(problem, kernel.fn(*problem.args.values()), kernel.contract, explain=False))
        run.take(verdicts[-1])
    run.take_pool(verdicts)
    run.refused = dict(refused)
    run.seconds = time.perf_counter() - started
    return run


def large_cases() -> Iterator[Case]:
    """Yield moe_w4a16 cases without end: all recipes in both dtypes, then again with other seeds and routings."""
    recipes = OPS["moe_w4a16"].data
    for seed in count():
        for i, data in enumerate(recipes):
            dtype, routing = HALF[(seed + i) % 2], ROUTINGS[(seed + i) % len(ROUTINGS)]
            yield LARGE.replace(dtype=dtype, data=data, routing=routing, seed=seed)


def _ask_the_rules(kernel: SimulatedKernel, case: Case, run: LegalRun, refused: Counter[str]) -> None:
    problem = case.build()
    want = compared(case.op, reference_output(problem))
    got = compared(case.op, kernel.fn(*problem.args.values())) if want is not None else None
    if got is not None and want is not None and got.numel():
        run.outputs += 1
        refused.update(rules_that_see(got, want))
