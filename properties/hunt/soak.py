"""The soak: many elements of kernels that are legal, case after case with new seeds; whatever is said is a false alarm.

Each kernel in turn gets one of its fixed cases, one tall one and one with many elements, with seeds that no earlier
round had. The statistics of all of a kernel's cases are pooled at the end, as a hunt's are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from random import Random
from typing import Any

from ..cases.case import Case
from ..cases.kernel_like import KernelLike
from ..cases.optable import OPS
from ..common.drift import Drift
from ..common.verdict import Verdict
from ..trial.trial import run_trial
from .must_run import must_run, weight_forms
from .pooled import pooled_drifts
from .strategies import neighbours
from .tall import tall_cases

Progress = Callable[[str, int, int], None]
SEED_STEP = 1_000_003
# Many elements and short sums: what is judged is outputs, not products.
MANY_ON_A_CPU = {"T": 256, "E": 8, "k": 4, "N": 256, "K": 128, "H": 128, "I": 128, "G": 32, "B": 32, "V": 1024}
MANY_ON_A_GPU = {"T": 4096, "E": 16, "k": 4, "N": 4096, "K": 256, "H": 1024, "I": 1024, "G": 32, "B": 64, "V": 16384}


@dataclass
class Soaked:
    """What was said of one kernel: counts, the largest |error| / bound, the largest |z|, and "case: reason" of alarms.

    Args:
        op, kernel, contract, device: which.
        cases, vacuous, skipped: judged, of those refused as too weak, and declined by the kernel.
        judged: elements.
        max_ratio, max_z: the largest |error| / (bound + rounding); the largest |z| of a stage's statistics.
        alarms: each a false one, if the kernel is legal.
        drifts: the sums of each stage's statistics.
    """

    op: str
    kernel: str
    contract: str
    device: str
    cases: int = 0
    vacuous: int = 0
    skipped: int = 0
    judged: int = 0
    max_ratio: float = 0.0
    max_z: float = 0.0
    alarms: list[str] = field(default_factory=list)
    drifts: dict[str, Drift] = field(default_factory=dict)

    def take(self, verdict: Verdict) -> None:
        """Count a verdict."""
        if verdict.status == "skipped":
            self.skipped += 1
            return
        self.cases += 1
        self.judged += verdict.judged
        self.vacuous += verdict.status == "vacuous"
        if verdict.status == "illegal":
            self.alarms.append(f"{verdict.case}: tier {verdict.tier} {verdict.stage}: {verdict.reason}")
        for stage, drift in pooled_drifts([verdict]).items():
            self.drifts[stage] = self.drifts.get(stage, Drift()).plus(drift)
        self.max_ratio = max([self.max_ratio, *(s.max_ratio for s in verdict.stages if verdict.ok)])

    def settle(self) -> None:
        """Judge the statistics of all cases together."""
        self.max_z = max([0.0, *(drift.max_z for drift in self.drifts.values())])
        self.alarms += [f"all cases, stage {s}: {d.complaint}" for s, d in self.drifts.items() if d.complaint]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: value for name, value in vars(self).items() if name != "drifts"}


@dataclass
class Soak:
    """One soak: its kernels, and how long it ran."""

    seed: int
    kernels: list[Soaked]
    rounds: int = 0
    seconds: float = 0.0

    @property
    def judged(self) -> int:
        """Elements of all kernels."""
        return sum(kernel.judged for kernel in self.kernels)

    @property
    def alarms(self) -> list[str]:
        """What was said against any of them."""
        return [f"[{k.op}] {k.kernel} {alarm}" for k in self.kernels for alarm in k.alarms]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "seed": self.seed, "rounds": self.rounds, "seconds": round(self.seconds, 3), "judged": self.judged,
            "cases": sum(k.cases for k in self.kernels), "alarms": self.alarms,
            "kernels": [k.as_dict() for k in self.kernels],
        }  # fmt: skip


def soak(
    kernels: Sequence[KernelLike], *, elements: int, seconds: float, seed: int = 0, progress: Progress | None = None
) -> Soak:
    """Judge legal kernels in turn until so many elements were judged or so much time has passed.

    Args:
        kernels: which.
        elements: after how many judged elements to end.
        seconds: after what time to end, between two cases.
        seed: of the first round; the same seed asks the same cases, as far as time allows.
        progress: called with what is under way, elements judged and elements wanted.
    Returns:
        Soak.
    """
    started = time.monotonic()
    kernels = list(kernels)
    Random(seed).shuffle(kernels)  # a short soak begins with another one each time
    found = Soak(seed, [Soaked(k.op, k.name, k.contract.name, k.device) for k in kernels])
    feeds = [_cases(kernel, seed) for kernel in kernels]
    for number in count():
        for kernel, feed, soaked in zip(kernels, feeds, found.kernels, strict=True):
            for case in next(feed):
                if found.judged >= elements or time.monotonic() - started >= seconds:
                    break
                if progress:
                    progress(f"round {number + 1}: {kernel.name}", found.judged, elements)
                soaked.take(run_trial(kernel, case, explain=False))
        found.rounds = number + 1
        if found.judged >= elements or time.monotonic() - started >= seconds or not any(k.cases for k in found.kernels):
            break
    for soaked in found.kernels:
        soaked.settle()
    found.seconds = time.monotonic() - started
    return found


def _cases(kernel: KernelLike, seed: int) -> Iterator[list[Case]]:
    """Yield the cases of each round: of the fixed, of the tall and of the large ones the next, with new seeds."""
    kinds = [[c for c in must_run(kernel) if kernel.why_not(c) is None], tall_cases(kernel, "ci"), many(kernel)]
    for number, turn in enumerate(zip(*(cycle(kind or [None]) for kind in kinds), strict=False)):
        new = (seed * SEED_STEP + number) % (1 << 64)
        yield [case.replace(seed=(case.seed + new * SEED_STEP) % (1 << 64)) for case in turn if case is not None]


def many(kernel: KernelLike) -> list[Case]:
    """Return cases of many elements, one for each recipe, that a kernel takes."""
    op, sizes = OPS[kernel.op], MANY_ON_A_CPU if kernel.device == "cpu" else MANY_ON_A_GPU
    dims: dict[str, Any] = {letter: {**op.plain_sizes, **sizes}[letter] for letter in op.dims}
    forms = cycle(weight_forms(kernel) or [("-", "-")])
    dtypes = cycle([d for d in op.dtypes if d in kernel.dtypes] if op.dtypes != ("-",) else ["-"])
    routings, found = cycle(op.routings), []
    for data in op.data:
        layout, zero = next(forms)
        fields: dict[str, Any] = {
            "dtype": next(dtypes),
            "layout": layout,
            "zero": zero,
            "data": data,
            "routing": next(routings),
        }
        wanted = Case.of(kernel.op, **dims, **fields)
        found += [near for near in neighbours(wanted) if kernel.why_not(near) is None][:1]
    return found
