"""Where a failure lies, small enough for a report: the largest error of each cell of a coarse grid.

Rows are tokens (or rows, or experts), columns output columns; what does not fit MOST_ROWS x MOST_COLUMNS is binned,
each cell keeping its maximum, so that a single bad element of millions still shows.
"""

from __future__ import annotations

import math
from typing import Any

import torch

MOST_ROWS, MOST_COLUMNS = 48, 96
# |error| / (bound + the store's rounding) is counted in these bins: no error, tenths up to 1, and what is illegal.
RATIO_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 10.0, 100.0, math.inf)


def count_ratios(ratio: torch.Tensor) -> list[int]:
    """Count ratios: exactly 0, then (edge, next edge] for each edge; NaN counts as infinite.

    Args:
        ratio: any shape, >= 0.
    """
    edges = torch.tensor(RATIO_EDGES[:-1], dtype=ratio.dtype, device=ratio.device)
    place = torch.bucketize(ratio.nan_to_num(math.inf).flatten(), edges)
    return [int(n) for n in torch.bincount(place, minlength=len(RATIO_EDGES)).cpu()]


def error_map(stage: str, axis: str, rows: torch.Tensor, errors: torch.Tensor, unit: str = "ulp") -> dict[str, Any]:
    """Return one map as plain values.

    Args:
        stage: the stage's name.
        axis: what a row of the map is: "token", "row" or "expert".
        rows: int64 [n], which token, row or expert each row of `errors` belongs to; negative: none, left out.
        errors: [n, columns], 0 where legal; inf is kept.
        unit: "ulp" outside the legal set, "wrong" elements, or "different" ones, where two answers were compared.
    Returns:
        stage, axis, unit; rows and columns, how many there are; row_step and column_step, how many share a cell; cells,
        lists of the largest error, to three digits.
    """
    at = rows >= 0
    rows, errors = rows[at].cpu(), errors[at].detach().float().cpu()
    count, columns = int(rows.max()) + 1 if rows.numel() else 0, errors.shape[1]
    row_step, column_step = _step(count, MOST_ROWS), _step(columns, MOST_COLUMNS)
    height, width = -(-count // row_step), -(-columns // column_step)
    padded = torch.zeros(errors.shape[0], width * column_step)
    padded[:, :columns] = errors
    binned = padded.reshape(-1, width, column_step).amax(2) if width else padded[:, :0]
    cells = torch.zeros(height, width)
    if height and width:
        cells.scatter_reduce_(0, (rows // row_step)[:, None].expand(-1, width), binned, "amax")
    return {
        "stage": stage,
        "axis": axis,
        "unit": unit,
        "rows": count,
        "columns": columns,
        "row_step": row_step,
        "column_step": column_step,
        "cells": [[_short(v) for v in row] for row in cells.tolist()],
    }


def _step(count: int, most: int) -> int:
    """Return how many share a cell: a power of two, so that cells end where groups and tiles do."""
    return 1 << max(0, -(-count // most) - 1).bit_length()


def _short(value: float) -> float | int:
    if not math.isfinite(value):
        return value
    return int(value) if value == int(value) and value < 1e6 else float(f"{value:.3g}")


def failure_maps(
    stage: str,
    errors: torch.Tensor,
    name: str,
    experts: torch.Tensor | None = None,
    slots: int = 1,
    unit: str = "ulp",
) -> list[dict[str, Any]]:
    """Return a failure's maps: by token (or row), and by expert where rows have one.

    Args:
        stage: the stage's name.
        errors: [rows, columns].
        name: what a row, or with several slots a run of rows, is called.
        experts: int [rows] or None.
        slots: rows that share a line: a token's.
    """
    everyone = torch.arange(errors.shape[0])
    maps = [error_map(stage, name, everyone // slots, errors, unit)]
    if experts is not None:
        maps.append(error_map(stage, "expert", experts.long().cpu(), errors.cpu(), unit))
    return maps


def difference_map(stage: str, axis: str, different: torch.Tensor) -> dict[str, Any]:
    """Return the map of where two answers differ.

    Args:
        stage: the result's name.
        axis: what its first dimension is called.
        different: bool, of any rank; columns are its last dimension, but for a vector's one.
    """
    flat = different.reshape(-1, different.shape[-1] if different.ndim > 1 else 1)
    along = max(1, flat.shape[0] // max(1, different.shape[0] if different.ndim else 1))
    return error_map(stage, axis, torch.arange(flat.shape[0]) // along, flat.float(), "different")
