"""The problems of a benchmark's point in a kernel's process, as the judge sees them: results cross as bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from moeracle.kernels.bench.timing import Prepared
from moeracle.properties.cases.case import Problem
from moeracle.properties.common.endings import Ended
from moeracle.target.declaration import Kernel

from .frames import WireError
from .remote import MOST_SECONDS, Remote
from .wire import Inputs, arguments, read_at, write_at

NOTHING_TIMED = 3  # questions of no run, for what a question itself takes
MOST_NOTE = 200
LEAST = 0.5  # of what the judge's clock saw that a time may be


class HeldElsewhere:
    """One kernel and the problems of one point, which its process holds.

    Args:
        kernel: whose function is a `Remote`.
        problems: on this process's device; what they share, they share there.
    Raises:
        Ended: its process ended.
    """

    def __init__(self, kernel: Kernel, problems: Sequence[Problem]) -> None:
        assert isinstance(kernel.fn, Remote)
        self.fn, self.problems, self.ended, self.question = kernel.fn, list(problems), "", 0.0
        self.inputs = Inputs(0, shared=True)
        sent = [arguments(problem.args, self.inputs.place) for problem in problems]
        self.memory = self.fn.started().memory
        self.inputs.write(self.memory)
        self._asked("hold", "taking the problems", at=self.fn.at, problems=sent, used=self.inputs.end)
        self.fn.used = self.inputs.end

    def output(self, problem: Problem) -> Any:
        """Return what the kernel computes on one of the problems.

        Args:
            problem: one of them, the same object.
        Raises:
            Ended: it raised, or ended its process.
        """
        at = next(i for i, one in enumerate(self.problems) if one is problem)
        return self._output(self._asked("held", f"the call on {problem.case}", problem=at))

    def prepare(self) -> Prepared:
        """Let its process prepare the calls on all problems, and return them as a side that a clock can read.

        Raises:
            Ended: it raised, or ended its process.
        """
        answer = self._asked("prepare", "being prepared for the clock")
        self.question = min(self._round(0)[1] for _ in range(NOTHING_TIMED))
        note = str(answer.get("note"))[:MOST_NOTE]
        return Prepared(partial(self._round, 1), len(self.problems), bool(answer.get("captured")), note, self)

    def once(self, side: Prepared, times: int) -> float:
        """Return microseconds a call of so many runs there: what its process says, within what this one's clock saw.

        Raises:
            Ended: it raised, or ended its process.
        """
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        said, seen = self._round(times)
        return max(said, LEAST * (seen - self.question) / (max(1, times) * side.calls))

    def _round(self, times: int) -> tuple[float, float]:
        started = time.perf_counter()
        said = self._asked("round", "being timed", times=times).get("us")
        seen = (time.perf_counter() - started) * 1e6
        if not isinstance(said, (int, float)) or not math.isfinite(said) or said < 0:
            raise Ended("exit", "answered with a time that is none")
        return float(said), seen

    def written(self) -> str:
        """Say what is wrong if its arguments are no longer what they were, or cannot be read; "" if they are."""
        try:
            self._asked("inputs", "reading its inputs")
            same = all(torch.equal(read_at(self.memory, at, len(kept)), kept) for _, kept, at in self.inputs.placed)
        except (Ended, WireError) as error:
            return f"its inputs cannot be read: {error}"
        return "" if same else "wrote into its inputs, which must be unchanged"

    def again(self) -> Any:
        """Hand over the arguments as they are now, run what was timed once more, and return what the first call stored.

        Raises:
            Ended: it raised, or ended its process.
        """
        for whole, kept, at in self.inputs.placed:
            now = whole.cpu()
            if now.data_ptr() == kept.data_ptr() or not torch.equal(now, kept):
                write_at(self.memory, at, now)
        return self._output(self._asked("again", "the launches that were timed"))

    def launches(self) -> int | None:
        """Return how many GPU kernels one call launches there; None where nothing can count them."""
        try:
            count = self._asked("launches", "counting launches").get("launches")
        except Ended:
            return None
        return count if isinstance(count, int) else None

    def _asked(self, what: str, during: str, **more: Any) -> dict[str, Any]:
        try:
            return self.fn.ask({"do": what, **more}, MOST_SECONDS, during)
        except Ended as ended:
            self.ended = ended.lines[0]
            raise

    def _output(self, answer: dict[str, Any]) -> Any:
        try:
            return self.fn.output(answer)
        except WireError as error:
            self.ended = f"answered with {error}"
            raise Ended("exit", self.ended) from None
