"""The map of `moeracle routing`: archetypes by tokens, and which share of a grouped GEMM's rows is no padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moeracle.files import write_atomically
from moeracle.kernels.bench.report import save_figure

HERE = Path(__file__).parent


def grids(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a grid for each block size: its archetypes, its tokens, and for each pair the useful and the skinny share.

    Args:
        rows: of `moeracle routing --json`.
    """
    archetypes, tokens = (list(dict.fromkeys(row[name] for row in rows)) for name in ("archetype", "T"))
    at = {(row["archetype"], row["T"]): row["block_m"] for row in rows}
    return [
        {
            "block": block,
            "archetypes": archetypes,
            "tokens": tokens,
            "cells": [[at[archetype, T][block] for T in tokens] for archetype in archetypes],
        }
        for block in rows[0]["block_m"]
    ]


def write_png(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Draw the map: each cell's colour and text are its share of useful rows.

    Args:
        path: of the picture.
        rows: of `moeracle routing --json`.
        title: above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = grids(rows)
    size = (1.5 + 1.0 * len(panels[0]["tokens"]), 1.6 + 0.5 * len(panels[0]["archetypes"]))
    figure = Figure(figsize=(size[0] * len(panels), size[1]), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}: rows that are no padding, %", fontsize=9)
    for place, grid in enumerate(panels, 1):
        axis = figure.add_subplot(1, len(panels), place)
        shares = [[cell["useful"] for cell in row] for row in grid["cells"]]
        axis.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        axis.set_title(f"blocks of {grid['block']} rows", fontsize=9)
        axis.set_xlabel("tokens T")
        axis.set_xticks(range(len(grid["tokens"])), [f"{T:,}" for T in grid["tokens"]], fontsize=8)
        axis.set_yticks(range(len(grid["archetypes"])), grid["archetypes"], fontsize=8)
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                colour = "black" if share > 50 else "white"
                axis.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    save_figure(figure, path)


def write_html(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Write the map as one page that loads nothing.

    Args:
        path: of the page.
        rows: of `moeracle routing --json`.
        title: above it.
    """
    from moeracle.properties.report.html.page import style, template

    page = template("routing_map.html", HERE)
    write_atomically(path, page.render(title=title, grids=grids(rows), rows=rows, style=style()))
