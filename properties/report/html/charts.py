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


HISTORY_WIDTH, HISTORY_HEIGHT, MARGIN = 760, 170, 60
TOP_RATIO, LOW_RATIO = 1e3, 1e-3
MOST_TICKS = 24


def history(points: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Return one kernel's course over runs: the largest error over bound, on a logarithmic axis with the bound at 1.

    Args:
        points: for each run, the kernel's object of the JSON, or None where it was not there; `name` is what its run
            is called, if not by its number.
    """
    span = max(1, len(points) - 1)
    place = lambda i: MARGIN + i * (HISTORY_WIDTH - 2 * MARGIN) / span
    dots = []
    for i, kernel in enumerate(points):
        if kernel is None:
            continue
        name, bad = kernel.get("name") or f"run {i + 1}", kernel["status"] == "illegal"
        ratio = math.nan if kernel["max_ratio"] is None else number(kernel["max_ratio"])
        error = f", largest error over bound {short(ratio)}" if kernel["max_ratio"] is not None else ""
        idle = kernel["status"] not in ("legal", "illegal")
        if not (error or bad or idle):
            continue
        # Bits, laws and statistics have no bound to break: what broke them is never drawn as if it were fine.
        high = LOW_RATIO if idle else max(ratio, 1.0) if error and bad else 1.0 if bad else ratio
        dots.append(
            {
                "x": place(i),
                "y": _height(high),
                "class": "idle" if idle else "bad" if bad else "good",
                "run": i + 1,
                "title": f"{name}: {kernel['status'] if not idle else 'not judged'}{error}",
            }
        )
    line = " ".join(f"{dot['x']:.1f},{dot['y']:.1f}" for dot in dots if dot["class"] != "idle")
    grid = [{"y": _height(v), "label": t} for v, t in ((1e3, "1000+"), (10, "10"), (1, "1"), (0.1, "0.1"), (1e-3, "0"))]
    start = 0 if any(kernel and kernel.get("name") for kernel in points) else 1  # commits count from GOOD, which is 0
    every = next(n for n in (1, 2, 5, *(10**i for i in range(1, 12))) if len(points) <= MOST_TICKS * n)
    ticks = [{"x": place(i), "label": f"{i + start:,}"} for i in range(len(points)) if (i + start) % every == 0]
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
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞"
    return f"{value:.3g}" if abs(value) < 999.5 or abs(value) >= 1e9 else f"{float(f'{value:.3g}'):,.0f}"
