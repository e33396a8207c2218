"""Shrinking a failing case field by field, for cases that Hypothesis did not draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..cases.case import Case
from ..cases.optable import OPS

__all__ = ["shrink"]

# A failure that survives the plain setting says that the fancy one had no part in it.
_PLAIN = {"routing": "uniform", "data": "normal"}
# A group of 1 or a block of 1 is smaller, but nobody's kernel; what goes wrong per group should stay visible.
_USUAL = {"G": (32,), "B": (16,)}


def smaller(case: Case) -> Iterator[Case]:
    """Yield the legal cases one step simpler than `case`: a dimension smaller, a modifier dropped, a field plain.

    Args:
        case: any case.
    """
    for change in _changes(case):
        try:
            yield case.replace(**change)
        except ValueError:
            continue  # Not every change leaves a legal case: K must stay a multiple of G, k at most E.


def _changes(case: Case) -> Iterator[dict[str, Any]]:
    for letter, size in case.dims:
        less = _USUAL.get(letter, (1, 8, 16, 32, 64, 128, size // 2, size - 8, size - 1))
        yield from ({letter: n} for n in dict.fromkeys(less) if 0 < n < size)
    for flag in sorted(case.flags):
        yield {"flags": case.flags - {flag}}
    if case.pad:
        yield {"pad": 0}
    for name, plain in _PLAIN.items():
        if getattr(case, name) != plain and plain in getattr(OPS[case.op], f"{name}s" if name == "routing" else name):
            yield {name: plain}


def shrink(case: Case, still_fails: Callable[[Case], bool]) -> Case:
    """Return the smallest case on a greedy walk from `case` on which `still_fails` holds.

    Args:
        case: a failing case.
        still_fails: judges one case; it also ends the walk, by saying False once what it may cost is spent.
    Returns:
        A case that fails; `case` itself where nothing smaller does.
    """
    while True:
        step = next((c for c in smaller(case) if still_fails(c)), None)
        if step is None:
            return case
        case = step
