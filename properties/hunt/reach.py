"""How far a hunt reached: up to which size each dimension was judged, what was not, and whether that was enough."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from moeracle.ref.errors import require

from ..cases.case import Case
from ..cases.optable import OPS
from .effort import HuntResult
from .shard import Shard

_DEMAND = re.compile(r"\s*([A-Za-z])\s*(>=|<=)\s*(\d+)\s*")


def reach(result: HuntResult) -> dict[str, tuple[int, int]]:
    """Return the smallest and the largest size of each dimension among the cases that were judged."""
    sizes: dict[str, list[int]] = {}
    for verdict in result.judged:
        for letter, size in Case.parse(verdict.case).dims:
            if size >= 0:  # G-1, one group a row, is no size
                sizes.setdefault(letter, []).append(size)
    return {letter: (min(of), max(of)) for letter in OPS[result.op].dims if (of := sizes.get(letter))}


def skipped_share(result: HuntResult) -> float:
    """Return which part of the cases that were looked at was skipped, or proved nothing."""
    skipped = result.skipped.total()
    return skipped / max(1, skipped + len(result.judged))


def describe(result: HuntResult) -> str:
    """Say in one line up to which sizes a kernel was judged, and what share of its cases was not."""
    sizes = " ".join(f"{letter}={most:,}" for letter, (_, most) in reach(result).items()) or "nothing"
    words = {flag for verdict in result.judged for flag in Case.parse(verdict.case).flags}
    op = OPS[result.op]
    never = [f"+{word}" for word in op.routing_flags + op.data_flags if word not in words]
    left = f"; never with {' '.join(never)}" if never else ""
    return f"judged up to {sizes}{left}; {100 * skipped_share(result):.0f} % of its cases skipped"


def check_demands(demands: Sequence[str], most_skipped: float | None, prefix: str = "--") -> None:
    """Raise ValueError in one line for a demand that is none: "T>=4096", "K<=16", or a share of skipped cases 0..1.

    Args:
        demands, most_skipped: as in `unmet`.
        prefix: of the options' names.
    """
    for text in demands:
        require(_DEMAND.fullmatch(text) is not None, f"{prefix}require: got {text!r}, must be like T>=4096 or K<=16")
    share = most_skipped
    require(share is None or 0 <= share <= 1, f"{prefix}max-skipped: got {share}, must be a share, 0 to 1")


def check_shard(
    shard: Shard, given: bool, demands: Sequence[str], most_skipped: float | None, prefix: str = "--"
) -> None:
    """Raise ValueError in one line for what one part of the cases cannot answer.

    Args:
        shard: the part; all there is can answer anything.
        given: whether the cases were named.
        demands, most_skipped: as in `unmet`.
        prefix: of the options' names.
    """
    others = {"case": given, "require": demands, "max-skipped": most_skipped is not None}
    asked = next((name for name, there in others.items() if there and shard.of > 1), None)
    require(asked is None, f"{prefix}shard: goes without {prefix}{asked}: one part of the cases does not answer that")


def unmet(result: HuntResult, demands: Sequence[str], most_skipped: float | None) -> list[str]:
    """Return the demands that a hunt did not meet, each in words; a dimension that the op lacks demands nothing.

    Args:
        result: of a hunt.
        demands: "T>=4096": a case with T of 4096 or more was judged.
        most_skipped: the largest share of cases that may be skipped; None: any.
    """
    sizes, missed = reach(result), []
    for text in demands:
        letter, sign, size = _DEMAND.fullmatch(text).groups()  # type: ignore[union-attr]
        if letter not in OPS[result.op].dims:
            continue
        least, most = sizes.get(letter, (0, 0))
        if letter not in sizes or (most < int(size) if sign == ">=" else least > int(size)):
            judged = f"from {least:,} to {most:,}" if letter in sizes else "nowhere"
            missed.append(f"{text}: {letter} was judged {judged}")
    share = skipped_share(result)
    if most_skipped is not None and share > most_skipped:
        missed.append(f"{100 * share:.0f} % of its cases were skipped, may be {100 * most_skipped:.0f} %")
    return missed


def as_dict(result: HuntResult) -> dict[str, Any]:
    """Return plain values for JSON."""
    return {"sizes": {letter: list(ends) for letter, ends in reach(result).items()}, "skipped": skipped_share(result)}
