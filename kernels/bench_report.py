"""What the benchmark says: one row a measurement, as plain values, as table cells and as a plot."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moeracle.kernels.bench_cases import Work
from moeracle.kernels.bench_timing import Times, ratios

TIME_COLUMNS = ("kernel", "what", "routing", "T", "active", "us", "spread")
COLUMNS = (*TIME_COLUMNS, "TFLOP/s", "padded", "GB/s", "% of floor", "x floor", "useful", "BM")


def row(
    about: Mapping[str, Any],
    work: Work,
    times: Times,
    ceilings: Mapping[str, float],
    block_m: int | None,
    against: tuple[str, Times] | None = None,
) -> dict[str, Any]:
    """Return one measurement as plain values.

    Args:
        about: kernel, op, what, shape, case, archetype, T, rotations, tile: passed on.
        work: of one call.
        times: microseconds a call.
        ceilings: gbs and tflops of this device, from this run.
        block_m: rows of a block that the kernel launched, None if it is not known.
        against: another implementation's name and times from the same rounds.
    Returns:
        `about`, and us, us_low, us_high, tflops_useful, tflops_padded, gbs, floor_us, floor_percent, times_floor,
        useful_percent and, with `against`, its us and the ratio theirs / ours with its spread.
    """
    floor = work.floor_us(ceilings["gbs"], ceilings["tflops"])
    padded = work.padded_rows(block_m) if block_m else None
    useful = None if not padded else 100.0 * work.rows / padded
    found = {
        **about,
        "active": work.active,
        "rows": work.rows,
        "us": times.us,
        "us_low": times.low,
        "us_high": times.high,
        "rounds": len(times.rounds),
        "tflops_useful": work.flops / times.us / 1e6,
        "tflops_padded": None if useful is None or not work.flops else work.flops / times.us / 1e4 / useful,
        "gbs": (work.weight_bytes + work.other_bytes) / times.us / 1e3,
        "floor_us": floor,
        "floor_percent": 100.0 * floor / times.us,
        "times_floor": times.us / floor if floor else None,
        "useful_percent": useful,
        "block_m": block_m,
    }
    if against is not None:
        name, theirs = against
        ratio = ratios(times, theirs)
        found["against"] = {
            "kernel": name,
            "us": theirs.us,
            "us_low": theirs.low,
            "us_high": theirs.high,
            "ratio": ratio.us,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
        }
    return found


def cells(found: Mapping[str, Any]) -> list[str]:
    """Return a row as table cells, in the order of COLUMNS; two more with `against`."""
    spread = 100.0 * (found["us_high"] - found["us_low"]) / found["us"] if found["us"] else 0.0
    number = lambda value, form: "-" if value is None else format(value, form)
    listed = [
        str(found["kernel"]),
        str(found["what"]),
        str(found["archetype"]),
        f"{found['T']:,}",
        str(found["active"]),
        f"{found['us']:.1f}",
        f"{spread:.0f}%",
        number(found["tflops_useful"] or None, ".1f"),
        number(found["tflops_padded"], ".1f"),
        f"{found['gbs']:,.0f}",
        f"{found['floor_percent']:.0f}%",
        number(found["times_floor"], ".2f"),
        number(found["useful_percent"], ".0f") + ("%" if found["useful_percent"] is not None else ""),
        number(found["block_m"], "d"),
    ]
    if "against" in found:
        other = found["against"]
        listed += [f"{other['us']:.1f}", f"{other['ratio']:.2f} ({other['ratio_low']:.2f}..{other['ratio_high']:.2f})"]
    return listed


def plot(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw microseconds over T, one panel for each (shape, what), one line a kernel and routing, with the floor.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, panels = _panels(rows, title)
    for axis, mine in panels:
        lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for found in mine:
            lines.setdefault((found["kernel"], found["archetype"]), []).append(found)
        for (kernel, archetype), points in lines.items():
            points = sorted(points, key=lambda p: p["T"])
            axis.plot(
                [p["T"] for p in points],
                [p["us"] for p in points],
                marker="o",
                markersize=3,
                label=f"{kernel} {archetype}",
            )
        for name in dict.fromkeys(p["against"]["kernel"] for p in mine if "against" in p):
            points = sorted((p for p in mine if p.get("against", {}).get("kernel") == name), key=lambda p: p["T"])
            axis.plot([p["T"] for p in points], [p["against"]["us"] for p in points], "x", markersize=4, label=name)
        floor = {p["T"]: p["floor_us"] for p in sorted(mine, key=lambda p: (p["T"], p["floor_us"]))}
        axis.plot(list(floor), list(floor.values()), color="black", linestyle=":", label="floor")
        axis.legend(fontsize=6)
    _save(figure, path)


def plot_sweep(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw a sweep: microseconds over T, the floor, and a cross at each cliff.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, panels = _panels(rows, title)
    for axis, mine in panels:
        for kernel in dict.fromkeys(found["kernel"] for found in mine):
            points = sorted((p for p in mine if p["kernel"] == kernel), key=lambda p: p["T"])
            axis.plot([p["T"] for p in points], [p["us"] for p in points], marker=".", markersize=3, label=kernel)
            cliffs = [p for p in points if p.get("cliff")]
            axis.plot(
                [p["T"] for p in cliffs], [p["us"] for p in cliffs], "rx", label=f"{kernel}: cliffs" if cliffs else None
            )
        points = sorted(mine, key=lambda p: p["T"])
        axis.plot([p["T"] for p in points], [p["floor_us"] for p in points], ":", color="black", label="floor")
        axis.legend(fontsize=7)
    _save(figure, path)


def require_matplotlib() -> None:
    """Refuse before anything is measured that cannot be drawn.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("plot: needs matplotlib: pip install 'moeracle[plot]'") from None


def _panels(rows: Sequence[Mapping[str, Any]], title: str) -> tuple[Any, list[tuple[Any, list[Mapping[str, Any]]]]]:
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for found in rows:
        groups.setdefault((found["shape"], found["what"]), []).append(found)
    columns = min(len(groups), 3) or 1
    lines = math.ceil(len(groups) / columns) or 1
    figure = Figure(figsize=(6 * columns, 4.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    panels = []
    for i, ((shape, what), mine) in enumerate(groups.items()):
        axis = figure.add_subplot(lines, columns, i + 1)
        axis.set_title(f"{shape} {what}", fontsize=9)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("tokens T")
        axis.set_ylabel("microseconds")
        axis.grid(True, which="both", alpha=0.2)
        panels.append((axis, mine))
    return figure, panels


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=120)
    os.replace(temporary, path)
