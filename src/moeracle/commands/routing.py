"""`moeracle routing`: how full the blocks of a grouped GEMM are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moeracle.kernels.bench.report import require_drawable
from moeracle.properties.cases.optable import ROUTINGS
from moeracle.properties.cases.routings import draw_topk, routing_statistics
from moeracle.properties.report.report import require_writable, write_json
from moeracle.ref.errors import require, unknown

from .console import print_table
from .routing_map import write_html, write_png

ARCHETYPES = ("balanced", "uniform", "zipf1", "zipf2", "hot16")
TOKENS = (1, 16, 64, 256, 1024, 4096)
BLOCKS = (16, 32)
LOAD, FILL = ("dead", "mean", "median", "max"), ("blocks", "useful", "skinny")  # of routing_statistics


def run_routing(
    archetypes: Sequence[str],
    tokens: Sequence[int],
    experts: int,
    top_k: int,
    blocks: Sequence[int],
    seed: int,
    json: Path | None = None,
    plot: Path | None = None,
    html: Path | None = None,
) -> int:
    """Print one line for each archetype and number of tokens, and draw their map: who gets rows, how they fill blocks.

    Raises:
        ValueError: an unknown archetype, k > E, or a file that cannot be written.
    """
    files = {option: path.resolve() for option, path in (("json", json), ("plot", plot), ("html", html)) if path}
    for path in files.values():
        require_writable(path)
    last = next(reversed(files), "json")
    require(len(set(files.values())) == len(files), f"--{last}: got {files.get(last)}, must be another file")
    if plot is not None:
        require_drawable(plot)
    for archetype in archetypes:
        if archetype not in ROUTINGS:
            raise unknown("archetype", archetype, ROUTINGS)
    sizes = tuple(dict.fromkeys(blocks)) or BLOCKS
    columns = ["archetype", "T", "rows", "dead", "mean", "median", "max"]
    for block in sizes:
        columns += [f"BM{block} blocks", "useful", "skinny"]
    rows, found = [], []
    for archetype in dict.fromkeys(archetypes or ARCHETYPES):
        for T in dict.fromkeys(tokens or TOKENS):
            ids, _ = draw_topk(archetype, T, experts, top_k, seed)
            by_block = [routing_statistics(ids, experts, block) for block in sizes]
            load = by_block[0]
            cells = [archetype, f"{T:,}", f"{int((ids >= 0).sum()):,}", load["dead"]]
            cells += [f"{load['mean']:.1f}", f"{load['median']:g}", f"{load['max']:,}"]
            for filled in by_block:
                cells += [f"{filled['blocks']:,}", f"{filled['useful']:.1f}%", f"{filled['skinny']:.1f}%"]
            rows.append(cells)
            filled_by = {
                str(block): {name: each[name] for name in FILL} for block, each in zip(sizes, by_block, strict=True)
            }
            spread = {name: load[name] for name in LOAD}
            found.append(
                {"archetype": archetype, "T": T, "rows": int((ids >= 0).sum()), **spread, "block_m": filled_by}
            )
    title = (
        f"E = {experts} experts, k = {top_k}, seed {seed}. dead: experts without rows; mean, median, max: the rest;\n"
        "useful: rows that are not padding; skinny: blocks with at most 8 rows"
    )
    print_table(columns, rows, title=title)
    head = f"E = {experts}, k = {top_k}, seed {seed}"
    if json is not None:
        write_json(json, {"E": experts, "k": top_k, "seed": seed, "rows": found})
    if plot is not None:
        write_png(plot, found, head)
    if html is not None:
        write_html(html, found, head)
    return 0
