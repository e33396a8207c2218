"""Measuring many points: compiled ahead by several processes, written down after each, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from moeracle.bench.judge import elsewhere
from moeracle.bench.pool import compile_ahead, distinct, processes
from moeracle.bench.problems import Point
from moeracle.bench.suite import Suite
from moeracle.target.declaration import Kernel

from ..console import Progress

Todo = Sequence[tuple[Point, Sequence[Kernel]]]


class Workers(NamedTuple):
    """Who compiles ahead.

    Args:
        jobs: processes; 1: nobody does, 0: see pool.processes.
        places: TARGETs that hold the kernels, for those processes.
        memory: of the GPU that is free, bytes.
    """

    jobs: int = 1
    places: Sequence[str] = ()
    memory: int = 0


@dataclass
class Estimate:
    """How long the rest will take, by what each step took so far.

    Args:
        left: steps of each kind that are left.
    """

    left: dict[str, int]
    spent: dict[str, float] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)

    def step(self, kind: str) -> None:
        """Count one step that has just ended; the first of a kind is not yet a measure of the others."""
        now = time.monotonic()
        self.spent[kind] = self.spent.get(kind, 0.0) + now - self.last
        self.done[kind], self.left[kind], self.last = self.done.get(kind, 0) + 1, self.left[kind] - 1, now

    @property
    def text(self) -> str:
        """The time left in words, or "" where nothing is known yet."""
        if any(left and not self.done.get(kind) for kind, left in self.left.items()):
            return ""
        seconds = sum(left * self.spent[kind] / self.done[kind] for kind, left in self.left.items() if left)
        return f", about {seconds:.0f} s left" if seconds < 120 else f", about {seconds / 60:.0f} min left"


def run_points(
    suite: Suite,
    todo: Todo,
    baselines: Mapping[str, Kernel],
    progress: Progress,
    save: Callable[[int], None],
    workers: Workers,
) -> None:
    """Measure every point, one after another, and save after each.

    Args:
        suite: judges and times; its `found` grows.
        todo: points of one shape after another, with our kernels.
        baselines: a second implementation by op.
        progress: called at each step.
        save: called after each point with the number of those that are left.
        workers: who compiles ahead.
    """
    count = processes(workers.jobs, workers.memory)
    ours = {op: kernel for op, kernel in baselines.items() if not elsewhere(kernel)}  # others compile in their process
    with_baseline = [(p, [*ks, *([ours[p.op]] if p.op in ours else [])]) for p, ks in todo]
    ahead = distinct(with_baseline) if count > 1 else []
    total = len(ahead) + len(todo)
    estimate = Estimate({"compiled": len(ahead), "timed": len(todo)})

    def stepped(kind: str, point: Point) -> None:
        estimate.step(kind)
        what = f"{kind} {point.shape_name} {point.what} {point.archetype} T={point.T}"
        progress(what + estimate.text, total - sum(estimate.left.values()), total)

    if ahead:
        for ready in compile_ahead(ahead, min(count, len(ahead)), workers.places, suite.device):
            stepped("compiled", ready)
        estimate.left["compiled"] = 0
        suite.spent["compiling"] = sum(estimate.spent.values())
    shape_name = ""
    for point, kernels in todo:
        if point.shape_name != shape_name:  # weights of two shapes would not fit every GPU
            suite.problems.forget()
            shape_name = point.shape_name
        suite.measure(point, kernels, baselines.get(point.op))
        save(estimate.left["timed"] - 1)
        stepped("timed", point)
    if suite.spent:
        progress.note("seconds: " + ", ".join(f"{what} {seconds:.0f}" for what, seconds in suite.spent.items()))
