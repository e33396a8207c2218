"""Time whole MoE layers on a Hopper GPU, their two GEMMs and the sum, against the floor.

    python -m moeracle.kernels.bench_layer [--shape S …] [--tokens T …] [--dtype bf16|fp16] [--peer F] [--json F]

A layer is gemm1 with silu·mul, gemm2 and the sum over k, in a CUDA graph, over rotating routings (layer_problem); its
result is first compared with the portable composition's. `plain` launches each kernel after the one ahead has ended,
`us` lets it start before. --peer is a JSON file of other implementations' microseconds, {shape: {T: us}}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moeracle.kernels.bench_cases import shape_named
from moeracle.kernels.bench_ops import driver
from moeracle.kernels.bench_timing import microseconds
from moeracle.kernels.hopper_moe import most_blocks
from moeracle.kernels.hopper_tiles import Layer, layer_for, to_fields
from moeracle.kernels.layer_problem import LayerWeights, Problem
from moeracle.kernels.moe_sum_triton import moe_sum
from moeracle.kernels.tune_hopper import DTYPES, SHAPES, expected, gemm_calls, layer_calls, wrong

TOKENS = (1, 4, 16, 64, 256, 1024, 4096)


def measure(problem: Problem) -> dict[str, Any]:
    """Return one row: the layer's median, launched early and plainly, its parts, the floor, and what was computed.

    Raises:
        RuntimeError: the result is not the portable composition's.
    """
    shape, weights, R = problem.shape, problem.weights, problem.rows
    layer = layer_for(R, shape.E, weights.up, torch.device("cuda"))
    layer = Layer(layer.gemm1.fit(weights.up), layer.gemm2.fit(weights.down))
    reason = wrong(problem, layer, expected(problem))
    if reason:
        raise RuntimeError(f"{layer} at T={problem.T}: {reason}")
    a = torch.randn(R, shape.I, device="cuda").to(weights.dtype)
    y = torch.randn(R, shape.H, device="cuda").to(weights.dtype)
    parts = [microseconds(gemm_calls(problem, which, (layer.gemm1, layer.gemm2)[which], a, y)) for which in (0, 1)]
    parts.append(microseconds([partial(moe_sum, y, *route, programmatic=True) for route in problem.routes]))
    twice = [microseconds(layer_calls(problem, layer)) for _ in range(2)]
    us, plain = min(twice), microseconds(layer_calls(problem, layer, programmatic=False))
    work, B = problem.work, layer.block_m
    return {
        "T": problem.T,
        "us": round(us, 2),
        "again": round(max(twice), 2),
        "plain": round(plain, 2),
        "gemm1": round(parts[0], 2),
        "gemm2": round(parts[1], 2),
        "sum": round(parts[2], 2),
        "floor": round(problem.floor_us, 2),
        "of_floor": round(us / problem.floor_us, 3),
        "active": work.active,
        "gbs": round(work.weight_bytes / us / 1e3, 1),
        "tflops": round(work.flops / us / 1e6, 1),
        "padded_tflops": round(work.flops * work.padded_rows(B) / work.rows / us / 1e6, 1),
        "useful_percent": round(100 * work.rows / work.padded_rows(B), 1),
        "routings": len(problem.routes),
        "blocks_launched": most_blocks(R, shape.E, B),
        "tile": to_fields(layer),
    }


def header(arguments: list[str]) -> dict[str, Any]:
    """Return what was measured on, and the command."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        # of a file outside the current folder only the name: where it lay is nobody's business
        "command": " ".join(
            ["python -m moeracle.kernels.bench_layer", *(Path(a).name if a[:1] == "/" else a for a in arguments)]
        ),
    }


def main(arguments: list[str]) -> int:
    """Print a table and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m moeracle.kernels.bench_layer", description=__doc__)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("bench_layer: needs a GPU of compute capability 9.0", file=sys.stderr)
        return 2
    peers = json.loads(options.peer.read_text()) if options.peer else {}
    result: dict[str, Any] = {**header(arguments), "dtype": options.dtype, "shapes": {}}
    print(
        f"{'':16}{'T':>6}{'us':>9}{'plain':>9}{'gemm1':>8}{'gemm2':>8}{'sum':>7}{'floor':>8}{'x':>6}{'peer':>9}{'':>7}"
    )
    for name in options.shape:
        shape = shape_named(name)
        weights = LayerWeights(shape, DTYPES[options.dtype])
        rows = result["shapes"].setdefault(name, [])
        for T in options.tokens:
            found = measure(Problem(shape, T, weights))
            peer = peers.get(name, {}).get(str(T))
            if peer:
                found |= {"peer": peer, "peer_ratio": round(peer / found["us"], 2)}
            rows.append(found)
            against = f"{peer:9.1f}{found['peer_ratio']:6.2f}x" if peer else ""
            print(
                f"{name:16}{T:6}{found['us']:9.1f}{found['plain']:9.1f}{found['gemm1']:8.1f}{found['gemm2']:8.1f}"
                f"{found['sum']:7.1f}{found['floor']:8.1f}{found['of_floor']:6.2f}{against}",
                flush=True,
            )
        del weights
        torch.cuda.empty_cache()
    if options.json:
        temporary = options.json.with_name(f".{options.json.name}.{os.getpid()}")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(temporary, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
