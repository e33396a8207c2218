"""What a kernel stored, beside what a right simulation stores, and how well another simulation accounts for it.

A candidate is judged on the elements that are illegal and on those that it says should have changed: the share of both
together that it has right. So it loses for each illegal element that it leaves unexplained, and for each change that it
predicts where the kernel is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from moeracle.ref.contracts.contract import JUDGED, STAGES, Contract
from moeracle.ref.rounding import ulp

from ..cases.case import Problem
from ..cases.optable import OPS
from ..cases.record import record_of
from ..common.guard import Guarded, poisoned
from ..simulate import Simulation, simulation_of
from ..simulate.orders import same_atomics
from .candidates import Candidate

Parts = dict[str, torch.Tensor]
NEARLY = 2.0**-18  # relative: router weights and scales, whose last bits are open


class Fit(NamedTuple):
    """How a simulation fits: illegal elements explained, elements that it has to account for, those it does."""

    explained: int = 0
    of: int = 0
    matched: int = 0

    @property
    def share(self) -> float:
        """The part of all it has to account for."""
        return self.matched / self.of if self.of else 0.0

    def __add__(self, other: Any) -> Fit:  # not a tuple's: counts add up
        return Fit(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Match:
    """A candidate, how it fits up to the failing stage, and how many elements of later stages it leaves unexplained."""

    candidate: Candidate
    fit: Fit
    missed_later: int = 0


@dataclass
class Evidence:
    """One failure.

    Args:
        problem: on the CPU.
        outputs: what the kernel stored, by stage or part.
        rules: the contract it was judged under.
        stage: where it failed, "" if every part counts.
        illegal: bool, that stage's shape; None: whatever differs from a right simulation.
        width_ulp: the legal sets' median width there.
    """

    problem: Problem
    outputs: Parts
    rules: Contract
    stage: str = ""
    illegal: torch.Tensor | None = None
    width_ulp: float = 0.0
    got: Parts = field(init=False)
    right: Parts = field(init=False)
    loaded: dict[tuple[Any, ...], Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [s for s in JUDGED if s in self.outputs] or list(self.outputs)
        if OPS[self.problem.case.op].layer and self.stage in self.names:
            at = self.names.index(self.stage)
            self.before, self.failing, self.later = self.names[:at], [self.stage], self.names[at + 1 :]
        else:
            self.before, self.failing, self.later = [], self.names, []
        self.args = Guarded(self.problem.args).args
        self.got = self._settled(self.outputs)
        op = self.problem.case.op
        # Before anything is loaded: what is loaded already takes no step any more.
        self.plain, self.steps = _watched(simulation_of(op, self.rules))
        right = self.simulate(self.plain, self.failing)
        self.right = right if self.failing == self.names else self.simulate(simulation_of(op, self.rules), self.names)
        self.wrong = {name: ~equal(self.got[name], self.right[name], self.slack(name)) for name in self.names}
        if self.illegal is not None:
            mask = self.illegal.reshape(self.outputs[self.stage].shape)
            self.wrong[self.stage] = mask[tuple(slice(size) for size in self.got[self.stage].shape)]
            self.wrong.update((name, torch.zeros_like(self.wrong[name])) for name in self.before)
        self.count = sum(int(self.wrong[name].sum()) for name in self.failing)

    def is_right(self, simulation: Simulation) -> bool:
        """Say whether a simulation computes the failing stage as a right one does, replacing no step taken there."""
        usual = vars(self.plain)
        replaced = {name for name, value in vars(simulation).items() if name not in usual or usual[name] != value}
        return type(self.plain).__base__ is type(simulation) and self.steps.isdisjoint(replaced)

    def simulate(self, simulation: Simulation, names: list[str], run: int = 0) -> Parts:
        """Compute some of the parts that the kernel stored; stages of moe_w4a16 from the stages before them, the
        kernel's own ones where it stored them."""
        op, args = self.problem.case.op, self.args
        simulation.loaded = self.loaded
        with poisoned(run, every=False), same_atomics(run):
            if not OPS[op].layer:
                output = getattr(simulation, op)(*args.values())
                parts = output if isinstance(output, tuple) else (output,)
                return self._settled(dict(zip(self.outputs, parts, strict=True)))
            before = dict(self.outputs)
            stages: Parts = {}
            order = JUDGED if "partial" in self.outputs else STAGES
            for stage in order[: order.index(names[-1]) + 1]:
                if stage in names or stage not in self.outputs:
                    value = simulation.stage_of(op, stage, args, before)
                    stages[stage] = simulation.result(value) if stage == "out" else value
                    before.setdefault(stage, value)
            return self._settled({name: stages[name] for name in names})

    def fit(self, parts: Parts, names: list[str]) -> Fit:
        """Say how well these parts of a simulation fit."""
        total = Fit()
        for name in names:
            if parts[name].shape != self.got[name].shape:
                return Fit(0, 1, 0)
            same = equal(self.got[name], parts[name], self.slack(name))
            concerned = self.wrong[name] | ~equal(parts[name], self.right[name])
            explained = int((same & self.wrong[name]).sum()) if name in self.failing else 0
            total += Fit(explained, int(concerned.sum()), int((same & concerned).sum()))
        return total

    def fit_between(self, runs: list[Parts], names: list[str]) -> Fit:
        """Say how well these parts fit between those of a simulation whose runs differ."""
        total = Fit()
        for name in names:
            values, right = torch.stack([run[name] for run in runs]), self.right[name]
            lo, hi, got = values.amin(0), values.amax(0), self.got[name]
            same = (lo <= got) & (got <= hi)
            concerned = self.wrong[name] | ~((lo <= right) & (right <= hi))
            explained = int((same & self.wrong[name]).sum()) if name in self.failing else 0
            total += Fit(explained, int(concerned.sum()), int((same & concerned).sum()))
        return total

    def slack(self, name: str) -> torch.Tensor | float:
        """How far two legal kernels with the same fault may lie apart."""
        right = self.right[name]
        if not right.is_floating_point():
            return 0.0
        if right.dtype == torch.float32:
            return right.double().abs() * NEARLY
        return ulp(right.double().abs(), right.dtype) * (self.width_ulp / 2) if self.width_ulp else 0.0

    def _settled(self, parts: Parts) -> Parts:
        record = record_of(self.problem.case.op)
        if record.layer:
            return dict(record.settled(self.problem, parts))
        values = record.settled(self.problem, tuple(parts.values()) if len(parts) > 1 else next(iter(parts.values())))
        return dict(zip(parts, values if isinstance(values, tuple) else (values,), strict=True))


def _watched(simulation: Simulation) -> tuple[Simulation, set[str]]:
    """Return a simulation and the names of all its steps and fields that it comes to use."""
    used: set[str] = set()

    class Watched(type(simulation)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            used.add(name)
            return super().__getattribute__(name)

    simulation.__class__ = Watched
    return simulation, used


def equal(a: torch.Tensor, b: torch.Tensor, slack: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Compare by value; NaN equals NaN."""
    same = (a == b) | ((a != a) & (b != b))
    if isinstance(slack, float) and slack == 0.0:
        return same
    return same | ((a.double() - b.double()).abs() <= slack)
