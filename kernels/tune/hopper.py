"""Choose the tiles of the Hopper layer by measuring them: the search behind `moeracle kernels tune`.

    moeracle kernels tune --kernel moe_w4a16.hopper [--shape S …] [--tokens T …] [--dtype bf16|fp16] [--dry]

Each GEMM's candidates are timed by themselves, those near the best of each block_m again in turn, the best two of
either as a whole layer, which is dropped before it is timed where the judge finds it illegal. Layers near the best are
timed again, in turn (rounds.py), and the fastest is the one. Kernels are compiled by several processes first.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from moeracle.kernels.bench.cases import Shape
from moeracle.kernels.bench.layer_problem import LayerProblem
from moeracle.kernels.bench.timing import GraphTimer, microseconds
from moeracle.kernels.hopper.launch import UNKNOWN, run_gemm
from moeracle.kernels.hopper.prepared_weight import PreparedWeight
from moeracle.kernels.hopper.tiles.candidates import candidates
from moeracle.kernels.hopper.tiles.layers import OP, Layer, Tile, model_layer, to_fields
from moeracle.kernels.tune.rounds import near_ones_again

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
BEST = 2  # of each GEMM and block_m that are tried together


Judge = Callable[[Layer], "str | None"]
Note = Callable[[str], None]


def fitted(w: PreparedWeight, rows_per_expert: float) -> list[Tile]:
    """Return the distinct candidates that a weight can take."""
    tiles = (tile.fit(w) for tile in candidates(rows_per_expert))
    return list(dict.fromkeys(tiles))


def compile_ahead(jobs: list[tuple[Shape, int, Tile, torch.dtype, int]]) -> list[tuple[int, Tile]]:
    """Compile each job's kernel as it will be launched, in this process; return which GEMMs' tiles spill registers."""
    spilling = []
    for shape, which, tile, dtype, fold in jobs:
        N, K = (2 * shape.I, shape.H) if which == 0 else (shape.H, shape.I)
        make = partial(torch.empty, device="cuda", dtype=torch.int32)
        slabs, columns = -(-N // 64) * 4, -(-K // 128) * 128
        words, pairs = make(1, slabs, columns // 64, 32, 4), make(1, slabs, K // shape.G, 8)
        w = PreparedWeight(words, pairs, None, N, K, shape.G, which == 0, dtype, fold)
        blocks = make(16), make(16), torch.zeros(1, device="cuda", dtype=torch.int32)  # none is launched for real
        x = torch.empty(16, K, device="cuda", dtype=dtype)
        out = torch.empty(16, N // 2 if which == 0 else N, device="cuda", dtype=dtype)
        k, m = (shape.k, 1)[which], tile.block_m
        early = UNKNOWN if which == 0 else 1
        made = run_gemm(x, w, blocks, out, tile, top_k=k, block_size=m, num_blocks=1, launch=early)
        if getattr(made, "n_spills", 0):  # known once it is loaded
            spilling.append((which, tile))
    torch.cuda.synchronize()
    return spilling


def tune(
    problem: LayerProblem, judge: Judge, note: Note, spilling: Collection[tuple[int, Tile]] = ()
) -> dict[str, Any]:
    """Return {"layer", "us", "default_us", "tried", "gemms", "illegal"}: the best legal layer, and all that was timed.

    Args:
        problem: what to time on.
        judge: says why a layer must not be timed on this problem, or None.
        note: called with each layer that is dropped.
        spilling: (GEMM, tile) of those that are not tried.
    Raises:
        ValueError: no layer is legal.
    """
    each = problem.rows / problem.E
    best: list[dict[int, list[tuple[float, Tile]]]] = [{}, {}]
    clock = GraphTimer("cuda")
    for which, w in enumerate((problem.up, problem.down)):
        for tile in fitted(w, each):
            if (which, tile) in spilling:
                continue
            us = microseconds(problem.gemm_calls(which, tile), 5)
            best[which].setdefault(tile.block_m, []).append((us, tile))
        for m, measured in best[which].items():
            best[which][m] = near_ones_again(clock, measured, partial(problem.gemm_calls, which), rounds=7)
    key = itemgetter(0)
    default = problem.fit(model_layer(problem.rows, problem.E, problem.up))
    layers = [default]
    for m in best[0].keys() & best[1].keys():
        pairs = itertools.product(best[0][m][:BEST], best[1][m][:BEST])
        if min(best[0][m], key=key)[0] > 1.4 * min(min(b, key=key)[0] for b in best[0].values()):
            continue
        layers += [Layer(one, two) for (_, one), (_, two) in pairs]
    legal: list[tuple[float, Layer]] = []
    illegal: list[dict[str, Any]] = []
    for layer in dict.fromkeys(layers):
        reason = judge(layer)
        if reason is None:
            legal.append((microseconds(problem.layer_calls(layer)), layer))
        else:
            illegal.append({"T": problem.T, "tile": to_fields(layer), "why": reason})
            note(f"dropped {layer}: {reason}")
    if not legal:
        raise ValueError(f"tune: no legal layer at T={problem.T} of {len(illegal)} tried; the last: {reason}")
    tried = near_ones_again(clock, legal, problem.layer_calls)
    us, layer = tried[0]
    return {
        "layer": layer,
        "us": us,
        "default_us": next((us for us, layer in tried if layer == default), None),
        "tried": [(round(us, 1), str(layer)) for us, layer in tried],
        "gemms": [{str(t): round(us, 1) for of_m in b.values() for us, t in sorted(of_m, key=key)} for b in best],
        "illegal": illegal,
    }


def search(
    shape: Shape,
    tokens: Sequence[int],
    dtype: str,
    problem_of: Callable[[int], tuple[LayerProblem, Judge]],
    note: Note,
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield for each T the tuning table's row of one shape's best layer, and what `tune` found.

    Args:
        shape: of the layer, one that has a prepared order.
        tokens: T of each bucket.
        dtype: "bf16" or "fp16".
        problem_of: returns what to time at T tokens, and its judge.
        note: called with one line for each step.
    """
    problem, _ = problem_of(tokens[0])
    note(f"compiling the candidates of {len(tokens)} token counts")
    jobs = [
        (shape, which, tile, w.dtype, w.fold)
        for which, w in enumerate((problem.up, problem.down))
        for tile in dict.fromkeys(t for T in tokens for t in fitted(w, T * shape.k / shape.E))
    ]
    workers = max(1, min(14, (os.cpu_count() or 2) - 1))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        spilling = {
            job for found in pool.map(compile_ahead, [jobs[i::workers] for i in range(workers)]) for job in found
        }
    note(f"{len(spilling)} of {len(jobs)} candidates spill registers and are left out")
    for T in tokens:
        problem, judge = problem_of(T)
        found = tune(problem, judge, note, spilling)
        note(f"T={T}: {found['us']:.1f} us: {found['layer']}")
        key = {"op": OP, "N": 2 * shape.I, "K": shape.H, "E": shape.E, "G": shape.G, "dtype": dtype}
        tile = {"rows_per_expert": T * shape.k / shape.E, "tile": to_fields(found["layer"])}
        yield {**key, **tile, "us": round(found["us"], 1)}, found
