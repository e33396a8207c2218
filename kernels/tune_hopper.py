"""Choose the tiles of the Hopper layer by measuring them, and write them into the GPU's tuning table.

    python -m moeracle.kernels.tune_hopper [--shape S …] [--tokens T …] [--dtype bf16|fp16] [--dry]

Each GEMM's candidates are timed by themselves, the best two of either for each block_m as a whole layer; a layer whose
result is not the portable composition's, bit for bit (or nearly, where K is split), is dropped before it is timed.
Kernels are compiled by several processes first.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from moeracle.kernels import tuned
from moeracle.kernels.bench_cases import Shape, shape_named
from moeracle.kernels.hopper_moe import UNKNOWN, Blocks, moe_w4a16_hopper, most_blocks, run_gemm
from moeracle.kernels.hopper_tiles import OP, Few, Layer, Ring, Tile, to_fields
from moeracle.kernels.layer_problem import LayerWeights, Problem, microseconds
from moeracle.kernels.moe_triton import moe_w4a16_padded
from moeracle.kernels.prepared_weight import PreparedWeight

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SHAPES = ("qwen3.5-35b", "qwen3-omni-30b")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BEST = 2  # of each GEMM and block_m that are tried together
SPLIT_ERROR = 4e-3  # relative, of a layer whose K is summed in parts


def candidates(rows_per_expert: float) -> Iterator[Tile]:
    """Yield the tiles worth trying at this many rows an expert, before they are fitted to a weight."""
    each = rows_per_expert
    for m in (8, 16, 32):
        if m / 8 <= max(1.0, each) and each <= 24:
            for n, split, depth in itertools.product((64, 128), (1, 2, 4), (2, 3, 4, 8)):
                if (split == 1 or each <= 0.5) and n * split <= 256:
                    yield Few(m, n, split, depth)
            if m == 8:
                yield Few(8, 64, 1, 8, 64)  # eight programs a multiprocessor
                if each <= 0.5:
                    yield from (Few(8, 64, 2, 8, 64), Few(8, 64, 4, 4, 64))
    for m in (8, 16, 32, 64, 128):
        if not each / 4 <= m <= max(4 * each, 8):
            continue
        yield Ring(m, 128, 128, 4, 4)
        yield Ring(m, 128, 64, 5, 4)
        if m <= 32:
            yield Ring(m, 64, 128, 4, 4)
        if m >= 32:
            yield from (Ring(m, 128, 128, 3, 8), Ring(m, 128, 64, 5, 8), Ring(m, 256, 64, 4, 8), Ring(m, 256, 64, 5, 8))


def fitted(w: PreparedWeight, rows_per_expert: float) -> list[Tile]:
    """Return the distinct candidates that a weight can take."""
    tiles = (tile.fit(w) for tile in candidates(rows_per_expert))
    return list(dict.fromkeys(tiles))


def compile_ahead(jobs: list[tuple[Shape, int, Tile, torch.dtype]]) -> None:
    """Compile each job's kernel as it will be launched, in this process; for a pool's worker."""
    for shape, which, tile, dtype in jobs:
        N, K = (2 * shape.I, shape.H) if which == 0 else (shape.H, shape.I)
        make = partial(torch.empty, device="cuda", dtype=torch.int32)
        slabs, columns = -(-N // 64) * 4, -(-K // 128) * 128
        w = PreparedWeight(
            make(1, slabs, columns // 64, 32, 4),
            make(1, slabs, K // shape.G, 8),
            None,
            N,
            K,
            shape.G,
            which == 0,
            dtype,
        )
        blocks = make(16), make(16), torch.zeros(1, device="cuda", dtype=torch.int32)  # none is launched for real
        x = torch.empty(16, K, device="cuda", dtype=dtype)
        out = torch.empty(16, N // 2 if which == 0 else N, device="cuda", dtype=dtype)
        k, m = (shape.k, 1)[which], tile.block_m
        run_gemm(x, w, blocks, out, tile, top_k=k, block_size=m, num_blocks=1, launch=UNKNOWN if which == 0 else 1)
    torch.cuda.synchronize()


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


def tune(problem: Problem) -> dict[str, Any]:
    """Return {"layer", "us", "tried"}: the best layer, its time, and every layer that was timed."""
    weights, shape, each = problem.weights, problem.shape, problem.rows / problem.shape.E
    a = torch.zeros(problem.rows, shape.I, device="cuda", dtype=weights.dtype)
    y = torch.zeros(problem.rows, shape.H, device="cuda", dtype=weights.dtype)
    best: list[dict[int, list[tuple[float, Tile]]]] = [{}, {}]
    for which, w in enumerate((weights.up, weights.down)):
        for tile in fitted(w, each):
            us = microseconds(gemm_calls(problem, which, tile, a, y), 5)
            best[which].setdefault(tile.block_m, []).append((us, tile))
    key = itemgetter(0)
    want = expected(problem)
    tried: list[tuple[float, Layer]] = []
    for m in best[0].keys() & best[1].keys():
        pairs = itertools.product(sorted(best[0][m], key=key)[:BEST], sorted(best[1][m], key=key)[:BEST])
        if min(best[0][m], key=key)[0] > 1.4 * min(min(b, key=key)[0] for b in best[0].values()):
            continue
        for (_, one), (_, two) in pairs:
            layer = Layer(one, two)
            reason = wrong(problem, layer, want)
            if reason:
                print(f"dropped {layer}: {reason}", file=sys.stderr)
                continue
            tried.append((microseconds(layer_calls(problem, layer)), layer))
    us, layer = min(tried, key=key)
    gemms = [{str(tile): round(us, 1) for found in b.values() for us, tile in sorted(found, key=key)} for b in best]
    return {"layer": layer, "us": us, "tried": [(round(us, 1), str(layer)) for us, layer in tried], "gemms": gemms}


def main(arguments: list[str]) -> int:
    """Tune, print a line a token count, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m moeracle.kernels.tune_hopper", description=__doc__)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--dry", action="store_true", help="print every GEMM's times, and leave the table as it is")
    options = parser.parse_args(arguments)
    dtype, rows = DTYPES[options.dtype], []
    for name in options.shape:
        shape = shape_named(name)
        weights = LayerWeights(shape, dtype)
        jobs = [
            (shape, which, tile, dtype)
            for which, w in enumerate((weights.up, weights.down))
            for tile in dict.fromkeys(t for T in options.tokens for t in fitted(w, T * shape.k / shape.E))
        ]
        workers = max(1, min(14, (os.cpu_count() or 2) - 1))
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            pool.map(compile_ahead, [jobs[i::workers] for i in range(workers)])
        for T in options.tokens:
            problem = Problem(shape, T, weights)
            found = tune(problem)
            if options.dry:
                for number, times in enumerate(found["gemms"], 1):
                    print(f"  gemm{number}", *(f"{tile}: {us}" for tile, us in times.items()), sep="\n    ")
            print(f"{name} T={T}: {found['us']:.1f} us, floor {problem.floor_us:.1f}: {found['layer']}", flush=True)
            row = {"op": OP, "N": 2 * shape.I, "K": shape.H, "E": shape.E, "G": shape.G, "dtype": options.dtype}
            rows.append(
                {
                    **row,
                    "rows_per_expert": T * shape.k / shape.E,
                    "tile": to_fields(found["layer"]),
                    "us": round(found["us"], 1),
                }
            )
    if not options.dry:
        gpu, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        import triton

        made = {"command": " ".join(["python -m moeracle.kernels.tune_hopper", *arguments]).strip()}
        made |= {"torch": torch.__version__, "triton": triton.__version__}
        path: Path = tuned.write(tuned.slug(gpu), gpu, f"sm_{major}{minor}", made, rows)
        print(f"wrote {path.name}: {len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
