"""The benchmark suite: judge each kernel on a problem's very tensors, then time the legal ones in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from moeracle.bench_problems import Point, Problems, rotation, work_of
from moeracle.declaration import Kernel
from moeracle.kernels.bench_cases import TIMED, mean_work
from moeracle.kernels.bench_report import row
from moeracle.kernels.bench_timing import Timer, Times, compare
from moeracle.properties.guard import same_bits
from moeracle.properties.judge import judge
from moeracle.properties.problem import Problem
from moeracle.properties.trial import call, one_line


def timed(kernel: Kernel) -> Callable[..., Any]:
    """Return what is timed: the kernel's function, or its twin that keeps no stages (bench_cases.TIMED)."""
    module = sys.modules.get(getattr(kernel.fn, "__module__", ""))
    name = TIMED.get(getattr(kernel.fn, "__name__", ""), "")
    ours = getattr(kernel.fn, "__module__", "").startswith("moeracle.kernels.")
    return getattr(module, name, kernel.fn) if ours and name else kernel.fn


def complaint(kernel: Kernel, problem: Problem) -> str | None:
    """Judge a kernel on a problem's own tensors; return None if it is legal, else why not, in one line.

    The contract's schedule is left out: the interval says as well whether a kernel may be timed, and much sooner. Where
    another function is timed than was judged, its result must have the same bits.
    """
    rules = kernel.contract_for(problem.case)
    if rules.schedule is not None:
        rules = replace(rules, schedule=None, name=rules.name.partition(",schedule=")[0])
    fn = timed(kernel)
    try:
        output = call(kernel, problem.args, 0)
        again = output if fn is kernel.fn else call(replace(kernel, fn=fn), problem.args, 1)
    except (Exception, SystemExit) as error:  # whatever a kernel raises is a finding
        return f"raised {one_line(error)}"
    verdict = judge(problem, output, rules, explain=False)
    if not verdict.ok:
        return f"{verdict.status}: {verdict.reason or ' '.join(verdict.summary[:1]) or verdict.tier}"
    if again is not output and not same_bits(output["out"], again):
        return f"illegal: {fn.__name__}, which is timed, gives other bits than {kernel.name}, which was judged"
    return None


@dataclass
class Suite:
    """A run of the benchmark.

    Args:
        timer: the clock.
        ceilings: gbs and tflops of the device, measured in this run.
        device: where.
        cache_bytes: of its last-level cache.
        rounds, seconds: of measuring each point.
        note: told one line a point.
        found: rows so far; illegal and skipped: (kernel, case, why).
    """

    timer: Timer
    ceilings: Mapping[str, float]
    device: str = "cuda"
    cache_bytes: int = 50 << 20
    rounds: int = 30
    seconds: float = 0.3
    note: Callable[[str], None] = lambda line: None
    found: list[dict[str, Any]] = field(default_factory=list)
    illegal: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.problems = Problems(self.device)

    def measure(self, point: Point, kernels: Sequence[Kernel], against: Kernel | None = None) -> list[dict[str, Any]]:
        """Judge and time kernels at one point; return the new rows, which are also kept in `found`."""
        problems = rotation(self.problems, point, self.cache_bytes)
        work = mean_work([work_of(p) for p in problems])
        legal = [k for k in kernels if self._legal(k, problems)]
        other = against if against is not None and self._legal(against, problems) else None
        if not legal:
            return []
        named = {k.name: k for k in legal} | ({f"{other.name} ": other} if other else {})
        sides = {name: [_bound(k, p) for p in problems] for name, k in named.items()}
        blocks = {k.name: launched_tile(sides[k.name][0]) for k in legal}
        times, notes = compare(self.timer, sides, self.rounds, self.seconds)
        new = []
        for k in legal:
            tile = blocks[k.name]
            about = self._about(point, k, len(problems), tile, notes.get(k.name, ""))
            rival: tuple[str, Times] | None = (other.name, times[f"{other.name} "]) if other else None
            new.append(row(about, work, times[k.name], self.ceilings, tile.get("BLOCK_M"), rival))
        self.found += new
        return new

    def _legal(self, kernel: Kernel, problems: Sequence[Problem]) -> bool:
        case = problems[0].case
        reason = kernel.why_not(case)
        if reason is not None:
            self.skipped.append((kernel.name, str(case), reason))
            return False
        # A dense op's other problems are copies of the first.
        for problem in problems if "k" in case.sizes else problems[:1]:
            why = complaint(kernel, problem)
            if why is not None:
                self.illegal.append((kernel.name, str(problem.case), why))
                self.note(f"{kernel.name} is not timed: {why}")
                return False
        return True

    def _about(self, point: Point, kernel: Kernel, count: int, tile: dict[str, Any], note: str) -> dict[str, Any]:
        about: dict[str, Any] = {"kernel": kernel.name, "op": point.op, "what": point.what, "shape": point.shape_name}
        about |= {"case": str(point.case()), "archetype": point.archetype, "T": point.T, "rotations": count}
        return about | {"legal": True, "tile": tile, "note": note}


def _bound(kernel: Kernel, problem: Problem) -> Callable[[], Any]:
    args, fn = tuple(problem.args.values()), timed(kernel)
    return lambda: fn(*args)


def launched_tile(run: Callable[[], Any]) -> dict[str, Any]:
    """Run a call once and return the compile-time choices of its first Triton launch that has a BLOCK_M or BM.

    {"kernel", "BLOCK_M", …, "num_warps"}; empty where nothing of the kind was launched.
    """
    if "triton" not in sys.modules:
        run()
        return {}
    from triton.runtime.jit import JITFunction

    seen: list[dict[str, Any]] = []
    original = JITFunction.run

    def watched(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:
        given = dict(zip(self.arg_names, args, strict=False)) | options
        constants = {p.name: given.get(p.name, p.default) for p in self.params if p.is_constexpr}
        rows = constants.get("BLOCK_M", constants.get("BM"))
        if isinstance(rows, int):
            constants["BLOCK_M"] = rows
            plain = {k: v for k, v in constants.items() if isinstance(v, (int, bool, str))}
            seen.append({"kernel": self.__name__, **plain, "num_warps": options.get("num_warps")})
        return original(self, *args, grid=grid, warmup=warmup, **options)

    with mock.patch.object(JITFunction, "run", watched):
        run()
    return seen[0] if seen else {}
