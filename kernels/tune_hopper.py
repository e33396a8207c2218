"""Choose the tiles of the Hopper layer by measuring them: the search behind `moeracle kernels tune`.

    moeracle kernels tune --kernel moe_w4a16.hopper [--shape S …] [--tokens T …] [--dtype bf16|fp16] [--dry]

Each GEMM's candidates are timed by themselves, those near the best of each block_m again in turn, the best two of
either as a whole layer; a layer whose result is not the portable composition's, bit for bit (or nearly, where K is
split), is dropped before it is timed. Layers near the best are timed again, in turn (tune_rounds.py), and the fastest
that the judge also lets pass is the one. Kernels are compiled by several processes first.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from moeracle.kernels.bench_cases import Shape
from moeracle.kernels.bench_timing import GraphTimer, microseconds
from moeracle.kernels.hopper_candidates import candidates
from moeracle.kernels.hopper_launch import UNKNOWN, Blocks, run_gemm
from moeracle.kernels.hopper_moe import moe_w4a16_hopper, most_blocks
from moeracle.kernels.hopper_tiles import OP, Few, Layer, Tile, default_layer, to_fields
from moeracle.kernels.layer_problem import LayerWeights, Problem
from moeracle.kernels.moe_triton import moe_w4a16_padded
from moeracle.kernels.prepared_weight import PreparedWeight
from moeracle.kernels.tune_rounds import near_ones_again

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SHAPES = ("qwen3.5-35b", "qwen3-omni-30b")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BEST = 2  # of each GEMM and block_m that are tried together
FOLD = 2  # of the problems' bf16 weights
SPLIT_ERROR = 4e-3  # relative, of a layer whose K is summed in parts


Judge = Callable[["Problem", Layer], "str | None"]


def nobody(problem: Problem, layer: Layer) -> None:
    """Let every layer pass that has the portable composition's bits."""


def to_stderr(line: str) -> None:
    """Say one line where results are not."""
    print(line, file=sys.stderr, flush=True)


def fitted(w: PreparedWeight, rows_per_expert: float) -> list[Tile]:
    """Return the distinct candidates that a weight can take."""
    tiles = (tile.fit(w) for tile in candidates(rows_per_expert))
    return list(dict.fromkeys(tiles))


def compile_ahead(jobs: list[tuple[Shape, int, Tile, torch.dtype]]) -> list[tuple[int, Tile]]:
    """Compile each job's kernel as it will be launched, in this process; return which GEMMs' tiles spill registers."""
    spilling = []
    for shape, which, tile, dtype in jobs:
        N, K = (2 * shape.I, shape.H) if which == 0 else (shape.H, shape.I)
        make = partial(torch.empty, device="cuda", dtype=torch.int32)
        slabs, columns = -(-N // 64) * 4, -(-K // 128) * 128
        words, pairs = make(1, slabs, columns // 64, 32, 4), make(1, slabs, K // shape.G, 8)
        fold = FOLD if dtype == torch.bfloat16 else 0
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


def gemm_calls(problem: Problem, which: int, tile: Tile, a: torch.Tensor, y: torch.Tensor) -> list[Any]:
    """Return one GEMM's calls, one a routing."""
    w = (problem.weights.up, problem.weights.down)[which]
    x, out, k = ((problem.x, a, problem.shape.k), (a, y, 1))[which]
    most = most_blocks(problem.rows, problem.shape.E, tile.block_m)
    return [
        partial(
            run_gemm, x, w, blocks, out, tile, top_k=k, block_size=tile.block_m,
            num_blocks=min(most, blocks[1].numel()), launch=(UNKNOWN, 1)[which],
        )
        for blocks in problem.blocks(tile.block_m)
    ]  # fmt: skip


def _given(blocks: Blocks, topk_ids: torch.Tensor, block_size: int, num_experts: int) -> Blocks:
    return blocks


def layer_calls(problem: Problem, layer: Layer, programmatic: bool = True) -> list[Any]:
    """Return the whole layer's calls, one a routing, alignments made."""
    up, down, all_blocks = problem.weights.up, problem.weights.down, problem.blocks(layer.block_m)
    return [
        partial(
            moe_w4a16_hopper, problem.x, up, down, weights, ids, config=layer, programmatic=programmatic,
            align=partial(_given, blocks),
        )
        for (weights, ids), blocks in zip(problem.routes, all_blocks, strict=True)
    ]  # fmt: skip


def expected(problem: Problem) -> torch.Tensor:
    """Return the portable composition's result for the first routing."""
    out = moe_w4a16_padded(problem.x, problem.weights.w13, problem.weights.w2, *problem.routes[0])
    assert isinstance(out, torch.Tensor)
    return out


def wrong(problem: Problem, layer: Layer, want: torch.Tensor) -> str | None:
    """Say how the first call's result differs from the portable composition's, or return None."""
    got = layer_calls(problem, layer)[0]()
    torch.cuda.synchronize()
    parts = any(isinstance(tile, Few) and tile.split_k > 1 for tile in (layer.gemm1, layer.gemm2))
    if not parts:
        return None if torch.equal(got, want) else f"{int((got != want).sum())} elements differ"
    error = float((got.double() - want.double()).norm() / want.double().norm())
    return None if error <= SPLIT_ERROR else f"relative error {error:.1e}"


def tune(
    problem: Problem,
    judge: Judge = nobody,
    note: Callable[[str], None] = to_stderr,
    spilling: Collection[tuple[int, Tile]] = (),
) -> dict[str, Any]:
    """Return {"layer", "us", "default_us", "tried", "gemms", "illegal"}: the best legal layer, and all that was timed.

    Args:
        problem: what to time on.
        judge: says why a layer must not enter a table, or None; asked about the fastest first.
        note: told of each layer that is dropped.
        spilling: (GEMM, tile) of those that are not tried.
    Raises:
        ValueError: no layer is legal.
    """
    weights, shape, each = problem.weights, problem.shape, problem.rows / problem.shape.E
    a = torch.zeros(problem.rows, shape.I, device="cuda", dtype=weights.dtype)
    y = torch.zeros(problem.rows, shape.H, device="cuda", dtype=weights.dtype)
    best: list[dict[int, list[tuple[float, Tile]]]] = [{}, {}]
    clock = GraphTimer("cuda")
    of_tile = lambda which, tile: gemm_calls(problem, which, tile, a, y)
    for which, w in enumerate((weights.up, weights.down)):
        for tile in fitted(w, each):
            if (which, tile) in spilling:
                continue
            us = microseconds(of_tile(which, tile), 5)
            best[which].setdefault(tile.block_m, []).append((us, tile))
        for m, measured in best[which].items():
            best[which][m] = near_ones_again(clock, measured, partial(of_tile, which), rounds=7)
    key = itemgetter(0)
    want = expected(problem)
    default = default_layer(problem.rows, shape.E, weights.up.N)
    default = Layer(default.gemm1.fit(weights.up), default.gemm2.fit(weights.down))
    layers = [default]
    for m in best[0].keys() & best[1].keys():
        pairs = itertools.product(best[0][m][:BEST], best[1][m][:BEST])
        if min(best[0][m], key=key)[0] > 1.4 * min(min(b, key=key)[0] for b in best[0].values()):
            continue
        layers += [Layer(one, two) for (_, one), (_, two) in pairs]
    tried: list[tuple[float, Layer]] = []
    illegal: list[dict[str, Any]] = []

    def drop(layer: Layer, reason: str) -> None:
        illegal.append({"T": problem.T, "tile": to_fields(layer), "why": reason})
        note(f"dropped {layer}: {reason}")

    for layer in dict.fromkeys(layers):
        reason = wrong(problem, layer, want)
        if reason:
            drop(layer, reason)
        else:
            tried.append((microseconds(layer_calls(problem, layer)), layer))
    tried = near_ones_again(clock, tried, partial(layer_calls, problem))
    found: dict[str, Any] = {"default_us": next((us for us, layer in tried if layer == default), None)}
    found["tried"] = [(round(us, 1), str(layer)) for us, layer in tried]
    found["gemms"] = [{str(t): round(us, 1) for of_m in b.values() for us, t in sorted(of_m, key=key)} for b in best]
    for us, layer in tried:
        reason = judge(problem, layer)
        if reason is None:
            return {"layer": layer, "us": us, "illegal": illegal, **found}
        drop(layer, reason)
    raise ValueError(f"tune: no legal layer at T={problem.T} of {len(illegal)} tried; the last: {illegal[-1]['why']}")


def search(
    shape: Shape,
    tokens: Sequence[int],
    dtype: str = "bf16",
    judge: Judge = nobody,
    note: Callable[[str], None] = to_stderr,
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield for each T the tuning table's row of one shape's best layer, and what `tune` found.

    Args:
        shape: of the layer, one that has a prepared order.
        tokens: T of each bucket.
        dtype: "bf16" or "fp16".
        judge, note: see `tune`.
    """
    weights = LayerWeights(shape, DTYPES[dtype])
    note(f"compiling the candidates of {len(tokens)} token counts")
    jobs = [
        (shape, which, tile, DTYPES[dtype])
        for which, w in enumerate((weights.up, weights.down))
        for tile in dict.fromkeys(t for T in tokens for t in fitted(w, T * shape.k / shape.E))
    ]
    workers = max(1, min(14, (os.cpu_count() or 2) - 1))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        spilling = {
            job for found in pool.map(compile_ahead, [jobs[i::workers] for i in range(workers)]) for job in found
        }
    note(f"{len(spilling)} of {len(jobs)} candidates spill registers and are left out")
    for T in tokens:
        problem = Problem(shape, T, weights)
        found = tune(problem, judge, note, spilling)
        note(f"T={T}: {found['us']:.1f} us, floor {problem.floor_us:.1f}: {found['layer']}")
        key = {"op": OP, "N": 2 * shape.I, "K": shape.H, "E": shape.E, "G": shape.G, "dtype": dtype}
        tile = {"rows_per_expert": T * shape.k / shape.E, "tile": to_fields(found["layer"])}
        yield {**key, **tile, "us": round(found["us"], 1)}, found
