"""How the throughput of `moeracle sweep` grows with workers: what each step costs here, and a simulation to 1,000.

    python tests/on_hardware/sweep_scaling.py [--ray] [--cases N] [--json F]

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

CHUNK, WHOLE = 500, 1_000_000
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


def _nothing() -> int:
    return 0


def _waits() -> None:
    time.sleep(600)


def of_ray() -> dict[str, float]:
    """Return what Ray itself takes: seconds."""
    import ray

    began = time.monotonic()
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    found = {"a local cluster's start (wall)": time.monotonic() - began}
    nothing, waits = (ray.remote(num_cpus=1)(fn) for fn in (_nothing, _waits))
    began = time.monotonic()
    ray.get(nothing.remote())
    found["the first task (wall)"] = time.monotonic() - began
    began = time.monotonic()
    ray.get([nothing.remote() for _ in range(1000)])
    found["a task (wall)"] = (time.monotonic() - began) / 1000
    found["a task (driver's CPU)"] = cost(lambda: ray.get(nothing.remote()), 100)
    tasks = [waits.remote() for _ in range(1000)]
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
    options.add_argument("--cases", type=int, default=600)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    found: dict[str, Any] = {"runs": []}

    def keep(name: str, value: Any) -> None:
        print(name, {key: round(one, 6) for key, one in value.items()}, flush=True)
        found.update({"runs": [*found["runs"], value]} if name == "run" else {name: value})
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "right.py").write_text(RIGHT)
        keep("files", of_files(folder / "files"))
        if asked.ray:
            keep("ray", of_ray())
        for cases, jobs, ray in [
            (3, 1, False),
            *((asked.cases, j, r) for r in (False, True)[: 1 + asked.ray] for j in (1, 2)),
        ]:
            keep("run", campaign(folder, cases, jobs, ray))
    few, one, two = found["runs"][:3]
    a_case, a_start = (one["cpu"] - few["cpu"]) / (asked.cases - 3), two["cpu"] - one["cpu"]
    keep("costs", {"a case": a_case, "a worker before its first case": a_start})
    files, a_task = found["files"], found.get("ray", {}).get("a task (wall)", 0.0)
    for workers in WORKERS:
        rate = simulated(workers, a_case, a_start, files["chunk's file"], files["a chunk that is held"], a_task)
        keep(f"model, {workers:,} workers", {"cases a second": rate, "of as many single ones": rate * a_case / workers})


if __name__ == "__main__":
    main()
