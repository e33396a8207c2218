"""The soak: many elements of kernels that are legal, case after case with new seeds; whatever is said is a false alarm.

Each round gives each kernel in turn one of its fixed cases, then each a tall one, then each one with many elements,
with seeds that no earlier round had. The statistics of all of a kernel's cases are pooled at the end, as a hunt's are.
"""

from __future__ import annotations

import functools
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
from ..common.endings import ENDINGS, Ended
from ..common.processes import Unfinished, call_each
from ..common.verdict import Verdict, failed
from ..trial.trial import run_trial
from .must_run import must_run, weight_forms
from .pooled import pooled_drifts
from .search import MOST_ENDINGS
from .strategies import neighbours
from .tall import tall_cases

Progress = Callable[[str, int, int], None]
SEED_STEP = 1_000_003
TURNS = 3  # of a round: a fixed case, a tall one, one of many elements
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
        endings: how often it ended its process.
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
    endings: int = 0

    def take(self, verdict: Verdict) -> None:
        """Count a verdict."""
        if verdict.status == "skipped":
            self.skipped += 1
            return
        self.cases += 1
        self.judged += verdict.judged
        self.vacuous += verdict.status == "vacuous"
        self.endings += verdict.tier in ENDINGS
        if verdict.status == "illegal":
            self.alarms.append(f"{verdict.case}: tier {verdict.tier} {verdict.stage}: {verdict.reason}")
        self._add_drifts(pooled_drifts([verdict]))
        self.max_ratio = max([self.max_ratio, *(s.max_ratio for s in verdict.stages if verdict.ok)])

    def add(self, other: Soaked) -> None:
        """Count what another process judged of the same kernel."""
        for name in ("cases", "vacuous", "skipped", "judged", "endings"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_ratio = max(self.max_ratio, other.max_ratio)
        self.alarms += other.alarms
        self._add_drifts(other.drifts)

    def _add_drifts(self, drifts: dict[str, Drift]) -> None:
        for stage, drift in drifts.items():
            self.drifts[stage] = self.drifts.get(stage, Drift()).plus(drift)

    def settle(self) -> None:
        """Judge the statistics of all cases together."""
        self.max_z = max([self.max_z, *(drift.max_z for drift in self.drifts.values())])
        self.alarms += [f"all cases, stage {s}: {d.complaint}" for s, d in self.drifts.items() if d.complaint]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: value for name, value in vars(self).items() if name not in ("drifts", "endings")}


@dataclass
class Soak:
    """One soak: its kernels, in how many rounds and processes, how long it ran, and what ended it before its time."""

    seed: int
    kernels: list[Soaked]
    rounds: int = 0
    seconds: float = 0.0
    jobs: int = 1
    ended: str = ""

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
            "seed": self.seed, "rounds": self.rounds, "jobs": self.jobs, "seconds": round(self.seconds, 3),
            "judged": self.judged, "cases": sum(k.cases for k in self.kernels),
            "never_judged": [f"[{k.op}] {k.kernel}" for k in self.kernels if not k.cases], "ended": self.ended,
            "alarms": self.alarms, "kernels": [k.as_dict() for k in self.kernels],
        }  # fmt: skip


def soak(
    kernels: Sequence[KernelLike],
    *,
    elements: int,
    seconds: float,
    seed: int = 0,
    progress: Progress | None = None,
    jobs: int = 1,
    again: Callable[[], Sequence[KernelLike]] | None = None,
) -> Soak:
    """Judge legal kernels in turn until so many elements were judged, each kernel once at least, or time has passed.

    Args:
        kernels: which.
        elements: after how many judged elements to end.
        seconds: after what time to end, between two cases.
        seed: of the first round; the same seed asks the same cases, as far as time allows.
        progress: called with what is under way, elements judged and elements wanted.
        jobs: processes that judge side by side.
        again: for several jobs, returns the same kernels in the same order in another process.
    Returns:
        Soak.
    """
    started = time.monotonic()
    order = list(range(len(kernels)))
    Random(seed).shuffle(order)  # a short soak begins with another one each time
    found = Soak(seed, [Soaked(k.op, k.name, k.contract.name, k.device) for k in kernels], jobs=jobs)
    until, ready = started + seconds, 0

    def calls() -> Iterator[tuple[int, int, int, float]]:
        for place in count():
            nothing = ready >= TURNS * len(order) and not any(k.cases for k in found.kernels)
            enough = place >= len(order) and found.judged >= elements
            if nothing or enough or time.monotonic() >= until:
                return
            turn, index = divmod(place, len(order))
            found.rounds = turn // TURNS + 1
            given_up = [kernel.endings >= MOST_ENDINGS for kernel in found.kernels]
            if all(given_up):
                return
            if not given_up[order[index]]:
                yield order[index], seed, turn, until

    remake: tuple[Any, ...] = (again,) if jobs > 1 else (lambda: kernels,)
    for (index, _, turn, _), part in call_each(_judge_one, calls(), jobs, _remember, remake):
        if isinstance(part, Unfinished):
            found.ended = f"{found.kernels[index].kernel}: {part.why}"
            break
        found.kernels[index].add(part)
        ready += 1
        if progress:
            progress(f"round {turn // TURNS + 1}: {found.kernels[index].kernel}", found.judged, elements)
    found.kernels = [found.kernels[index] for index in order]
    for soaked in found.kernels:
        soaked.settle()
    found.seconds = time.monotonic() - started
    return found


_here: list[KernelLike] = []  # the kernels that this process judges


def _remember(again: Callable[[], Sequence[KernelLike]]) -> None:
    _here[:] = again()
    _kinds.cache_clear()


def _judge_one(index: int, seed: int, turn: int, until: float) -> Soaked:
    """Judge one kernel on its next case of one kind: which, says `turn`; until is of time.monotonic()."""
    kernel = _here[index]
    soaked = Soaked(kernel.op, kernel.name, kernel.contract.name, kernel.device)
    try:
        case = _case_of(index, seed, turn)
    except Ended as ended:  # asking which cases it takes was enough
        verdict = Verdict(kernel.op, "which cases it takes", kernel.name, kernel.contract.name)
        soaked.take(failed(verdict, ended.tier, "", *ended.lines))
        return soaked
    if case is not None and time.monotonic() < until:
        soaked.take(run_trial(kernel, case, explain=False))
    return soaked


@functools.cache
def _kinds(index: int) -> list[list[Case]]:
    kernel = _here[index]
    return [[c for c in must_run(kernel) if kernel.why_not(c) is None], tall_cases(kernel, "ci"), many(kernel)]


def _case_of(index: int, seed: int, turn: int) -> Case | None:
    """Return a kernel's case of one turn, with a seed of this round alone; None where it takes none of that kind."""
    number, kind = divmod(turn, TURNS)
    cases = _kinds(index)[kind]
    if not cases:
        return None
    case, new = cases[number % len(cases)], (seed * SEED_STEP + number) % (1 << 64)
    return case.replace(seed=(case.seed + new * SEED_STEP) % (1 << 64))


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
