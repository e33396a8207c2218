"""The benchmark suite: judge each kernel on a problem's very tensors, then time the legal ones in turn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from moeracle.bench.judge import Judged, Keeping, complaint_when_timed, elsewhere, examine, key_of, timed
from moeracle.bench.problems import Point, Problems, rotation, work_of
from moeracle.isolate.remote_bench import HeldElsewhere
from moeracle.kernels.bench.cases import WITH_PARTS, mean_work
from moeracle.kernels.bench.report import row
from moeracle.kernels.bench.timing import Launch, Prepared, Timer, Times, compare, launches, ratios
from moeracle.kernels.toolchain.jit_arguments import arguments_of
from moeracle.properties.cases.case import Problem
from moeracle.properties.common.endings import Ended
from moeracle.properties.common.guard import same_bits
from moeracle.properties.judge import judge
from moeracle.target.declaration import Kernel

if TYPE_CHECKING:
    from moeracle.kernels.bench.layer_problem import LayerProblem

STEP = "step"  # a part: routing, alignment, layer and sum
STAGE_OF = {"gemm1": "a", "gemm2": "y"}  # the judged stage that a part writes; the others write out


@dataclass
class Suite:
    """A run of the benchmark.

    Args:
        timer: the clock.
        ceilings: gbs and tflops of the device, measured in this run.
        device: where.
        cache_bytes: of its last-level cache.
        rounds, seconds: of measuring each point.
        launches: also count the GPU kernels of one call.
        parts: also time the parts of a layer that has them, alignments made before.
        peers: microseconds of such a layer by another implementation, by shape and T.
        note: called with one line for each point.
        found: rows so far; illegal and skipped: (kernel, case, why).
        spent: seconds by what they went into.
    """

    timer: Timer
    ceilings: Mapping[str, float]
    device: str = "cuda"
    cache_bytes: int = 50 << 20
    rounds: int = 30
    seconds: float = 0.3
    launches: bool = False
    parts: bool = False
    peers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: Callable[[str], None] = lambda line: None
    found: list[dict[str, Any]] = field(default_factory=list)
    illegal: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.problems = Problems(self.device)

    def measure(self, point: Point, kernels: Sequence[Kernel], against: Kernel | None = None) -> list[dict[str, Any]]:
        """Judge and time kernels at one point; return the new rows, which are also kept in `found`."""
        with self._counted("making tensors"):
            problems = rotation(self.problems, point, self.cache_bytes)
        with self._counted("judging"):
            verdicts = examine([*kernels, *([against] if against is not None else [])], problems)
        legal = [k for k in kernels if self._legal(k, verdicts[key_of(k)])]
        other = against if against is not None and self._legal(against, verdicts[key_of(against)]) else None
        if not legal:
            return []
        work = mean_work([work_of(p) for p in problems])
        named = {k.name: k for k in legal} | ({f"{other.name} ": other} if other else {})
        sides: dict[str, Any] = {}
        for name, k in named.items():
            calls = [Launch(timed(k), tuple(p.args.values())) for p in problems]
            sides[name] = verdicts[key_of(k)].held or calls
        blocks = {k.name: {} if elsewhere(k) else launched_tile(sides[k.name][0]) for k in legal}
        with self._counted("timing"):
            times, notes, prepared = self._timed(sides)
        with self._counted("judging"):
            whys = {
                name: complaint_when_timed(k, problems[0], _first(sides[name]), prepared[name])
                if name in prepared
                else f"when it was timed: {sides[name].ended}"
                for name, k in named.items()
            }
        legal = [k for k in legal if self._legal(k, Judged(str(problems[0].case), illegal=whys[k.name]))]
        if other and not self._legal(other, Judged(str(problems[0].case), illegal=whys[f"{other.name} "])):
            other = None
        new = []
        for k in legal:
            tile = blocks[k.name]
            about = self._about(point, k, len(problems), tile, notes.get(k.name, ""))
            baseline: tuple[str, Times] | None = (other.name, times[f"{other.name} "]) if other else None
            found = row(about, work, times[k.name], self.ceilings, tile.get("BLOCK_M"), baseline)
            if self.launches:
                found["launches"] = _launches(sides[k.name])
                if other is not None:
                    found["against"]["launches"] = _launches(sides[f"{other.name} "])
            if self.parts and not elsewhere(k) and getattr(k.fn, "__name__", "") in WITH_PARTS:
                found |= self._parts(point, k, problems, other)
            new.append(found)
        self.found += new
        return new

    def _timed(self, sides: Mapping[str, Any]) -> tuple[Mapping[str, Times], Mapping[str, str], Mapping[str, Prepared]]:
        """Time all sides in turn; what ends its process, or raises there, is left out and keeps its `ended`."""
        left = dict(sides)
        while left:
            keeping = Keeping(self.timer)
            try:
                times, notes = compare(keeping, left, self.rounds, self.seconds)
                return times, notes, dict(zip(left, keeping.prepared, strict=True))
            except Ended:
                left = {name: calls for name, calls in left.items() if not getattr(calls, "ended", "")}
        return {}, {}, {}

    def _parts(
        self, point: Point, kernel: Kernel, problems: Sequence[Problem], against: Kernel | None
    ) -> dict[str, Any]:
        """Time a layer's parts, each of which must have the bits of the stage that was judged, or it is illegal.

        A step chooses router weights of its own, so its result is not the judged one's. Parts of the second
        implementation, where it has any, are judged and take turns with ours.
        """
        layer, stages = layer_of(problems), kernel.fn(*problems[0].args.values())
        calls = layer.parts()
        wrote = {name: of_part[0]() for name, of_part in calls.items()} | {"gemm1": layer.a, "gemm2": layer.y}
        checked = {name: got for name, got in wrote.items() if name != STEP}
        wrong = [name for name, got in checked.items() if not same_bits(got, stages[STAGE_OF.get(name, "out")])]
        for name in wrong:
            why = f"illegal: {name} gives other bits than the layer, which was judged"
            self.illegal.append((kernel.name, str(point.case()), why))
        timed_parts: dict[str, Any] = {name: of_part for name, of_part in calls.items() if name not in wrong}
        theirs = self._their_parts(against, problems) if against is not None else {}
        timed_parts |= {f"{name} {how} ": of_part for (name, how), of_part in theirs.items()}
        with self._counted("timing parts"):
            times, _ = compare(self.timer, timed_parts, self.rounds, self.seconds)
        found: dict[str, Any] = {"parts": {name: of_part.us for name, of_part in times.items() if name in calls}}
        for name in dict.fromkeys(name for name, _ in theirs):
            us = {how: times[f"{name} {how} "] for of, how in theirs if of == name}
            how = min(us, key=lambda how: us[how].us)
            ratio = ratios(times[name], us[how]).us if name in times else None
            found.setdefault("against_parts", {})[name] = {"us": us[how].us, "how": how, "ratio": ratio}
        peer = self.peers.get(point.shape_name, {}).get(str(point.T))
        if peer is not None and "aligned" in times:
            found |= {"peer": peer, "peer_ratio": peer / times["aligned"].us}
        return found

    def _their_parts(self, against: Kernel, problems: Sequence[Problem]) -> dict[tuple[str, str], Any]:
        """Return the second implementation's calls by (part of ours, how), those that are legal."""
        module = sys.modules.get(getattr(against.fn, "__module__", ""))
        make = getattr(module, "BENCH_PARTS", {}).get(getattr(against.fn, "__name__", ""))
        if make is None or elsewhere(against) or not against.module.startswith("moeracle."):
            return {}
        found = {}
        for (name, how), calls in make(problems).items():
            output = calls[0]()
            verdict = None if name == STEP else judge(problems[0], output, against.contract.unscheduled, explain=False)
            if verdict is not None and verdict.status == "illegal":
                self.illegal.append((against.name, str(problems[0].case), f"illegal: {name} {how}: {verdict.reason}"))
            else:
                found[name, how] = calls
        return found

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.spent[what] = self.spent.get(what, 0.0) + time.monotonic() - start

    def _legal(self, kernel: Kernel, verdict: Judged) -> bool:
        """Whether to time a kernel; if not, write down why."""
        if verdict.skipped:
            self.skipped.append((kernel.name, verdict.case, verdict.skipped))
        if verdict.illegal:
            self.illegal.append((kernel.name, verdict.case, verdict.illegal))
            self.note(f"{kernel.name} is not timed: {verdict.illegal}")
        return verdict.ok

    def _about(self, point: Point, kernel: Kernel, count: int, tile: dict[str, Any], note: str) -> dict[str, Any]:
        about: dict[str, Any] = {"kernel": kernel.name, "op": point.op, "what": point.what, "shape": point.shape_name}
        case = point.case()
        about |= {"case": str(case), "archetype": point.archetype, "T": point.T, "rotations": count}
        about |= {"block": case.sizes["B"]} if "B" in case.sizes else {}  # of the alignment, given or chosen
        return about | {"legal": True, "tile": tile, "note": note}


def _first(calls: Any) -> Launch | HeldElsewhere:
    return calls if isinstance(calls, HeldElsewhere) else calls[0]


def _launches(calls: Any) -> int | None:
    return calls.launches() if isinstance(calls, HeldElsewhere) else launches(calls[0])


def layer_of(problems: Sequence[Problem]) -> LayerProblem:
    """Return the problems of one point of moe_w4a16, which share their weights, as a layer whose parts can be timed."""
    from moeracle.kernels.bench.layer_problem import LayerProblem

    every = [problem.args for problem in problems]
    routed = [(args["x"], args["topk_weights"], args["topk_ids"]) for args in every]
    return LayerProblem(every[0]["w13"], every[0]["w2"], routed)


def launched_tile(run: Callable[[], Any]) -> dict[str, Any]:
    """Run a call once and return the compile-time choices of its first Triton launch with a tile: BLOCK_M x BLOCK_N.

    {"kernel", "BLOCK_M", …, "num_warps"}; empty where nothing of the kind was launched.
    """
    if "triton" not in sys.modules:
        run()
        return {}
    from triton.runtime.jit import JITFunction

    seen: list[dict[str, Any]] = []
    original = JITFunction.run

    def watched(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:
        constants = arguments_of(self, args, options)[1]
        rows = constants.get("BLOCK_M", constants.get("BM"))
        if isinstance(rows, int) and ("BLOCK_N" in constants or "BN" in constants):  # not what only moves rows
            constants["BLOCK_M"] = rows
            plain = {k: v for k, v in constants.items() if isinstance(v, (int, bool, str))}
            seen.append({"kernel": self.__name__, **plain, "num_warps": options.get("num_warps")})
        return original(self, *args, grid=grid, warmup=warmup, **options)

    with mock.patch.object(JITFunction, "run", watched):
        run()
    return seen[0] if seen else {}
