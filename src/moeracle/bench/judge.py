"""What the judge says of kernels on a benchmark's own tensors, before any of them is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from moeracle.isolate.remote_bench import HeldElsewhere
from moeracle.kernels.bench.timing import Call, Launch, Prepared, Timer, in_turn
from moeracle.properties.cases.case import Problem
from moeracle.properties.cases.record import record_of
from moeracle.properties.common.endings import Ended
from moeracle.properties.common.guard import same_bits
from moeracle.properties.judge import judge
from moeracle.properties.trial.call import call, ending_of, wait_for_device
from moeracle.ref.contracts.contract import Contract
from moeracle.target.declaration import Kernel


@dataclass(frozen=True)
class Judged:
    """What was found about one kernel on the problems of one point.

    Args:
        case: the first problem's text, or that of the one on which it is illegal.
        skipped: why the kernel does not take the case, or "".
        illegal: what is wrong, or "".
        held: the problems in the kernel's own process, where it runs in one.
    """

    case: str
    skipped: str = ""
    illegal: str = ""
    held: HeldElsewhere | None = None

    @property
    def ok(self) -> bool:
        """Whether the kernel may be timed."""
        return not self.skipped and not self.illegal


def elsewhere(kernel: Kernel) -> bool:
    """Whether a kernel runs in a process of its own, so that nothing it says of itself is trusted."""
    return hasattr(kernel.fn, "remote")


def key_of(kernel: Kernel) -> tuple[str, str, bool]:
    """Return what a kernel is known by: two files may have one of the same name."""
    return kernel.module, kernel.name, elsewhere(kernel)


def timed(kernel: Kernel) -> Callable[..., Any]:
    """Return what is timed: the kernel's function, or of our registry the same one without stages (`Entry.given`)."""
    found: Callable[..., Any] = kernel.fn if elsewhere(kernel) else getattr(kernel.fn, "timed", kernel.fn)
    return found


def examine(kernels: Sequence[Kernel], problems: Sequence[Problem]) -> dict[tuple[str, str, bool], Judged]:
    """Judge kernels on every problem of one point; a dense op's problems after the first are copies of it.

    A kernel whose result has the bits of one that was judged just before, under the same contract, is as legal as that.

    Args:
        kernels: of one op.
        problems: the point's rotation.
    Returns:
        By the kernel's key.
    """
    case = problems[0].case
    unique = {key_of(kernel): kernel for kernel in kernels}
    found = {key: _taken(kernel, problems) for key, kernel in unique.items()}
    for problem in problems if "k" in case.sizes else problems[:1]:
        seen: list[tuple[Contract, Any]] = []
        for key, kernel in unique.items():
            why = complaint(kernel, problem, seen, found[key].held) if found[key].ok else None
            if why is not None:
                found[key] = Judged(str(problem.case), illegal=why)
    return found


def _taken(kernel: Kernel, problems: Sequence[Problem]) -> Judged:
    """Ask a kernel whether it takes the case, and hand the problems to its process where it has one."""
    text = str(problems[0].case)
    try:
        why = kernel.why_not(problems[0].case)
        return Judged(text, why or "", held=HeldElsewhere(kernel, problems) if elsewhere(kernel) and not why else None)
    except Ended as ended:
        return Judged(text, illegal=ended.lines[0])


def complaint(
    kernel: Kernel,
    problem: Problem,
    seen: list[tuple[Contract, Any]] | None = None,
    held: HeldElsewhere | None = None,
) -> str | None:
    """Judge a kernel on a problem's own tensors; return None if it is legal, else why not, in one line.

    The contract's schedule is left out: the interval says as well whether a kernel may be timed, and much sooner. Where
    another function is timed than was judged, its result must have the same bits.

    Args:
        kernel: what to run.
        problem: its arguments.
        seen: what was legal on this problem so far, with its contract; takes this one's result.
        held: the problems in the kernel's own process, where it runs in one.
    """
    seen = [] if seen is None else seen
    rules = kernel.contract.unscheduled
    fn = timed(kernel)
    try:
        output = call(kernel, problem.args, 0) if held is None else held.output(problem)
        again = output if fn is kernel.fn else call(replace(kernel, fn=fn), problem.args, 1)
    except Exception as error:  # whatever a kernel raises is a finding
        return ending_of(error)[1][0]
    if not any(rules == of_other and _same(output, other) for of_other, other in seen):
        verdict = judge(problem, output, rules, explain=False)
        if not verdict.ok:
            return f"{verdict.status}: {verdict.reason or ' '.join(verdict.summary[:1]) or verdict.tier}"
        seen.append((rules, output))
    if again is not output and not same_bits(output["out"], again):
        return f"illegal: {fn.__name__}, which is timed, gives other bits than {kernel.name}, which was judged"
    return None


class Keeping:
    """A clock that keeps what it has prepared.

    Args:
        timer: the clock.
    """

    def __init__(self, timer: Timer) -> None:
        self.timer, self.prepared = timer, list[Prepared]()

    def prepare(self, calls: Sequence[Call] | HeldElsewhere) -> Prepared:
        """Prepare one implementation, as the clock does, or the process that holds it."""
        self.prepared.append(calls.prepare() if isinstance(calls, HeldElsewhere) else self.timer.prepare(calls))
        return self.prepared[-1]

    def measure(self, sides: Sequence[Prepared], rounds: int, seconds: float) -> list[list[float]]:
        """Measure, as the clock does; in turn where one is in another process."""
        if any(side.clock is not None for side in sides):
            return in_turn(self, sides, rounds, seconds)
        return self.timer.measure(sides, rounds, seconds)

    def once(self, side: Prepared, times: int) -> float:
        """Measure one side once, as the clock does."""
        return self.timer.once(side, times)


def complaint_when_timed(kernel: Kernel, problem: Problem, launch: Launch | HeldElsewhere, side: Prepared) -> str:
    """Judge what the timed launches store for inputs that they have not seen; return what is wrong, or "".

    Every floating point argument changes its sign after the launches were prepared and timed: a kernel that computed
    once and was timed giving that back, or whose graph holds nothing, is wrong then. This library's own are left out.

    Args:
        kernel: what was judged.
        problem: the first of those that were timed.
        launch: its call, or all of them where they are in another process.
        side: all of them, as they were timed.
    """
    if kernel.module.startswith("moeracle.") and not elsewhere(kernel):
        return ""
    if isinstance(launch, HeldElsewhere) and (wrote := launch.written()):
        return f"illegal: {wrote}"
    weights = record_of(problem.case.op).weight_arguments
    changed = [
        value
        for name, value in problem.args.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name not in weights
    ]
    for value in changed:
        value.neg_()
    try:
        if isinstance(launch, HeldElsewhere):
            output = launch.again()
        else:
            side.run()
            wait_for_device()
            output = launch.last
        verdict = judge(problem, output, kernel.contract.unscheduled, explain=False)
    except Exception as error:  # whatever a kernel raises is a finding
        return f"when it was timed again: {ending_of(error)[1][0]}"
    finally:
        for value in changed:
            value.neg_()
    if verdict.status != "illegal":
        return ""
    return f"illegal as it was timed, on inputs that came later: {verdict.reason or ' '.join(verdict.summary[:1])}"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):  # a layer's stages
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and same_bits(a, b)
