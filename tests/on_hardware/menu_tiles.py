"""A TARGET: every tile that the model of the machine may choose, as a padded_gemm or a linear, with the schedule it keeps.

    PYTHONPATH=src python3 tests/on_hardware/menu_tiles.py F.json       # judges all, several processes; less than a minute

TILES=2/8 in the environment takes the third eighth of them. F.json: the GPU, versions, and each kernel's verdicts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import moeracle
from moeracle.kernels.entry import EXLLAMA_ZEROS
from moeracle.kernels.hopper.cases import hopper_case
from moeracle.kernels.hopper.int4_linear import int4_linear_hopper
from moeracle.kernels.hopper.moe_w4a16 import hopper_padded_gemm
from moeracle.kernels.hopper.tiles import linear, model
from moeracle.kernels.hopper.tiles.kinds import sizes_of

PROCESSES, SECONDS = 16, 50  # and what a process may take
CASES = [
    "padded_gemm/T40-E2-k2-N512-K1536-G128-B64/bf16/exllama-sym/zipf1/wide/s2",
    "padded_gemm/T9-E4-k2-N512-K1536-G128-B8/bf16/exllama-sym/uniform/cancelling/s3",
    "int4_linear/T5-N512-K2048-G128/bf16/exllama-sym/-/outliers/s1",
    "int4_linear/T300-N512-K2048-G128/bf16/exllama-sym/-/normal/s4",
]
KEPT = ("kernel", "op", "status", "cases_judged", "judged", "exact", "illegal", "skipped")
DECLARED = {"layout": "exllama", "contract": "grouped", "device": "cuda", "zeros": EXLLAMA_ZEROS}


def name_of(tile):
    return f"{type(tile).__name__.lower()}{'-'.join(str(value) for value in vars(tile).values())}"


def declare_gemm(tile):
    def schedule(case):
        return tile.fit(sizes_of(case.N, case.K, case.G)).schedule()

    @moeracle.kernel("padded_gemm", name=name_of(tile), schedule=schedule, supports=hopper_case, **DECLARED)
    def gemm(x, w, sorted_token_ids, expert_ids, num_tokens_post_padded, topk_weights, top_k):
        blocks = sorted_token_ids, expert_ids, num_tokens_post_padded
        return hopper_padded_gemm(x, w, *blocks, topk_weights, top_k, config=tile)


def declare_linear(tile):
    def supports(case):
        return hopper_case(case) if linear.fit(tile, case.N, case.K) else "the tile does not divide it"

    def schedule(case):
        return linear.fit(tile, case.N, case.K).schedule()

    @moeracle.kernel("int4_linear", name=f"linear-{name_of(tile)}", schedule=schedule, supports=supports, **DECLARED)
    def gemm(x, w, bias):
        return int4_linear_hopper(x, w, bias, config=linear.fit(tile, w.N, w.K))


def main(path):
    cases = [word for case in CASES for word in ("--case", case)]
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for i in range(PROCESSES):
            out = Path(folder, f"{i}.json")
            command = [sys.executable, "-m", "moeracle", "check", __file__, *cases, "--in-process", "--json", str(out)]
            env = os.environ | {"TILES": f"{i}/{PROCESSES}", "OMP_NUM_THREADS": "1"}
            running.append(
                (out, subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
            )
        reports, texts, end = [], [], time.monotonic() + SECONDS
        for out, process in running:
            try:
                texts.append(process.communicate(timeout=max(1, end - time.monotonic()))[0])
            except subprocess.TimeoutExpired:
                process.kill()
                texts.append(process.communicate()[0])
            reports += [json.loads(out.read_text())] if out.exists() else []
            print(f"{len(reports)} of {len(texts)} processes have judged", flush=True)
    import triton

    kernels = [kernel for report in reports for kernel in report["kernels"]]
    found = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "command": "PYTHONPATH=src python3 tests/on_hardware/menu_tiles.py fixtures/hardware/h200/menu_tiles.json",
        "exit_codes": [process.returncode for _, process in running],
        "kernels": [{name: kernel[name] for name in KEPT} for kernel in kernels],
    }  # fmt: skip
    Path(path).write_text(json.dumps(found, indent=1) + "\n")
    print(found["exit_codes"], len(kernels), "kernels")
    print(
        "\n".join(line for text in texts for line in text.splitlines() if "FAIL" in line or "error" in line.lower())[
            :3000
        ]
    )


if __name__ == "__main__":
    main(sys.argv[1])
else:
    part, _, parts = os.environ.get("TILES", "0/1").partition("/")
    EVERY = [*((declare_gemm, tile) for tile in model.MENU), *((declare_linear, tile) for tile in linear.MENU)]
    for declare, chosen in EVERY[int(part) :: int(parts)]:
        declare(chosen)
    torch.set_num_threads(1)
