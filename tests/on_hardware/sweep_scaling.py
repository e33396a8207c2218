"""How the throughput of `moeracle sweep` grows with workers: what each step costs here, and a simulation to 1,000.

    python tests/on_hardware/sweep_scaling.py [--ray] [--json F]

Measured: a campaign's CPU seconds a case with 1 and 2 workers (processes, and with --ray tasks of a local Ray); what a
worker costs before its first case; a chunk's file; a look for a chunk past those that others hold; the driver's look at
all of them; and Ray's own: a task, and a question after a thousand. The simulation lets N workers take chunks of 500 of
a million cases, each with these costs, replaced after 10,000 cases; a disk or network that is slower than this
machine's is not in it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from moeracle.commands.sweep.campaign import Meter, prepare
from moeracle.commands.sweep.journal import JOURNALS, PARTS, Journal, parquet
from moeracle.commands.sweep.plan import Plan, Subject, write_plan
from moeracle.commands.sweep.worker import SHARE

CASES, CHUNK, WHOLE = 600, 500, 1_000_000
WORKERS = (1, 2, 4, 8, 16, 64, 256, 1000)
RIGHT = """
import torch
import moeracle
from moeracle import ref

@moeracle.kernel("tiny_dot", contract="grouped,accumulator=fp32", device="cpu")
def dot(x, w, sigmoid):
    return ref.tiny_dot(x, w, sigmoid=sigmoid).to(x.dtype)

@moeracle.kernel("silu_and_mul", contract="grouped", device="cpu")
def silu(h):
    gate, up = h.float().chunk(2, 1)
    return (torch.nn.functional.silu(gate).to(h.dtype).float() * up).to(h.dtype)

@moeracle.kernel("int4_linear", contract="grouped,accumulator=fp32", device="cpu")
def linear(x, w, bias):
    out = x.float() @ w.dequantize(torch.float32).to(x.dtype).float().T
    return (out if bias is None else out + bias.float()).to(x.dtype)
"""
ROW = {"case": "int4_linear/T3-N40-K128-G32/bf16/exllama-sym/-/normal/s1", "op": "int4_linear", "kernel": "linear",
       "target": "right.py", "contract": "grouped,accumulator=fp32", "verdict": "legal", "tier": "", "stage": "",
       "reason": "", "digests": '{"out":"0123456789abcdef"}', "judged": 120, "illegal": 0, "exact": 0,
       "width_ulp": 0.0, "max_ratio": 0.5, "seconds": 0.01, "finished": 1e9, "host": "h", "device": "cpu",
       "versions": "moeracle 0.2.0 torch 2.13.0"}  # fmt: skip


def computed() -> float:
    """Return the CPU seconds of this process's children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def campaign(folder: Path, cases: int, jobs: int, ray: bool) -> dict[str, float]:
    """Run one; return its CPU and wall seconds."""
    out = folder / f"c{cases}-{jobs}-{ray}"
    words = ["sweep", "right.py", "--cases", str(cases), "--jobs", str(jobs), "--profile", "smoke", "--out", str(out)]
    words += ["--ray", "local"] if ray else []
    cpu, wall = computed(), time.monotonic()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "moeracle", *words], cwd=folder, env=env, check=True, capture_output=True)
    return {"cases": cases, "jobs": jobs, "ray": ray, "cpu": computed() - cpu, "wall": time.monotonic() - wall}


def cost(what: Callable[[], Any], times: int) -> float:
    """Return the CPU seconds of one call, the least of five runs."""
    found = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(times):
            what()
        found.append((time.process_time() - began) / times)
    return min(found)


def _ignored(*said: Any) -> None:
    """Take progress, and say nothing."""


def of_files(folder: Path) -> dict[str, float]:
    """Return what a chunk's file, a chunk held by somebody else, and the driver's look cost: CPU seconds."""
    plan = Plan("0", [Subject("right.py", "int4_linear", "linear", "grouped", "cpu")], 0, "smoke", [], [], WHOLE, CHUNK)
    prepare(folder)
    write_plan(folder, plan)
    rows = [{**ROW, "chunk": 0}] * CHUNK
    content = parquet(rows)
    found = {"chunk's file": cost(lambda: parquet(rows), 10)}
    half = (
        json.dumps({"cases": [ROW["case"]] * CHUNK}).encode()
        + b"\n"
        + (json.dumps(ROW).encode() + b"\n") * (CHUNK // 2)
    )
    for count in (1, 10, 100, 1000):
        for chunk in range(count):
            (folder / JOURNALS / f"{chunk:08d}.jsonl").write_bytes(half)
            (folder / PARTS / f"{1000 + chunk:08d}-{CHUNK}.parquet").write_bytes(content)
        meter = Meter(folder, plan)
        found[f"driver's look, {count} workers"] = cost(partial(meter.look, _ignored), 1)
    with Journal(folder, 0) as held:
        held.take()
        found["a chunk that is held"] = cost(lambda: Journal(folder, 0).take(), 200)
    return found


def of_ray() -> dict[str, float]:
    """Return what Ray itself takes: seconds."""
    import ray

    began = time.monotonic()
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    found = {"a local cluster's start (wall)": time.monotonic() - began}
    nothing, waits = ray.remote(num_cpus=1)(lambda: 0), ray.remote(num_cpus=1)(time.sleep)
    began = time.monotonic()
    ray.get(nothing.remote())
    found["the first task (wall)"] = time.monotonic() - began
    began = time.monotonic()
    ray.get([nothing.remote() for _ in range(1000)])
    found["a task (wall)"] = (time.monotonic() - began) / 1000
    found["a task (driver's CPU)"] = cost(lambda: ray.get(nothing.remote()), 100)
    tasks = [waits.remote(600) for _ in range(1000)]
    found["asking after 1,000 tasks"] = cost(lambda: ray.wait(tasks, num_returns=len(tasks), timeout=0), 5)
    ray.shutdown()
    return found


def simulated(workers: int, a_case: float, a_start: float, a_file: float, a_held: float, a_task: float) -> float:
    """Return cases a second of a million, from the command's start to the last chunk.

    Args:
        workers: how many, each with a core of its own; Ray hands them their tasks one after another.
        a_case, a_start, a_file: seconds of judging, of a worker before its first case, of a finished chunk's file.
        a_held: of looking at one chunk that another holds.
        a_task: of handing one worker its task.
    """
    ready = [(i * a_task + a_start, 0) for i in range(workers)]
    heapq.heapify(ready)
    left, last = -(-WHOLE // CHUNK), 0.0
    while left:
        at, done = heapq.heappop(ready)
        left -= 1
        held = min(workers, left + 1) * a_held
        at += held + CHUNK * a_case + a_file
        last = max(last, at)
        done += CHUNK
        heapq.heappush(ready, (at + a_task + a_start, 0) if done >= SHARE else (at, done))
    return WHOLE / last


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ray", action="store_true")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "right.py").write_text(RIGHT)
        few = campaign(folder, 3, 1, False)
        runs = [campaign(folder, CASES, jobs, ray) for ray in (False, *[True] * asked.ray) for jobs in (1, 2)]
        files = of_files(folder / "files")
    ray = of_ray() if asked.ray else {}
    a_case = (runs[0]["cpu"] - few["cpu"]) / (CASES - 3)
    a_start = runs[1]["cpu"] - runs[0]["cpu"]
    for run in runs:
        print({name: round(value, 3) for name, value in run.items()})
    print(f"a case {a_case * 1e3:.1f} ms, a worker before its first case {a_start:.1f} s of CPU")
    for name, seconds in {**files, **ray}.items():
        print(f"{name}: {seconds * 1e3:.3f} ms")
    costs = (a_case, a_start, files["chunk's file"], files["a chunk that is held"], ray.get("a task (wall)", 0.0))
    model = {workers: simulated(workers, *costs) for workers in WORKERS}
    for workers, rate in model.items():
        print(f"{workers:5,} workers: {rate:9,.0f} cases/s, {rate / workers / model[1]:.0%} of so many single ones")
    if asked.json:
        found = {"runs": runs, "files": files, "ray": ray, "a_case": a_case, "a_start": a_start, "model": model}
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
