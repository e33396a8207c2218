"""Choosing among a few by rounds in which they take turns: what drifts between two of them, drifts for both.

A GPU that works hard lowers its clock. Timed one after another, the first of two equal layers wins by whatever the
clock lost in between, 5 to 10 % on an H200 from 1024 tokens on; in rounds there and back again neither comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median
from typing import Any, Protocol, TypeVar

from moeracle.kernels.bench.timing import Call, Prepared

Name = TypeVar("Name", bound=Hashable)
NEAR, FINALISTS = 1.12, 6  # what is timed again, in turn: within what the clock drifts of the best, so many at most


class Clock(Protocol):
    """What times: GraphTimer, or what stands in for it."""

    def prepare(self, calls: Sequence[Call]) -> Prepared: ...
    def one_by_one(self, side: Prepared, times: int) -> list[float]: ...


def in_turn(
    clock: Clock, sides: Mapping[Name, Sequence[Call]], rounds: int = 15, warm_up: int = 2
) -> list[tuple[float, Name]]:
    """Return (median microseconds a call, name) of each side, fastest first.

    Args:
        clock: measures one run of a side at a time.
        sides: calls by name; all are prepared at once.
        rounds: in each of which every side is measured once, every other round in the opposite order.
        warm_up: rounds before them that are not counted.
    Raises:
        ValueError: rounds is less than 1.
        RuntimeError: a side cannot be captured in a graph: its time would be its launches'.
    """
    if rounds < 1:
        raise ValueError(f"rounds: got {rounds}, must be at least 1")
    prepared: dict[Name, Any] = {name: clock.prepare(calls) for name, calls in sides.items()}
    for side in prepared.values():
        if not side.captured:
            raise RuntimeError(side.note)
    times: dict[Name, list[float]] = {name: [] for name in prepared}
    order = list(prepared)
    for _ in range(warm_up + rounds):
        for name in order:
            times[name] += clock.one_by_one(prepared[name], 1)
        order.reverse()
    found = [(median(us[warm_up:]), name) for name, us in times.items()]
    return sorted(found, key=lambda each: each[0])


def close(measured: Sequence[tuple[float, Name]], within: float, most: int) -> list[Name]:
    """Return the names measured within a factor of the best, at most so many, fastest first."""
    ordered = sorted(measured, key=lambda each: each[0])
    return [name for us, name in ordered if us <= within * ordered[0][0]][:most]


def near_ones_again(
    clock: Clock, measured: Sequence[tuple[float, Name]], calls: Callable[[Name], Sequence[Call]], rounds: int = 15
) -> list[tuple[float, Name]]:
    """Measure those near the best again, in turn; return all, first those by their new figures, then the others.

    Args:
        clock: as in_turn's.
        measured: (microseconds, name), each timed by itself.
        calls: makes a name's calls.
        rounds: as in_turn's.
    """
    again = in_turn(clock, {name: calls(name) for name in close(measured, NEAR, FINALISTS)}, rounds)
    names = {name for _, name in again}
    return again + sorted((each for each in measured if each[1] not in names), key=lambda each: each[0])
