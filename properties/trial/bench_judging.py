"""What judging tensors that are there already costs: one whole layer, beside its fp64 products alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from moeracle.ref.contracts.contract import contract
from moeracle.ref.ops.moe_w4a16 import rows_by_expert
from moeracle.ref.weights.weight import Int4Weight

from ..cases.case import Case, Problem
from ..cases.optable import OWN
from ..judge import judge

QWEN3 = {"E": 128, "H": 2048, "I": 768, "k": 8, "G": 32}  # Qwen3-30B-A3B
QWEN35 = {"E": 256, "H": 2048, "I": 512, "k": 8, "G": 128}  # Qwen3.5-35B-A3B
INTERVAL, SCHEDULED = "grouped", "grouped,schedule=wgmma.k16.sm90/t64"
POINTS: tuple[tuple[dict[str, int], int, str], ...] = (
    (QWEN3, 2048, INTERVAL),
    (QWEN3, 4096, INTERVAL),
    (QWEN35, 16, INTERVAL),
    (QWEN35, 16, SCHEDULED),
    (QWEN3, 2048, SCHEDULED),
)
RUNS = 2
SMALLER = 8  # a CPU takes an eighth of the experts and of the tokens: as many rows an expert, an eighth of the time


def bench_judging(device: str, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Time judging all stages of a legal layer, by interval and, on a GPU, with a schedule.

    Args:
        device: where the tensors are.
        progress: called with one line a measurement.
    Returns:
        {"device", "threads", "torch", "rows"}, a row being sizes, contract, status, and the least of RUNS times: of
        judging, and of the layer's products in fp64 on dense operands; and their ratio.
    """
    on_cpu = torch.device(device).type == "cpu"
    divide = SMALLER if on_cpu else 1
    rows = []
    for sizes, T, rules in POINTS:
        if on_cpu and (rules == SCHEDULED or T < 1024):  # minutes; and too few rows to tell from one expert's weights
            continue
        case = {**sizes, "E": max(sizes["k"], sizes["E"] // divide), "T": max(1, T // divide)}
        rows.append({**case, "contract": rules, **_measured(case, rules, device)})
        progress(f"judged {rows[-1]}")
    name = torch.cuda.get_device_name(device) if not on_cpu else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}


def format_judging(result: dict[str, Any]) -> str:
    """Return the measurements as lines."""
    lines = [f"judging on {result['device']}, {result['threads']} threads, torch {result['torch']}"]
    for r in result["rows"]:
        sizes = " ".join(f"{name}{r[name]}" for name in ("T", "E", "k", "H", "I", "G"))
        lines.append(
            f"{sizes}  {r['contract']}  {r['status']}: judging {r['judging_s']:.3f} s, "
            f"fp64 products {r['products_s']:.3f} s, ratio {r['ratio']:.2f}, first run {r['first_s']:.3f} s"
        )
    return "\n".join(lines)


def _measured(sizes: dict[str, int], rules: str, device: str) -> dict[str, Any]:
    problem = _problem(sizes, device)
    stages = _legal(problem)
    seconds = []
    status = ""
    for _ in range(RUNS):
        verdict, spent = _timed(partial(judge, problem, stages, contract(rules), explain=False), device)
        seconds.append(spent)
        status = verdict.status
    products = min(_products(problem, device) for _ in range(RUNS))
    least = min(seconds)
    return {
        "status": status, "judging_s": least, "first_s": seconds[0], "products_s": products, "ratio": least / products,
    }  # fmt: skip


def _timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    """Return what a call returns and its seconds: of wall time on a GPU, of CPU time on a CPU that others may use."""
    on_gpu = torch.device(device).type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize(device)
    start = clock()
    done = work()
    if on_gpu:
        torch.cuda.synchronize(device)
    return done, clock() - start


def _problem(sizes: dict[str, int], device: str) -> Problem:
    """Return a problem made on the device: a case's own tensors take longer to make than to judge."""
    T, E, k, H, I, G = (sizes[name] for name in "TEkHIG")
    generator = torch.Generator(device).manual_seed(T)

    def weight(N: int, K: int) -> Int4Weight:
        words = torch.randint(-(2**31), 2**31, (E, N, K // 8), generator=generator, dtype=torch.int64, device=device)
        scale = (torch.rand(E, N, K // G, generator=generator, device=device) + 0.5) * K**-0.5 / 4
        return Int4Weight(words.to(torch.int32), scale.bfloat16(), None, "exllama", G)

    x = torch.randn(T, H, generator=generator, device=device).bfloat16()
    ids = torch.rand(T, E, generator=generator, device=device).argsort(1)[:, :k].int()
    router = torch.softmax(torch.randn(T, k, generator=generator, device=device), 1)
    args = {"x": x, "w13": weight(2 * I, H), "w2": weight(H, I), "topk_weights": router, "topk_ids": ids}
    dims = tuple((letter, sizes[letter]) for letter in "TEkHIG")
    return Problem(Case("moe_w4a16", dims, "bf16", "exllama", "sym", OWN, OWN), args)


def _legal(problem: Problem) -> dict[str, torch.Tensor]:
    """Return the stages of a layer that sums in fp32 and rounds where the contract does."""
    x, w13, w2, router, ids = problem.args.values()
    (T, k), D = ids.shape, x.dtype
    h = torch.zeros(T * k, w13.N, dtype=D, device=x.device)
    a, y = h.new_zeros(T * k, w2.K), h.new_zeros(T * k, w2.N)
    for e, rows in rows_by_expert(ids):
        h[rows] = (x[rows // k].float() @ w13.expert(e).dequantize().to(D).float().T).to(D)
        gate, up = h[rows].float().chunk(2, 1)
        a[rows] = (torch.nn.functional.silu(gate).to(D).float() * up).to(D)
        y[rows] = (a[rows].float() @ w2.expert(e).dequantize().to(D).float().T).to(D)
    out = (y.reshape(T, k, -1).float() * router[:, :, None]).sum(1).to(D)
    return {"h": h, "a": a, "y": y, "out": out}


def _products(problem: Problem, device: str) -> float:
    """Return the seconds of both GEMMs in fp64 on dense operands that are there already."""
    w13, w2, ids = (problem.args[name] for name in ("w13", "w2", "topk_ids"))
    counts = [len(rows) for _, rows in rows_by_expert(ids)]
    first, second = (torch.rand(w.N, w.K, dtype=torch.float64, device=device) for w in (w13, w2))
    left, right = (torch.rand(max(counts), K, dtype=torch.float64, device=device) for K in (w13.K, w2.K))

    def work() -> None:
        for n in counts:
            left[:n] @ first.T
            right[:n] @ second.T

    work()
    return _timed(work, device)[1]
