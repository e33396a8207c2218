"""Legal kernels through every recipe: whatever is said against one of them is a false alarm."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ..cases.case import Case
from ..cases.kernel_like import KernelLike
from ..cases.optable import OPS
from ..common.verdict import Verdict
from ..hunt.must_run import must_run
from ..hunt.soak import Soaked
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
class LegalRun(Soaked):
    """What was said of one legal kernel, and what published rules say of its outputs.

    Args:
        op, kernel, contract, device, cases, vacuous, skipped, judged, max_ratio, max_z, alarms, drifts, endings: as
            Soaked's.
        seconds: building, running and judging.
        outputs: how many outputs the published rules were asked about.
        refused: how many of those each published rule refuses.
    """

    seconds: float = 0.0
    outputs: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def take(self, verdict: Verdict) -> None:
        """Count a verdict, and the statistics of its stages, each by itself, too."""
        super().take(verdict)
        if verdict.ok:
            self.max_z = max([self.max_z, *(stage.drift.max_z for stage in verdict.stages)])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; all of these kernels run on a CPU, and take every case that they are given."""
        return {name: value for name, value in super().as_dict().items() if name not in ("device", "skipped")}


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
    run = LegalRun(kernel.op, kernel.name, kernel.contract.name, kernel.device)
    refused: Counter[str] = Counter()
    for case in must_run(kernel):
        if kernel.why_not(case) is not None:
            continue
        run.take(run_trial(kernel, case, explain=False))
        _ask_the_rules(kernel, case, run, refused)
    large = large_cases(kernel) if kernel.op == LARGE.op and least_elements else iter(())
    for case in large:
        if case.seed > 0 and run.judged >= least_elements:
            break
        problem = case.build()
        run.take(judge(problem, kernel.fn(*problem.args.values()), kernel.contract, explain=False))
    run.settle()
    run.refused = dict(refused)
    run.seconds = time.perf_counter() - started
    return run


def large_cases(kernel: KernelLike) -> Iterator[Case]:
    """Yield moe_w4a16 cases that a kernel takes: all recipes, seed after seed, in other dtypes and routings each time.

    Where it takes one expert a token alone, there are as many slots. The cases end with a seed of which it takes none.
    """
    for seed in count():
        taken = False
        for i, data in enumerate(OPS[LARGE.op].data):
            dtype, routing = HALF[(seed + i) % 2], ROUTINGS[(seed + i) % len(ROUTINGS)]
            wanted = LARGE.replace(dtype=dtype, data=data, routing=routing, seed=seed)
            for case in (wanted, wanted.replace(T=wanted.T * wanted.k, k=1)):
                if kernel.why_not(case) is None:
                    taken = True
                    yield case
                    break
        if not taken:
            return


def _ask_the_rules(kernel: SimulatedKernel, case: Case, run: LegalRun, refused: Counter[str]) -> None:
    problem = case.build()
    want = compared(case.op, reference_output(problem))
    got = compared(case.op, kernel.fn(*problem.args.values())) if want is not None else None
    if got is not None and want is not None and got.numel():
        run.outputs += 1
        refused.update(rules_that_see(got, want))
