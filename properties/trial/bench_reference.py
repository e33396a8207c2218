"""What the reference and its intervals cost: time against bare fp64 matmuls, and peak memory, of one whole layer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moeracle.ref.bounds.deferred import whole
from moeracle.ref.bounds.moe_w4a16 import Pieces, layer_bands
from moeracle.ref.contracts.contract import contract
from moeracle.ref.ops.moe_w4a16 import moe_w4a16, rows_by_expert
from moeracle.ref.rounding import round_in_fp64
from moeracle.ref.weights.weight import Int4Weight

from ..cases.case import Case
from ..common.guard import Guarded
from ..compare.tally import Tally
from ..judge import judge

SMALL_CASES = 60
TOKENS = (1, 16, 64, 256, 1024, 4096)
LAYER = {"E": 256, "H": 2048, "I": 512, "k": 8, "G": 128}  # Qwen3.5-35B-A3B


def bench_reference(progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure one whole layer at each token count, each in a process of its own so that peaks do not mix.

    Args:
        progress: called with one line a measurement.
    Returns:
        {"layer", "threads", "torch", "rows"}, a row being {"T", "matmul_s", "reference_and_intervals_s", "ratio",
        "excess_mb", …}, and "small": judged examples a second on one thread.
    """
    rows = []
    for T in TOKENS:
        progress(f"reference layer E256 H2048 I512 k8 G128 at T={T}")
        command = [sys.executable, "-m", "moeracle.properties.trial.bench_reference", str(T)]
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
    columns = [("T", 5), ("bare fp64 matmuls", 18), ("reference+intervals", 20), ("ratio", 6), ("memory", 8)]
    columns += [("fp32 layer", 11), ("judging", 9)]
    layer = " ".join(f"{name}{size}" for name, size in result["layer"].items())
    lines = [
        f"one Qwen3.5-35B layer ({layer}), {result['threads']} threads, torch {result['torch']}",
        " ".join(f"{name:>{width}}" for name, width in columns) + "  (beyond weights, activations and outputs)",
    ]
    for r in result["rows"]:
        lines.append(
            f"{r['T']:>5} {r['matmul_s']:>16.2f} s {r['reference_and_intervals_s']:>18.2f} s {r['ratio']:>5.2f}x "
            f"{r['excess_mb']:>5.0f} MB {r['fp32_layer_s']:>9.2f} s {r['judging_s']:>7.2f} s"
        )
    small = result["small"]
    lines.append(f"small cases: {small['per_second']:.0f} judged examples a second on one thread, the slowest case "
                 f"{1000 * small['slowest_s']:.0f} ms ({small['slowest']})")  # fmt: skip
    return "\n".join(lines)


def measure_small() -> dict[str, Any]:
    """Build, guard and judge small cases (T<=64, K<=512, E<=8) on one thread, without the kernel's own time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rules, times = contract("grouped"), {}
    for seed in range(SMALL_CASES):
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
    return {
        "per_second": len(times) / sum(times.values()),
        "slowest": slowest,
        "slowest_s": times[slowest],
        "cases": len(times),
    }


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
    plain = _measured(lambda: moe_w4a16(x, w13, w2, weights, ids, stages={}))
    stored = {
        name: torch.empty(rows, columns, dtype=x.dtype)
        for name, rows, columns in (("h", T * k, 2 * I), ("a", T * k, I), ("y", T * k, H), ("out", T, H))
    }

    def walk(defer: bool = False) -> Pieces:
        given = {name: stored[name] for name in ("h", "a", "y")}
        return layer_bands(x, w13, w2, weights, ids, rules, given=given, defer=defer)

    def keep() -> None:
        for stage, rows, band in walk():
            stored[stage][rows] = round_in_fp64(whole(band).mid, x.dtype).to(x.dtype)

    tallies = {name: Tally(name, stored[name], rules) for name in stored}

    def tally() -> None:
        for stage, rows, band in walk(defer=True):
            tallies[stage].visit(rows, band)

    both = _measured(keep)  # each stage's fp64 value, rounded once and passed on, and its interval
    judging = _measured(tally)
    illegal = sum(t.result.illegal for t in tallies.values())
    if illegal:
        raise ValueError(f"{illegal} elements of the reference lie outside its own intervals")
    return {
        "T": T,
        "matmul_s": matmul_s,
        "fp32_layer_s": plain.seconds,
        "reference_and_intervals_s": both.seconds,
        "judging_s": judging.seconds,
        "ratio": both.seconds / matmul_s,
        "excess_mb": max(plain.excess - _bytes_of_fp32_stages(T, k, H, I), both.excess, judging.excess) / 2**20,
        "judged": sum(t.result.judged for t in tallies.values()),
    }


class Measured(NamedTuple):
    """What a call took: seconds, and bytes of memory at its peak beyond what was there before."""

    seconds: float
    excess: int


def _measured(work: Callable[[], object]) -> Measured:
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    work()
    return Measured(time.perf_counter() - start, _status("VmHWM") - before)


def _bytes_of_fp32_stages(T: int, k: int, H: int, I: int) -> int:
    return 4 * (T * k * (2 * I + I + H) + T * H)


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
