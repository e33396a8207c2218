"""What the benchmark says: one row a measurement, as plain values, as table cells and as a plot."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moeracle.files import write_atomically
from moeracle.kernels.bench.cases import Work
from moeracle.kernels.bench.timing import Times, ratios

TIME_COLUMNS = ("kernel", "what", "routing", "T", "active", "us", "spread")
DRAWN = (".png", ".svg", ".pdf")
COLUMNS = (*TIME_COLUMNS, "TFLOP/s", "padded", "GB/s", "% of floor", "x floor", "useful", "BM", "B")


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
        about: kernel, op, what, shape, case, archetype, T, rotations, block, tile: passed on.
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


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def cells(found: Mapping[str, Any]) -> list[str]:
    """Return a row as table cells, in the order of COLUMNS; two more with `against`."""
    spread = 100.0 * (found["us_high"] - found["us_low"]) / found["us"] if found["us"] else 0.0
    listed = [
        str(found["kernel"]),
        str(found["what"]),
        str(found["archetype"]),
        f"{found['T']:,}",
        str(found["active"]),
        f"{found['us']:.1f}",
        f"{spread:.0f}%",
        _number(found["tflops_useful"] or None, ".1f"),
        _number(found["tflops_padded"], ".1f"),
        f"{found['gbs']:,.0f}",
        f"{found['floor_percent']:.0f}%",
        _number(found["times_floor"], ".2f"),
        _number(found["useful_percent"], ".0f") + ("%" if found["useful_percent"] is not None else ""),
        _number(found["block_m"], "d"),
        _number(found.get("block"), "d"),  # of an op that is given aligned rows, and of a file of today
    ]
    if "against" in found:
        other = found["against"]
        listed += [f"{other['us']:.1f}", f"{other['ratio']:.2f} ({other['ratio_low']:.2f}..{other['ratio_high']:.2f})"]
    return listed


def launches_text(found: Mapping[str, Any]) -> str:
    """Return how many GPU kernels a call launched, and those of the second implementation after a colon."""
    counts = [found.get("launches"), found.get("against", {}).get("launches")]
    return " : ".join(str(count) for count in counts if count is not None) or "-"


def part_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the cells of a table of layers' parts, x floor that of the layer without its alignment."""
    names = list(dict.fromkeys(name for found in rows for name in found["parts"]))
    theirs = list(dict.fromkeys(name for found in rows for name in found.get("against_parts", {})))
    listed = []
    for found in rows:
        parts, number = found["parts"], lambda value, form: "-" if value is None else format(value, form)
        ratio = parts["aligned"] / found["floor_us"] if "aligned" in parts else None
        cells = [str(found["kernel"]), str(found["archetype"]), f"{found['T']:,}"]
        cells += [number(us, ".1f") for us in (*(parts.get(name) for name in names), found["floor_us"])]
        cells += [number(r, ".2f") for r in (ratio, found.get("peer"), found.get("peer_ratio"))]
        beside = [found.get("against_parts", {}).get(name, {}) for name in theirs]
        listed.append(
            [*cells, *(number(of.get(what), form) for of in beside for what, form in (("us", ".1f"), ("ratio", ".2f")))]
        )
    heads = [head for name in theirs for head in (f"their {name}", f"theirs / {name}")]
    return ["kernel", "routing", "T", *names, "floor", "x floor", "peer", "peer / aligned", *heads], listed


def plot(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw microseconds over T, one panel for each shape, op and GEMM.

    A colour is a routing, a marker a kernel; dashed is the second implementation, dotted the floor.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, panels = _panels(rows, title)
    archetypes = list(dict.fromkeys(found["archetype"] for found in rows))
    for axis, mine in panels:
        kernels = list(dict.fromkeys(found["kernel"] for found in mine))
        for archetype in archetypes:
            color = f"C{archetypes.index(archetype) % 10}"
            for kernel in kernels:
                points = _by_T(p for p in mine if (p["kernel"], p["archetype"]) == (kernel, archetype))
                marker = "osD^v*"[kernels.index(kernel) % 6]
                axis.plot(_T(points), [p["us"] for p in points], color=color, marker=marker, markersize=3)
            points = _by_T(p for p in mine if p["archetype"] == archetype and p["kernel"] == kernels[0])
            axis.plot(_T(points), [p["floor_us"] for p in points], color=color, linestyle=":", linewidth=0.8)
            theirs = [p for p in points if "against" in p]
            axis.plot(_T(theirs), [p["against"]["us"] for p in theirs], "--", color=color, linewidth=0.8)
        _legend(axis, kernels, dict.fromkeys(p["against"]["kernel"] for p in mine if "against" in p), archetypes)
    save_figure(figure, path)


def _by_T(points: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(points, key=lambda p: p["T"])


def _T(points: Sequence[Mapping[str, Any]]) -> list[int]:
    return [p["T"] for p in points]


def _legend(axis: Any, kernels: Sequence[str], others: Iterable[str], archetypes: Sequence[str]) -> None:
    """Say once what a marker, a line and a colour are, instead of once for each of their combinations."""
    for kernel, marker in zip(kernels, "osD^v*", strict=False):
        axis.plot([], [], color="black", marker=marker, markersize=3, label=kernel)
    for name in others:
        axis.plot([], [], "--", color="black", linewidth=0.8, label=name)
    axis.plot([], [], ":", color="black", linewidth=0.8, label="floor")
    for i, archetype in enumerate(archetypes):
        axis.plot([], [], color=f"C{i % 10}", linewidth=4, label=archetype)
    axis.legend(fontsize=6)


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
    save_figure(figure, path)


def require_matplotlib() -> None:
    """Raise ValueError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("plot: needs matplotlib: pip install 'moeracle[plot]'") from None


def require_drawable(path: Path) -> None:
    """Refuse before anything is measured that cannot be drawn into this file.

    Raises:
        ValueError: matplotlib is not installed, or draws nothing of the file's ending.
    """
    require_matplotlib()
    if path.suffix.lower() not in ("", *DRAWN):
        raise ValueError(f"plot: got {path}, must end in {', '.join(DRAWN)}")


def _panels(rows: Sequence[Mapping[str, Any]], title: str) -> tuple[Any, list[tuple[Any, list[Mapping[str, Any]]]]]:
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups: dict[str, list[Mapping[str, Any]]] = {}
    for found in rows:  # "layer" and "int4_linear" say it all, "gemm1" does not
        op = f"{found['op']} " if found["what"].startswith("gemm") else ""
        groups.setdefault(f"{found['shape']} {op}{found['what']}", []).append(found)
    columns = min(len(groups), 3) or 1
    lines = math.ceil(len(groups) / columns) or 1
    figure = Figure(figsize=(6 * columns, 4.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    panels = []
    for i, (name, mine) in enumerate(groups.items()):
        axis = figure.add_subplot(lines, columns, i + 1)
        axis.set_title(name, fontsize=9)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_yscale("log")
        axis.set_xlabel("tokens T")
        axis.set_ylabel("microseconds")
        axis.grid(True, which="both", alpha=0.2)
        panels.append((axis, mine))
    return figure, panels


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib's, in the form that the file's ending says.

    Args:
        figure: drawn.
        path: of the file.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lstrip(".") or "png", dpi=100)
    write_atomically(path, drawn.getvalue())
