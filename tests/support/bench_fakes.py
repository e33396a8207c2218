"""A clock of our own, and layers in torch, for tests of the benchmark's harness."""

from __future__ import annotations

from collections.abc import Sequence

from moeracle.bench.problems import Point
from moeracle.bench.suite import Suite
from moeracle.kernels.bench.cases import Shape
from moeracle.kernels.bench.timing import Prepared
from moeracle.target.declaration import make_kernel

from .simulate import Simulated

TINY = Shape(8, 64, 32, 2, 32)
CEILINGS = {"gbs": 1000.0, "tflops": 1.0}


class Clock:
    """Says the microseconds it is given, one list a side, and counts what it was asked to run."""

    def __init__(self, *sides: Sequence[float]) -> None:
        self.sides, self.calls = sides, 0

    def prepare(self, calls):
        for call in calls:
            call()
        self.calls += len(calls)

        def run() -> None:
            for call in calls:
                call()

        return Prepared(run, len(calls))

    def measure(self, sides, rounds, seconds):
        return [list(self.sides[i % len(self.sides)]) for i in range(len(sides))]


def layer(*args):
    """A legal layer with all its stages, slowly, in torch."""
    return Simulated("moe_w4a16", order="matmul", stages="hay", silu="torch").fn(*args)


def half(*args):
    """Forgets the second half of the columns, as the pull request that this repository grew from did."""
    stages = layer(*args)
    stages["h"][:, stages["h"].shape[1] // 2 :] = 0
    return stages


LEGAL = make_kernel(layer, "moe_w4a16", layout="exllama", name="mine")
ILLEGAL = make_kernel(half, "moe_w4a16", layout="exllama", name="broken")


def suite(*sides: Sequence[float], **fields) -> Suite:
    return Suite(Clock(*(sides or ([10.0, 11.0, 12.0],))), CEILINGS, "cpu", **{"cache_bytes": 0, **fields})


def point(T: int = 4, **fields) -> Point:
    return Point("moe_w4a16", "layer", "tiny", TINY, "zipf1", T, **fields)
