"""Error over bound along the commits of a bisection: as lines of text, or as a PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

from .history import HistoryReport
from .history_state import BAD, GOOD, Judged

WIDTH = 32
LOWEST = 2.0**-8  # errors below this share of the bound are drawn alike


def text_plot(report: HistoryReport) -> list[str]:
    """Return one line a judged commit, oldest first: position, commit, verdict, error over bound, a bar on a log scale.

    A bar that reaches beyond `|`, the bound, is an error that no legal kernel makes.
    """
    finite = [j.max_ratio for j in report.judged.values() if j.max_ratio is not None and math.isfinite(j.max_ratio)]
    top = max([4.0, *finite])
    bound = _place(1.0, top)
    width = len(str(len(report.commits) - 1))
    lines = []
    for i, commit in enumerate(report.commits):
        judged = report.judged.get(commit.id)
        if judged is None:
            continue
        number, bar = _number(judged), _bar(judged, top, bound)
        mark = " <- first bad" if commit.id == report.found.first_bad else ""
        what = judged.kind if judged.kind else judged.verdict
        lines.append(f"{i:>{width}}  {commit.short}  {what:<13}  {number:>8}  {bar}{mark}")
    return lines


def _number(judged: Judged) -> str:
    ratio = judged.max_ratio
    if ratio is None:
        return "-"
    return f"{ratio:.3g}" if math.isfinite(ratio) else "inf"


def _place(ratio: float, top: float) -> int:
    if not math.isfinite(ratio):
        return WIDTH
    share = (math.log2(max(ratio, LOWEST)) - math.log2(LOWEST)) / (math.log2(top) - math.log2(LOWEST))
    return round(share * WIDTH)


def _bar(judged: Judged, top: float, bound: int) -> str:
    length = 0 if judged.max_ratio is None else _place(judged.max_ratio, top)
    cells = ["#" if i < length else " " for i in range(WIDTH)]
    cells.insert(bound, "|")
    return "".join(cells).rstrip()


def write_png(report: HistoryReport, path: Path | BinaryIO) -> None:
    """Draw error over bound against the commits' positions, skipped ones as ticks at the foot.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--plot: needs matplotlib, which is not installed: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    position = {c.id: i for i, c in enumerate(report.commits)}
    asked = [(position[id], j) for id, j in report.judged.items() if id in position]
    finite = [j.max_ratio for _, j in asked if j.max_ratio is not None and math.isfinite(j.max_ratio)]
    top = 4 * max([1.0, *finite])
    for verdict, color, marker in ((GOOD, "tab:blue", "o"), (BAD, "tab:red", "X")):
        chosen = [(i, j.max_ratio) for i, j in asked if j.verdict == verdict and j.max_ratio is not None]
        places = [min(max(ratio, LOWEST), top) for _, ratio in chosen]
        axes.scatter([i for i, _ in chosen], places, c=color, marker=marker, s=60, label=verdict, zorder=3)
    skipped = [i for i, j in asked if j.verdict not in (GOOD, BAD)]
    axes.scatter(skipped, [LOWEST] * len(skipped), c="tab:gray", marker="|", s=90, label="passed over")
    axes.axhline(1.0, color="black", linewidth=1, linestyle="--", label="bound")
    if report.first_bad is not None:
        axes.axvline(position[report.found.first_bad], color="tab:red", linewidth=1, alpha=0.5)
        axes.set_title(f"first bad: {report.first_bad.short} {report.first_bad.subject}", fontsize=10, parse_math=False)
    axes.set_yscale("log", base=2)
    axes.set_xlabel(f"commits from {report.plan.good[:10]} to {report.plan.bad[:10]}")
    axes.set_ylabel("largest error / bound")
    axes.legend()
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
