"""Where the illegal elements are, in words: the pattern when there is one, else the first bad column."""

from __future__ import annotations

import torch

MODULI = (2, 4, 8, 16, 32, 64, 128)
MOST_NAMED = 6
TILES = (128, 64, 32, 16)
FULL = 0.75  # share from which an area counts as wrong: some wrong elements are legal by chance


def describe(bad: torch.Tensor, rows: str = "row", experts: torch.Tensor | None = None, group: int = 0) -> str:
    """Say where a matrix is wrong.

    Args:
        bad: bool [rows, columns], at least one True.
        rows: what a row is called: "row", "token".
        experts: int [rows], each row's expert (-1: none), or None; then whole experts are named.
        group: columns a group, or 0; then whole groups of columns are named.
    Returns:
        One line, e.g. "first bad column 64, every element of columns from 64 on of rows 3-5". "every element" is said
        only where it is true; otherwise the share of the named area that is wrong.
    """
    bad_rows, bad_columns = bad.any(1), bad.any(0)
    in_rows = _experts(bad_rows, experts) or _axis(bad_rows, rows)
    in_columns = _groups(bad_columns, group) or _axis(bad_columns, "column")
    inside, wrong = int(bad_rows.sum()) * int(bad_columns.sum()), int(bad.sum())
    if wrong < FULL * inside:
        named, tiles = _tiles(bad)
        if tiles:
            in_rows, in_columns, inside = "", named, tiles
    share = "" if wrong == inside else f"{_percent(wrong / inside)} of the "
    area = " of ".join(part for part in (in_columns, in_rows) if part)
    if area:
        area = f"{share}elements of {area}" if share else f"every element of {area}"
    else:
        area = f"{share or 'all '}{bad.numel():,} elements"
    return f"first bad column {int(bad_columns.nonzero()[0])}, {area}"


def spans(values: list[int]) -> str:
    """Write a sorted list of integers as ranges: 0-3, 7, 9-11."""
    pieces: list[str] = []
    start = previous = values[0]
    for v in [*values[1:], None]:
        if v is not None and v == previous + 1:
            previous = v
            continue
        pieces.append(str(start) if start == previous else f"{start}-{previous}")
        if v is not None:
            start = previous = v
    shown = pieces[:MOST_NAMED]
    return ", ".join(shown) + (f" and {len(pieces) - len(shown)} more" if len(pieces) > len(shown) else "")


def _percent(share: float) -> str:
    return "under 1%" if share < 0.01 else "over 99%" if share > 0.99 else f"{share:.0%}"


def _axis(bad: torch.Tensor, name: str) -> str:
    """Describe which positions along one axis are bad: all (""), from one on, a residue class, or a list of ranges."""
    n, where = bad.numel(), bad.nonzero().flatten().tolist()
    if len(where) == n:
        return ""
    if len(where) > 1 and len(where) == n - where[0]:
        return f"{name}s from {where[0]} on"
    if len(where) > 2:
        for m in MODULI:
            if where == list(range(where[0] % m, n, m)):
                return f"{name}s = {where[0] % m} mod {m}"
    return f"{name}{'s' if len(where) > 1 else ''} {spans(where)}"


def _experts(bad_rows: torch.Tensor, experts: torch.Tensor | None) -> str:
    """Name the experts whose rows are all bad while no other row is; "" where it is not so, or where it is everyone."""
    if experts is None:
        return ""
    owners = torch.unique(experts[bad_rows])
    everyone = owners.numel() == torch.unique(experts[experts >= 0]).numel()
    if int(owners[0]) < 0:
        return ""
    whole = bool(bad_rows[torch.isin(experts, owners)].all())
    if owners.numel() == 1 and not whole:  # a kernel's tiles are cut from an expert's own rows
        own = _axis(bad_rows[experts == owners[0]], "row")
        ranges = own.startswith("rows from") or (own.count("-") == 1 and "," not in own)
        return f"{own}, counted in its own order, of expert {int(owners[0])}" if ranges else ""
    if everyone or not whole:
        return ""
    return f"expert{'s' if owners.numel() > 1 else ''} {spans(owners.tolist())}"


def _tiles(bad: torch.Tensor) -> tuple[str, int]:
    """Name the tiles, of the largest size that fits, that are wrong while no other element is, and their elements."""
    counts = _summed(bad.to(torch.uint8), TILES[-1])
    for size in TILES:
        wrong = _summed(counts, size // TILES[-1])
        heights, widths = (torch.tensor([min(size, n - at) for at in range(0, n, size)]) for n in bad.shape)
        inside = heights[:, None] * widths
        touched = wrong > 0
        if bool(touched.all()) or bool((wrong[touched] < FULL * inside[touched]).any()):
            continue
        places = [f"({i}, {j})" for i, j in touched.nonzero().tolist()]
        more = f" and {len(places) - MOST_NAMED} more" if len(places) > MOST_NAMED else ""
        name = f"{size}x{size} tile{'s' if len(places) > 1 else ''} {', '.join(places[:MOST_NAMED])}{more}"
        return name, int(inside[touched].sum())
    return "", 0


def _summed(x: torch.Tensor, size: int) -> torch.Tensor:
    """Return the sums of a matrix's size x size tiles, int64; the last ones may be smaller."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % size, 0, -x.shape[0] % size))
    return padded.view(padded.shape[0] // size, size, -1, size).sum((1, 3))


def _groups(bad_columns: torch.Tensor, group: int) -> str:
    """Name the groups whose columns are all bad while no other column is."""
    if not group or bool(bad_columns.all()):
        return ""
    of_groups = bad_columns.split(group)  # the last may be short
    whole = torch.stack([of_group.all() for of_group in of_groups])
    if bool((torch.stack([of_group.any() for of_group in of_groups]) != whole).any()):
        return ""
    return f"group{'s' if int(whole.sum()) > 1 else ''} {spans(whole.nonzero().flatten().tolist())}"
