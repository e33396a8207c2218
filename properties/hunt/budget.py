"""A time that a run may take: when it is over, no further case begins, and the run says what was left."""

from __future__ import annotations

import time
from dataclasses import dataclass

from moeracle.ref.errors import require

__all__ = ["TimeBudget", "time_budget"]


@dataclass(frozen=True)
class TimeBudget:
    """Called, it says whether the time is over; other processes of the same machine may ask, too.

    Args:
        seconds: how long.
        until: of the monotonic clock.
    """

    seconds: float
    until: float

    def __call__(self) -> bool:
        return time.monotonic() >= self.until


def time_budget(seconds: float | None, option: str = "--time-budget") -> TimeBudget | None:
    """Return a budget that begins now; None: none.

    Args:
        seconds: how long.
        option: what it was given by, for the message.
    Returns:
        TimeBudget, or None.
    Raises:
        ValueError: it is not above 0.
    """
    if seconds is None:
        return None
    require(seconds > 0, f"{option}: got {seconds}, must be above 0")
    return TimeBudget(seconds, time.monotonic() + seconds)
