"""Choosing tiles for an architecture that is not here, by what its compiler says: nothing may spill.

    python -m moeracle.kernels.tune.by_compiler gfx1151

prints one JSON line for each tile tried, and again those chosen. Nothing is measured: among the tiles of a bucket that
spill nothing (nor with fp16, zero points, or in the padded GEMM), use the matrix instruction, leave some registers and
at least a quarter of the waves, the one with the fewest instructions a multiply-add wins, summed over the waves of a
block; of equals, the one with more waves. block_m is the smallest that holds an expert's rows.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import product
from typing import Any

import torch

from moeracle.kernels import tuned
from moeracle.kernels.compile.dry_args import arguments
from moeracle.kernels.compile.dry_run import ENVIRONMENT, pretending
from moeracle.kernels.compile.table import LAYERS, TOKENS, row
from moeracle.kernels.registry import REGISTRY
from moeracle.kernels.toolchain.architectures import Architecture, architecture
from moeracle.kernels.triton.tiles import Tile, pow2_at_least

OPS = ("grouped_gemm", "padded_gemm")
BLOCK_M = (16, 32, 64)
SPACE = tuple(product((32, 64, 128), (32, 64, 128), (2, 4, 8), (1, 2)))  # block_n, block_k, num_warps, num_stages
LEAST_WAVES = 0.25
HEADROOM = 220  # of 256 registers: other specializations of the same tile take a few more
COUNTED = (
    "valu",
    "fma",
    "lds",
    "load",
    "wmma",
    "mfma",
    "mma",
    "wgmma",
    "tcgen05",
    "wait",
    "scalar",
    "shared",
    "branch",
)


def cost(found: Mapping[str, Any], tile: Tile) -> float:
    """Return instructions a multiply-add, all waves of a block together, in thousandths."""
    instructions = sum(found["kinds"].get(kind, 0) for kind in COUNTED)
    return 1e3 * instructions * tile.num_warps / (tile.block_m * tile.block_n * tile.block_k)


def _is_gemm(kernel: str, choices: tuple[Any, ...]) -> bool:
    return kernel.endswith("_gemm_kernel")


def tried(arch: Architecture, group: int, block_m: int, space: Iterable[tuple[int, ...]] = SPACE) -> Iterator[dict]:
    """Yield what each tile of the space compiles to, for grouped_gemm with groups of `group`.

    Args:
        arch: where.
        group: G.
        block_m: BM.
        space: (block_n, block_k, num_warps, num_stages) to try.
    """
    entry = next(e for e in REGISTRY if e.name == "grouped_gemm")
    size = next(layer for layer in LAYERS if group == layer.G).with_(T=256)
    for block_n, block_k, warps, stages in space:
        tile = Tile(block_m, block_n, block_k, warps, stages)
        try:
            with tuned.forced({"grouped_gemm": asdict(tile)}), pretending(arch, _is_gemm) as launches:
                entry.load()(*arguments(entry.op, size))
            found = row(launches[-1], arch, entry, size)
        except Exception as error:  # a tile that the compiler refuses is no candidate
            yield {"arch": arch.name, "G": group, "tile": asdict(tile), "wrong": [str(error).split("\n")[0][:200]]}
            continue
        keep = ("registers", "spills", "scratch", "local", "waves", "most_waves", "matrix", "code", "wrong")
        facts = {name: found[name] for name in keep}
        yield {"arch": arch.name, "G": group, "tile": asdict(tile), "cost": cost(found, tile), **facts}


def ordered(candidates: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the candidates that may be chosen, best first by this module's rule."""
    clean = [c for c in candidates if not c["wrong"] and c["registers"] <= HEADROOM]
    enough = [c for c in clean if c["waves"] >= LEAST_WAVES * c["most_waves"]] or clean
    return sorted(map(dict, enough), key=lambda c: (round(c["cost"], 4), -c["waves"], json.dumps(c["tile"])))


def objections(arch: Architecture, group: int, tile: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a tile for the other things it will be used for: fp16, zero points, the padded GEMM."""
    size = next(layer for layer in LAYERS if group == layer.G).with_(T=256)
    wrong = []
    for op, changes in product(OPS, ({}, {"dtype": "fp16"}, {"zero": "rdna"}, {"zero": "unpacked"})):
        entry, other = next(e for e in REGISTRY if e.name == op), size.with_(**changes)
        try:
            with tuned.forced({op: tile}), pretending(arch, _is_gemm) as launches:
                entry.load()(*arguments(op, other))
            found = row(launches[-1], arch, entry, other)["wrong"]
        except Exception as error:
            found = [str(error).split("\n")[0][:200]]
        wrong += [f"{op} {changes}: {text}" for text in found]
        if wrong:
            break
    return wrong


def choose(arch: Architecture, candidates: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the best candidate that spills nowhere, for none of the uses of its tile.

    Args:
        arch: where.
        candidates: of one (G, BM).
    Raises:
        ValueError: every candidate spills or lacks its matrix instruction.
    """
    for found in ordered(candidates):
        if not objections(arch, found["G"], found["tile"]):
            return found
    raise ValueError(f"tile: every candidate spills on {arch.name} or has no matrix instruction")


def table_rows(best: Mapping[tuple[int, int], Mapping[str, Any]]) -> list[dict]:
    """Return the rows of a tuning table: both GEMMs of each layer at each T's rows an expert.

    Args:
        best: the chosen candidate by (G, BM).
    """
    rows = []
    for layer in LAYERS:
        for T in TOKENS:
            each = T * layer.k / layer.E
            block_m = max(BLOCK_M[0], min(BLOCK_M[-1], pow2_at_least(-(-T * layer.k // layer.E))))
            found = best[layer.G, block_m]
            about = {name: found[name] for name in ("registers", "spills", "waves", "matrix")}
            for op, (N, K) in product(OPS, ((2 * layer.I, layer.H), (layer.H, layer.I))):
                key = {"op": op, "N": N, "K": K, "E": layer.E, "G": layer.G, "dtype": layer.dtype}
                rows.append({**key, "rows_per_expert": each, "tile": found["tile"], **about})
    return rows


def main(name: str) -> None:
    """Print one JSON line for each tile that was tried."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # others like it run beside it
    arch = architecture(name)
    for group, block_m in product(sorted({layer.G for layer in LAYERS}), BLOCK_M):
        candidates = []
        for found in tried(arch, group, block_m):
            candidates.append(found)
            print(json.dumps(found), flush=True)
        print(json.dumps({**choose(arch, candidates), "chosen": True}), flush=True)


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT | dict(os.environ, TRITON_INTERPRET="0"))
    main(sys.argv[1])
