"""Charts as plain numbers for SVG: error over bound of one stage, and its course over several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .heat import number

LABELS = ("0", ".1", ".2", ".3", ".4", ".5", ".6", ".7", ".8", ".9", "1", "2", "10", "100", "∞")
WORDS = ("no error", *(f"{i / 10:.1f} to {(i + 1) / 10:.1f}" for i in range(10)))
WORDS += ("1 to 2", "2 to 10", "10 to 100", "above 100 or not finite")
BAR, GAP, TALL = 24, 3, 92
LEGAL_BINS = 11  # no error and ten tenths; what comes after them is illegal


def histogram(counts: Sequence[int]) -> dict[str, Any] | None:
    """Return the bars of one stage's distribution of error over bound, or None if it has none.

    Heights are square roots, and never below 3, so that a few illegal elements show beside a million legal ones.
    """
    total = sum(counts)
    if not total or len(counts) != len(WORDS):
        return None
    most = math.sqrt(max(counts))
    bars = []
    for i, count in enumerate(counts):
        high = max(3.0, TALL * math.sqrt(count) / most) if count else 0.0
        kind = "bad" if i >= LEGAL_BINS else "good"
        bars.append(
            {
                "x": i * (BAR + GAP),
                "y": TALL - high,
                "h": high,
                "class": kind,
                "label": LABELS[i],
                "title": f"{WORDS[i]}: {count:,} elements ({share(count, total)})",
            }
        )
    bad = sum(counts[LEGAL_BINS:])
    words = ", ".join(f"{WORDS[i]} {share(c, total)}" for i, c in enumerate(counts) if c)
    return {
        "bars": bars,
        "width": len(counts) * (BAR + GAP),
        "height": TALL + 18,
        "tall": TALL,
        "bar": BAR,
        "border": LEGAL_BINS * (BAR + GAP) - GAP / 2,
        "words": f"of {total:,} sampled elements: {words}",
        "bad": bad,
        "beyond": f"{bad:,} of {total:,} sampled elements beyond the bound",
    }


def share(part: int, whole: int) -> str:
    """Return a share in percent that is never rounded to nothing or to all."""
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "under 0.1 %"
    return "over 99.9 %" if 99.9 < percent < 100 else f"{percent:.3g} %"


HISTORY_WIDTH, HISTORY_HEIGHT, MARGIN = 720, 170, 46
TOP_RATIO, LOW_RATIO = 1e3, 1e-3


def history(points: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Return one kernel's course over runs: the largest error over bound, on a logarithmic axis with the bound at 1.

    Args:
        points: for each run, the kernel's object of the JSON, or None where it was not there.
    """
    span = max(1, len(points) - 1)
    place = lambda i: MARGIN + i * (HISTORY_WIDTH - 2 * MARGIN) / span
    dots = []
    for i, kernel in enumerate(points):
        if kernel is None or kernel["max_ratio"] is None:
            continue
        ratio = number(kernel["max_ratio"])
        bad = kernel["status"] == "illegal"
        dots.append(
            {
                "x": place(i),
                "y": _height(max(ratio, 1.0) if bad else ratio),  # bits, laws and statistics have no bound to break
                "class": "bad" if bad else "good",
                "run": i + 1,
                "title": f"run {i + 1}: {kernel['status']}, largest error over bound {short(ratio)}",
            }
        )
    line = " ".join(f"{dot['x']:.1f},{dot['y']:.1f}" for dot in dots)
    grid = [{"y": _height(v), "label": t} for v, t in ((1e3, "1000+"), (10, "10"), (1, "1"), (0.1, "0.1"), (1e-3, "0"))]
    ticks = [{"x": place(i), "label": str(i + 1)} for i in range(len(points)) if len(points) <= 24 or i % 5 == 0]
    return {
        "dots": dots, "line": line, "grid": grid, "ticks": ticks, "bound": _height(1.0),
        "width": HISTORY_WIDTH, "height": HISTORY_HEIGHT, "left": MARGIN, "right": HISTORY_WIDTH - MARGIN,
    }  # fmt: skip


def _height(ratio: float) -> float:
    """Return where a ratio lies from the top: 1e3 and more, NaN too, at the top; 1e-3 and less at the bottom."""
    bounded = TOP_RATIO if math.isnan(ratio) else min(TOP_RATIO, max(LOW_RATIO, ratio))
    part = (math.log10(TOP_RATIO) - math.log10(bounded)) / (math.log10(TOP_RATIO) - math.log10(LOW_RATIO))
    return 12 + part * (HISTORY_HEIGHT - 40)


def short(value: float | None) -> str:
    """Return a number in three digits; "-" for none."""
    if value is None:
        return "-"
    return "∞" if math.isinf(value) else "NaN" if math.isnan(value) else f"{value:.3g}"
