"""What the reference and its intervals cost: time against bare fp64 matmuls, and peak memory, of one whole layer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moeracle.ref.contract import contract
from moeracle.ref.interval_moe import layer_bands
from moeracle.ref.moe import moe_w4a16, rows_by_expert
from moeracle.ref.weight import Int4Weight

from .case import Case
from .guard import Guarded
from .judge import judge
from .tally import Tally

TOKENS = (1, 16, 64, 256, 1024, 4096)
LAYER = {"E": 256, "H": 2048, "I": 512, "k": 8, "G": 128}  # Qwen3.5-35B-A3B


def bench_reference(
    progress: Callable[[str], None] = lambda line: None, tokens: tuple[int, ...] = TOKENS
) -> dict[str, Any]:
    """Measure one whole layer at each token count, each in a process of its own so that peaks do not mix.

    Args:
        progress: called with one line a measurement.
        tokens: the T to measure.
    Returns:
        {"layer", "threads", "torch", "rows"}, a row being {"T", "matmul_s", "reference_s", "interval_s", "ratio",
        "excess_mb", …}, and "small": judged examples a second on one thread.
    """
    rows = []
    for T in tokens:
        progress(f"reference layer E256 H2048 I512 k8 G128 at T={T}")
        command = [sys.executable, "-m", "moeracle.properties.bench_reference", str(T)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"reference bench at T={T} failed: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    progress("small cases on one thread")
    small = measure_small()
    return {
        "layer": LAYER,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
        "small": small,
    }


def format_bench(result: dict[str, Any]) -> str:
    """Return the measurements as a table: seconds, their ratio, and memory beyond weights, activations and outputs."""
    columns = ("T", 5), ("bare fp64 matmuls", 18), ("reference", 10), ("intervals", 10), ("ratio", 6), ("memory", 19)
    layer = " ".join(f"{name}{size}" for name, size in result["layer"].items())
    lines = [
        f"one Qwen3.5-35B layer ({layer}), {result['threads']} threads, torch {result['torch']}",
        " ".join(f"{name:>{width}}" for name, width in columns) + "  (beyond weights, activations and outputs)",
    ]
    for r in result["rows"]:
        lines.append(
            f"{r['T']:>5} {r['matmul_s']:>16.2f} s {r['reference_s']:>8.2f} s {r['interval_s']:>8.2f} s "
            f"{r['ratio']:>5.2f}x {r['excess_mb']:>16.0f} MB"
        )
    small = result["small"]
    lines.append(f"small cases: {small['per_second']:.0f} judged examples a second on one thread, the slowest case "
                 f"{1000 * small['slowest_s']:.0f} ms ({small['slowest']})")  # fmt: skip
    return "\n".join(lines)


def measure_small(count: int = 60) -> dict[str, Any]:
    """Build, guard and judge small cases (T<=64, K<=512, E<=8) on one thread, without the kernel's own time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rules, times = contract("grouped"), {}
    for seed in range(count):
        T, E, H, I = (
            (8, 24, 64)[seed % 3],
            (2, 5, 8)[seed // 3 % 3],
            (64, 256, 512)[seed // 9 % 3],
            (32, 128, 256)[seed % 3],
        )
        case = Case.parse(f"moe_w4a16/T{T}-E{E}-k2-H{H}-I{I}-G32/bf16/exllama-sym/zipf1/normal/s{seed}")
        stages: dict[str, torch.Tensor] = {}
        start = time.perf_counter()
        problem = case.build()
        guarded = Guarded(problem.args)
        built = time.perf_counter() - start
        moe_w4a16(*problem.args.values(), stages=stages)
        output = {name: t.to(case.torch_dtype) for name, t in stages.items()}
        start = time.perf_counter()
        guarded.written()
        judge(problem, output, rules, explain=False)
        times[str(case)] = built + time.perf_counter() - start
    torch.set_num_threads(threads)
    slowest = max(times, key=lambda text: times[text])
    return {"per_second": count / sum(times.values()), "slowest": slowest, "slowest_s": times[slowest], "cases": count}


def _random_weight(E: int, N: int, K: int, G: int, seed: int) -> Int4Weight:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(2**31), 2**31, (E, N, K // 8), generator=generator, dtype=torch.int64).to(torch.int32)
    scale = (torch.rand(E, N, K // G, generator=generator) + 0.5) * K**-0.5 / 4
    return Int4Weight(words, scale.bfloat16(), None, "exllama", G)


def _status(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes; Linux."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def measure(T: int) -> dict[str, Any]:
    """Measure one layer at T tokens in this process; see bench_reference."""
    E, H, I, k, G = (LAYER[name] for name in ("E", "H", "I", "k", "G"))
    generator = torch.Generator().manual_seed(T)
    w13, w2 = _random_weight(E, 2 * I, H, G, 1), _random_weight(E, H, I, G, 2)
    x = torch.randn(T, H, generator=generator).bfloat16()
    ids = torch.rand(T, E, generator=generator).argsort(1)[:, :k].int()
    weights = torch.softmax(torch.randn(T, k, generator=generator), 1)
    rules = contract("grouped")
    moe_w4a16(x[:1], w13, w2, weights[:1], ids[:1])  # warm up

    matmul_s = _bare_matmuls(ids, H, I)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    stages: dict[str, torch.Tensor] = {}
    start = time.perf_counter()
    moe_w4a16(x, w13, w2, weights, ids, stages=stages)
    reference_s = time.perf_counter() - start
    reference_excess = _status("VmHWM") - before - sum(t.nbytes for t in stages.values())

    stored = {name: stages.pop(name).to(x.dtype) for name in ("h", "a", "y", "out")}
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    tallies = {name: Tally(name, stored[name], rules) for name in stored}
    start = time.perf_counter()
    given = {name: stored[name] for name in ("h", "a", "y")}
    layer_bands(x, w13, w2, weights, ids, rules, given=given, visit=lambda s, r, b: tallies[s].visit(r, b))
    interval_s = time.perf_counter() - start
    interval_excess = _status("VmHWM") - before
    judged = sum(t.result.judged for t in tallies.values())
    return {
        "T": T,
        "matmul_s": matmul_s,
        "reference_s": reference_s,
        "interval_s": interval_s,
        "ratio": (reference_s + interval_s) / matmul_s,
        "excess_mb": max(reference_excess, interval_excess) / 2**20,
        "reference_excess_mb": reference_excess / 2**20,
        "interval_excess_mb": interval_excess / 2**20,
        "judged": judged,
    }


def _bare_matmuls(ids: torch.Tensor, H: int, I: int) -> float:
    """Time both GEMMs in fp64 on dense operands that are there already: nothing gathered, nothing dequantized."""
    w13, w2 = torch.rand(2 * I, H, dtype=torch.float64), torch.rand(H, I, dtype=torch.float64)
    counts = [len(rows) for _, rows in rows_by_expert(ids)]
    x, a = torch.rand(max(counts), H, dtype=torch.float64), torch.rand(max(counts), I, dtype=torch.float64)
    x @ w13.T, a @ w2.T
    start = time.perf_counter()
    for n in counts:
        x[:n] @ w13.T
        a[:n] @ w2.T
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
