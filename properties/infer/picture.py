"""A summation tree as a few lines of text."""

from __future__ import annotations

from .levels import Shape
from .tree import Node, depth

FORMULAS = {
    "fused": "acc + p0 + … + p{last}, at once",
    "chain": "((s0 + s1) + s2) + … + s{last}",
    "pairwise": "(s0 + s1) + (s2 + s3), and so on",
    "halves": "s0 + s{half}, s1 + s{next}, …, then halves of those",
}
MOST_LINES = 14


def picture(root: Node, shape: Shape | None) -> list[str]:
    """Draw a tree: its levels if it is regular, else its top."""
    if shape is not None:
        return _levels(shape)
    lines: list[str] = []
    _draw(root, "", "", lines)
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], "  …"]
    return [f"no regular order; {len(root.leaves())} inputs, longest chain {depth(root)} additions", *lines]


def _levels(shape: Shape) -> list[str]:
    lines: list[str] = []
    inner, count = 1, len(shape.places)
    for level in shape.levels:
        whole = inner * level.size
        formula = FORMULAS[level.kind].format(last=level.size - 1, half=level.size // 2, next=level.size // 2 + 1)
        if level.kind == "chain" and level.size == 2:
            formula = "s0 + s1"
        firsts = shape.places[: whole : 1 if level.kind == "fused" else inner]
        items = _some(sorted(firsts) if level.kind == "fused" else list(firsts))
        what = "products" if inner == 1 else f"sums of {inner}"
        lines.append(f"{'└─' if lines else '  '} {level.size:>4} {what:<12} {formula:<52} k = {items}")
        lines[-1] = "   " * (len(lines) - 1) + lines[-1]
        inner = whole
    return [*lines, f"{'   ' * len(lines)}=  one sum of {count}"]


def _some(values: list[int]) -> str:
    if values == list(range(values[0], values[0] + len(values))) and len(values) > 2:
        return f"{values[0]}..{values[-1]}"
    return ", ".join(map(str, values[:6])) + (", …" if len(values) > 6 else "")


def _draw(node: Node, before: str, branch: str, lines: list[str], level: int = 0) -> None:
    leaves = sorted(node.leaves())
    what = f"k = {leaves[0]}" if len(leaves) == 1 else f"sum of {len(leaves)}: k = {_some(leaves)}"
    lines.append(f"{before}{branch}{what}")
    if not node.kids or level == 3 or len(lines) > MOST_LINES:
        return
    below = before + ("" if not branch else "   " if branch.startswith("└") else "│  ")
    for i, kid in enumerate(sorted(node.kids, key=lambda n: min(n.leaves()))):
        _draw(kid, below, "└─ " if i + 1 == len(node.kids) else "├─ ", lines, level + 1)
