"""Record the answers of in-tree kernels to `moeracle infer`, so that CI infers their contracts again without a GPU.

    PYTHONPATH=src python3 -u tests/on_hardware/infer.py

writes one file a kernel and sizes into $OUT/infer.tar (or infer/infer.tar), to be unpacked in h200/infer/.
Every file is replayed at once; a line says what was found, and whether what the kernel declares predicts the bits.
"""

import dataclasses
import multiprocessing as mp
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src")]
OUT = Path(os.environ.get("OUT", "infer"))
WORKERS = int(os.environ.get("WORKERS", "16"))
COMMAND = "PYTHONPATH=src python3 -u tests/on_hardware/infer.py"


def jobs():
    """(kernel, options), the slowest first; "only": the stages that are shown to infer."""
    long = {"dtype": "bf16", "k": 2048}
    found = [("moe_w4a16.decode", {"dtype": dtype, "k": 512}) for dtype in ("bf16", "fp16")]
    found += [("moe_w4a16.decode", {"dtype": "bf16", "k": 512, "rows": 16, "zero": "unpacked"})]
    for name in ("moe_w4a16.grouped", "moe_w4a16.padded", "moe_w4a16.fused", "moe_w4a16.hopper", "shared_expert"):
        found += [(name, {"dtype": dtype, "k": 256}) for dtype in ("bf16", "fp16")]
    found += [("moe_w4a16.hopper", {"dtype": "bf16", "k": 256, "rows": rows}) for rows in (8, 16)]
    found += [("moe_w4a16.grouped", {"dtype": "bf16", "k": 256, "rows": 16, "zero": "unpacked"})]
    found += [("moe_w4a16.grouped", {"dtype": "bf16", "k": 256, "only": "out"})]
    found += [("shared_expert", {"dtype": "bf16", "k": 128, "rows": 4})]
    found += [("tiny_dot", {"dtype": dtype, "k": 2048}) for dtype in ("bf16", "fp16")]
    found += [("grouped_gemm", long), ("grouped_gemm.hopper", long)]
    names = ("grouped_gemm", "padded_gemm", "int4_linear.dot", "int4_linear.rows", "int8_lm_head", "int8_lm_head.rows")
    for name in (*names, "moe_unpermute", "silu_and_mul"):
        found += [(name, {"dtype": dtype, "k": 512}) for dtype in ("bf16", "fp16")]
    for name, rows in (("int8_lm_head", 256), ("int8_lm_head", 16), ("int8_lm_head.rows", 64)):
        sizes = {"dtype": "bf16", "k": 1024, "rows": rows}
        found += [(name, {**sizes, "group": group}) for group in (-1, 128, *([32, 16] if rows == 16 else []))]
    found += [("int4_linear", {"dtype": "bf16", "k": 512, "rows": rows}) for rows in (1, 16)]
    for zero in ("rdna", "unpacked"):
        found += [("grouped_gemm", {"dtype": "bf16", "k": 512, "rows": rows, "zero": zero}) for rows in (16, 256)]
    for name in ("grouped_gemm", "padded_gemm", "int4_linear.dot"):
        found += [(name, {"dtype": "bf16", "k": 512, "rows": 16, "zero": "unpacked"})]
    found += [("grouped_gemm", {"dtype": "fp16", "k": 512, "rows": 16, "zero": "unpacked"})]
    found += [("grouped_gemm", {"dtype": "bf16", "k": 512, "rows": 16})]
    for name in ("grouped_gemm.hopper", "padded_gemm.hopper", "padded_gemm.hopper_split"):
        found += [(name, {"dtype": "bf16", "k": 512, "rows": rows}) for rows in (16, 256)]
        found += [(name, {"dtype": "fp16", "k": 512})]
    few = [{"dtype": "bf16", "k": 512, "rows": rows} for rows in (4, 16)]
    found += [("int4_linear.hopper", each) for each in ({"dtype": "bf16", "k": 512}, {"dtype": "fp16", "k": 512}, *few)]
    down = {"dtype": "bf16", "k": 256, "rows": 16}
    found += [
        ("shared_expert.hopper", each) for each in ({"dtype": "bf16", "k": 256}, {"dtype": "fp16", "k": 256}, down)
    ]
    found = [job for at, job in enumerate(found) if job not in found[:at]]
    return found + others({name for name, _ in found})


def others(named):
    """Return jobs for registered kernels that nobody has listed above: a new one is recorded, too."""
    from moeracle.kernels.registry import REGISTRY
    from moeracle.properties.cases.record import record_of

    new = [e for e in REGISTRY if record_of(e.op).inferred and e.name not in named]
    k = {"moe_w4a16": 256, "shared_expert": 256}
    return [(e.name, {"dtype": dtype, "k": k.get(e.op, 512)}) for e in new for dtype in e.dtypes if dtype != "fp32"]


def header():
    import torch
    import triton

    cuda = torch.cuda.is_available()
    smi = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "gpu": torch.cuda.get_device_name() if cuda else "cpu",
        "capability": "{}.{}".format(*torch.cuda.get_device_capability()) if cuda else "",
        "driver": subprocess.run(smi, capture_output=True, text=True).stdout.strip() if cuda else "",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "command": COMMAND,
    }


def work(job):
    import torch

    torch.set_num_threads(1)
    name, options = job
    started = time.time()
    title = "-".join([name, *(f"{key}{value}" for key, value in options.items())])
    try:
        from moeracle.properties.infer import infer, infer_recorded
        from moeracle.properties.infer.declared import declared_by
        from moeracle.target.load import load_target

        device = "cuda" if torch.cuda.is_available() else "cpu"
        kernel = next((k for k in load_target("moeracle.kernels", device).kernels if k.name == name), None)
        if kernel is None:
            return None, f"{title}: not here"
        asked = {key: value for key, value in options.items() if key != "only"}
        if "only" in options:
            kernel = shown(kernel, options["only"].split("+"))
        path = Path(tempfile.gettempdir()) / f"{title}.json"

        def record(calls, found):
            head = {"options": options, "site": found.site, "declared": declared_by(kernel, found), **header()}
            calls.save(path, head)

        found = infer(kernel, **asked, record=record)
        again = infer_recorded(path)
        same = "replayed alike" if told(again) == told(found) else f"REPLAY DIFFERS: {again.text}"
        what = f"{found.text} | {'explained' if found.explained else 'UNKNOWN ' + found.why_not}"
        declared = "; ".join(" ".join(row) for row in found.declared) or "declares no schedule"
        second = f"GEMM2 {found.second.order}, " if found.second else ""
        return path, (
            f"{title}: {what} | {len(found.verdicts)} cases | {same} | {declared} | {found.order}, {second}"
            f"{found.rows} rows {path.stat().st_size} bytes {time.time() - started:.1f} s | {' | '.join(found.notes)}"
        )
    except Exception:
        return None, f"{title}: FAILED {traceback.format_exc()}"


def shown(kernel, stages):
    """Return a kernel that shows only some of its stages."""
    whole = kernel.fn
    return dataclasses.replace(kernel, fn=lambda *args: {name: whole(*args)[name] for name in stages})


def told(found):
    """Return what a replay must find again."""
    second = found.second and (found.second.order, found.second.here, found.second.facts)
    return found.order, found.here, found.facts, second, found.declared


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[1:]
    todo = [job for job in jobs() if not wanted or job[0] in wanted]
    started = time.time()
    with mp.get_context("spawn").Pool(min(WORKERS, len(todo))) as pool:
        for path, line in pool.imap_unordered(work, todo):
            print(line, flush=True)
            with (OUT / "infer.log").open("a") as log:  # all that is known so far, should this be cut short
                log.write(line + "\n")
            if path is not None:
                with tarfile.open(OUT / "infer.tar", "a") as tar:
                    tar.add(path, path.name)
    print(f"{len(todo)} recordings, {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
