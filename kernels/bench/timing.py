"""Timing: each implementation's calls in one CUDA graph, implementations in turn, medians over rounds.

A graph has no gaps between launches in which clocks would sag, and no Python. The calls of one graph are the same op
on rotating routings, so that weights come from memory. Rounds go A, B, A, B, …: what drifts, drifts for both, and their
ratio is taken pair by pair. Anything with `prepare` and `measure` can stand in for the GPU's clock, as tests do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import torch

Call = Callable[[], Any]


@dataclass
class Prepared:
    """One implementation, ready to be timed.

    Args:
        run: issues the whole rotation once; does not wait.
        calls: how many calls that is.
        captured: it is a graph's replay; if not, `note` says why.
        clock: reads it where it runs in another process; None: the clock that prepared it.
    """

    run: Call
    calls: int
    captured: bool = True
    note: str = ""
    clock: Clock | None = None


class Clock(Protocol):
    """What reads the time of one implementation."""

    def once(self, side: Prepared, times: int) -> float: ...


class Timer(Clock, Protocol):
    """A clock that prepares what it reads, and lets implementations take turns."""

    def prepare(self, calls: Sequence[Call]) -> Prepared: ...
    def measure(self, sides: Sequence[Prepared], rounds: int, seconds: float) -> list[list[float]]: ...


class Launch:
    """One call of what is timed, which keeps what it returned last: under a graph, what each replay writes into.

    Args:
        fn: what is timed.
        args: its arguments, in order.
    """

    def __init__(self, fn: Callable[..., Any], args: Sequence[Any]) -> None:
        self.fn, self.args = fn, tuple(args)
        self.last: Any = None

    def __call__(self) -> Any:
        self.last = self.fn(*self.args)
        return self.last


class GraphTimer:
    """CUDA events around graph replays, on one device.

    Args:
        device: e.g. "cuda".
        least_us: a measurement lasts at least this long, or the event's own resolution would show.
    """

    def __init__(self, device: str | torch.device, least_us: float = 400.0) -> None:
        self.device = torch.device(device)
        self.least_us = least_us

    def prepare(self, calls: Sequence[Call]) -> Prepared:
        """Warm up every call, then capture them all in one graph; a kernel that cannot be captured runs as it is."""
        for call in calls:  # compiles, and allocates what the caching allocator will keep
            call()
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(stream):
                for call in calls:
                    call()
            torch.cuda.synchronize(self.device)
            with torch.cuda.graph(graph, stream=stream):
                kept = [call() for call in calls]
        except RuntimeError as error:
            torch.cuda.synchronize(self.device)
            first = str(error).strip().splitlines()[0]

            def run() -> None:
                for call in calls:
                    call()

            return Prepared(run, len(calls), False, f"no CUDA graph: {first}")

        def replay() -> None:
            graph.replay()

        replay.kept = kept  # type: ignore[attr-defined]  # the graph writes into these
        return Prepared(replay, len(calls))

    def measure(self, sides: Sequence[Prepared], rounds: int, seconds: float) -> list[list[float]]:
        """Return microseconds a call, one list a side, one number a round; sides take turns within a round.

        Args:
            sides: implementations.
            rounds: at least 3.
            seconds: fewer rounds if they would take longer than this.
        """
        repeats, rounds = planned([repeats_of(self, side, self.least_us) for side in sides], rounds, seconds)
        marks = [[_events() for _ in sides] for _ in range(rounds)]
        for of_round in marks:
            for side, times, (start, end) in zip(sides, repeats, of_round, strict=True):
                start.record()
                for _ in range(times):
                    side.run()
                end.record()
        torch.cuda.synchronize(self.device)
        return [
            [of_round[i][0].elapsed_time(of_round[i][1]) * 1e3 / (repeats[i] * side.calls) for of_round in marks]
            for i, side in enumerate(sides)
        ]

    def once(self, side: Prepared, times: int) -> float:
        """Return microseconds a call of so many runs, issued back to back and waited for."""
        start, end = _events()
        start.record()
        for _ in range(times):
            side.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / (max(1, times) * side.calls)

    def one_by_one(self, side: Prepared, times: int) -> list[float]:
        """Return microseconds a call of each run, the next begun when the one before has ended."""
        return [self.once(side, 1) for _ in range(times)]


class HostTimer:
    """The host's clock, for calls that have ended when they return."""

    def prepare(self, calls: Sequence[Call]) -> Prepared:
        """Run every call once."""

        def run() -> None:
            for call in calls:
                call()

        run()
        return Prepared(run, len(calls))

    def once(self, side: Prepared, times: int) -> float:
        """Return microseconds a call of so many runs."""
        start = perf_counter()
        for _ in range(times):
            side.run()
        return (perf_counter() - start) * 1e6 / (max(1, times) * side.calls)

    def measure(self, sides: Sequence[Prepared], rounds: int, seconds: float) -> list[list[float]]:
        """Return microseconds a call, as `GraphTimer.measure` does."""
        return in_turn(self, sides, rounds, seconds)


def repeats_of(clock: Clock, side: Prepared, least_us: float = 400.0) -> tuple[int, float]:
    """Warm up for a few milliseconds; return how many runs make one measurement, and how many microseconds it takes.

    Args:
        clock: reads the time.
        side: what is run.
        least_us: a measurement lasts at least this long.
    """
    runs, spent = 1, 0.0
    while spent < 3000.0 and runs < 4096:
        spent = clock.once(side, runs) * runs * side.calls
        if spent < 3000.0:
            runs *= 2
    one = max(spent / runs, 1e-3)
    times = max(1, round(least_us / one))
    return times, times * one


def planned(repeats: Sequence[tuple[int, float]], rounds: int, seconds: float) -> tuple[list[int], int]:
    """Return how many runs of each side make one measurement, and how many rounds fit into the time; at least 3.

    Args:
        repeats: of `repeats_of`, one a side.
        rounds: at most.
        seconds: of measuring.
    """
    one_round = sum(us for _, us in repeats)
    return [times for times, _ in repeats], max(3, min(rounds, int(seconds * 1e6 / max(one_round, 1.0))))


def in_turn(clock: Clock, sides: Sequence[Prepared], rounds: int, seconds: float) -> list[list[float]]:
    """Measure sides in turn, each after the one before has ended: they may be in different processes.

    Args:
        clock: of the sides that have none of their own.
        sides, rounds, seconds: as of `GraphTimer.measure`.
    Returns:
        Microseconds a call, one list a side, one number a round.
    """
    clocks = [side.clock or clock for side in sides]
    repeats, rounds = planned([repeats_of(own, side) for own, side in zip(clocks, sides, strict=True)], rounds, seconds)
    by_round = [
        [own.once(side, times) for own, side, times in zip(clocks, sides, repeats, strict=True)] for _ in range(rounds)
    ]
    return [list(of_side) for of_side in zip(*by_round, strict=True)]


def _events() -> tuple[Any, Any]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


@dataclass(frozen=True)
class Times:
    """Microseconds of one implementation: the median of its rounds, and the 10th and 90th percentile."""

    us: float
    low: float
    high: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Times:
        """Sum up the rounds of one implementation."""
        ordered = sorted(rounds)

        def percentile(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return cls(median(ordered), percentile(0.1), percentile(0.9), tuple(rounds))


def compare(
    timer: Timer, sides: Mapping[str, Any], rounds: int = 30, seconds: float = 1.0
) -> tuple[dict[str, Times], dict[str, str]]:
    """Time implementations of the same problem in turn.

    Args:
        timer: the clock.
        sides: each implementation's calls, one a rotated routing; or what else the clock prepares.
        rounds: how often each is measured.
        seconds: of measuring, at most about.
    Returns:
        Times by name, and a note by name where an implementation could not be captured in a graph.
    """
    prepared = {name: timer.prepare(calls) for name, calls in sides.items()}
    measured = timer.measure(list(prepared.values()), rounds, seconds)
    notes = {name: side.note for name, side in prepared.items() if side.note}
    return {name: Times.of(us) for name, us in zip(prepared, measured, strict=True)}, notes


def microseconds(calls: Sequence[Call], replays: int = 15) -> float:
    """Return the median time of one call on this process's GPU, all calls in one CUDA graph; each replay is waited for.

    What a user sees who launches one graph at a time: on an H200 2 to 8 us a graph, divided by its calls, above what
    `compare` says, which replays back to back.

    Args:
        calls: of one implementation, on rotating inputs.
        replays: how many are measured, after three that are not.
    Raises:
        RuntimeError: they cannot be captured.
    """
    timer = GraphTimer("cuda")
    side = timer.prepare(calls)
    if not side.captured:
        raise RuntimeError(side.note)
    return median(timer.one_by_one(side, 3 + replays)[3:])


def launches(call: Call) -> int | None:
    """Return how many GPU kernels one call launches, copies and fills included; None where nothing can count them."""
    call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    count = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
    return count or None


def ratios(ours: Times, theirs: Times) -> Times:
    """Return theirs / ours round by round: above 1, ours is faster."""
    return Times.of([b / a for a, b in zip(ours.rounds, theirs.rounds, strict=True)])


def ceilings(timer: Timer, device: str | torch.device, gib: float = 4.0, n: int = 8192) -> dict[str, float]:
    """Measure the two ceilings of a device: bytes a second of a copy and of a read, and bf16 matrix products.

    Args:
        timer: the clock.
        device: where.
        gib: bytes that are copied and read.
        n: of the square matrices, random, not zeros, which would run faster.
    Returns:
        {"copy_gbs", "read_gbs", "gbs" (the larger), "tflops"}.
    """
    words = int(gib * 2**30 / 4)
    source = torch.empty(words, dtype=torch.int32, device=device).random_(0, 1 << 30)
    target = torch.empty_like(source)
    a = torch.randn(n, n, device=device).to(torch.bfloat16)
    b = torch.randn(n, n, device=device).to(torch.bfloat16)
    calls = {
        "copy": [lambda: torch.add(source, 1, out=target)],  # a kernel: a graph's memory copy node is slower
        "read": [lambda: source.view(torch.float32).view(-1, 1 << 14 if words >= 1 << 14 else 1).amax(1)],
        "matmul": [lambda: a @ b],
    }
    times = {name: compare(timer, {name: side}, rounds=10)[0][name].us for name, side in calls.items()}
    nbytes = 4 * words
    copy, read = 2 * nbytes / times["copy"] / 1e3, nbytes / times["read"] / 1e3
    tflops = 2 * n**3 / times["matmul"] / 1e6
    return {"copy_gbs": copy, "read_gbs": read, "gbs": max(copy, read), "tflops": tflops}
