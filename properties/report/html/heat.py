"""Heat maps as SVG: one rectangle for each run of equal cells, so that what is legal costs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

# A cell's class is the first whose upper end its error is below; colours are the style sheet's, l1 .. l7 and inf.
ENDS = (1.0, 4.0, 16.0, 64.0, 256.0, 4096.0, math.inf)
WORDS = ("below 1", "1 to 4", "4 to 16", "16 to 64", "64 to 256", "256 to 4,096", "4,096 and more")
INFINITE = "not finite"
PLAIN = {"wrong": ("right", "wrong"), "different": ("the same", "different")}  # maps that have no distances
WIDTH, LEFT, BOTTOM, TOP = 760, 58, 34, 4
TICKS = 8
MOST_VALUES = 12  # of a map that are also written out


def number(value: Any) -> float:
    """Read a number of the JSON, where what is not finite is text."""
    return float(value) if value is not None else math.nan


def level(error: float, unit: str = "ulp") -> str:
    """Return the class of a cell: "" where all is legal."""
    if not error > 0 and not math.isnan(error):
        return ""
    if unit in PLAIN:
        return "l5"
    if not math.isfinite(error):
        return "inf"
    return f"l{next(i for i, end in enumerate(ENDS, 1) if error < end)}"


def legend(unit: str, used: set[str]) -> list[tuple[str, str]]:
    """Return (class, label) for the classes that a map uses, in order."""
    if unit in PLAIN:
        return list(zip(("legal", "l5"), PLAIN[unit], strict=True))
    rows = [(f"l{i}", f"{label} ulp") for i, label in enumerate(WORDS, 1)]
    return [("legal", "legal"), *(row for row in (*rows, ("inf", INFINITE)) if row[0] in used)]


def _runs(classes: list[str]) -> Iterator[tuple[int, int, str]]:
    start = 0
    for i in range(1, len(classes) + 1):
        if i == len(classes) or classes[i] != classes[start]:
            if classes[start]:
                yield start, i - start, classes[start]
            start = i


def _ticks(step: int, cells: int) -> list[tuple[int, int]]:
    """Return (cell, what it begins at) for at most TICKS places of an axis, the first among them."""
    every = 1 << max(0, -(-cells // TICKS) - 1).bit_length()
    return [(cell, cell * step) for cell in range(0, cells, every)]


def heat_map(found: dict[str, Any]) -> dict[str, Any]:
    """Return what the template needs of one map: its SVG's shapes and sizes, legend, caption, and cells to read out.

    Args:
        found: a map of the JSON.
    """
    cells = [[number(v) for v in row] for row in found["cells"]]
    height, width = len(cells), len(cells[0]) if cells else 0
    wide = (WIDTH - LEFT) / max(1, width)
    wide = min(wide, 22.0)
    tall = min(16.0, max(5.0, 360.0 / max(1, height)))
    classes = [[level(v, found["unit"]) for v in row] for row in cells]
    shapes = [
        {"x": LEFT + start * wide, "y": TOP + i * tall, "w": length * wide, "h": tall, "class": name}
        for i, row in enumerate(classes)
        for start, length, name in _runs(row)
    ]
    worst = max((v for row in cells for v in row if not math.isnan(v)), default=0.0)
    bad = sum(bool(name) for row in classes for name in row)
    axis, unit = found["axis"], found["unit"]
    size = f"{counted(found['rows'], axis)} by {counted(found['columns'], 'column')}"
    most = f"up to {ulps(worst)} outside the legal set" if math.isfinite(worst) else f"the largest {INFINITE}"
    binned = found["row_step"] * found["column_step"] > 1
    largest = " and shows its largest" if unit not in PLAIN else ""
    share = f"; a cell is {found['row_step']} x {found['column_step']} elements{largest}" if binned else ""
    hold = f"are {PLAIN[unit][1]}" if unit in PLAIN else f"are illegal, {most}"
    return {
        "shapes": shapes,
        "left": LEFT,
        "top": TOP,
        "cell_width": wide,
        "cell_height": tall,
        "plot_width": width * wide,
        "plot_height": height * tall,
        "width": LEFT + width * wide + 10,
        "height": TOP + height * tall + BOTTOM,
        "rows": [(TOP + (cell + 0.5) * tall, label) for cell, label in _ticks(found["row_step"], height)],
        "columns": [(LEFT + cell * wide, label) for cell, label in _ticks(found["column_step"], width)],
        "axis": axis,
        "legend": legend(unit, {name for row in classes for name in row}),
        "caption": f"{found['stage']}: {size}, {bad:,} of {height * width:,} cells {hold}{share}",
        "largest": _largest(found, cells),
        "data": {key: found[key] for key in ("axis", "unit", "rows", "columns", "row_step", "column_step", "cells")},
    }


def _largest(found: dict[str, Any], cells: list[list[float]]) -> list[tuple[str, str, str]]:
    """Return the cells that are wrong, the largest first, as text: for whoever has no mouse, and for paper."""
    wrong = [(v, i, j) for i, row in enumerate(cells) for j, v in enumerate(row) if level(v, found["unit"])]
    wrong.sort(key=lambda cell: (-math.inf if math.isnan(cell[0]) else -cell[0], cell[1:]))
    steps = ((found["row_step"], found["rows"]), (found["column_step"], found["columns"]))
    said = []
    for value, *places in wrong[:MOST_VALUES]:
        words = PLAIN[found["unit"]][1] if found["unit"] in PLAIN else f"illegal, {ulps(value)}"
        row, column = (_span(place, *step) for place, step in zip(places, steps, strict=True))
        said.append((row, column, words + (" outside" if words.endswith("ulp") else "")))
    return said


def _span(cell: int, step: int, count: int) -> str:
    first, last = cell * step, min(count, (cell + 1) * step) - 1
    return f"{first}" if first == last else f"{first} to {last}"


def counted(count: int, noun: str) -> str:
    """Return "1 kernel", "2 kernels"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def ulps(value: float) -> str:
    """Return an error in words: "3 ulp", "under 1 ulp", "not finite"."""
    if not math.isfinite(value):
        return INFINITE
    return f"{value:,.0f} ulp" if value >= 1 else "under 1 ulp"
