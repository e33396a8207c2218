"""Record the answers of in-tree kernels to `moeracle infer`, so that CI infers their contracts again without a GPU.

    PYTHONPATH=src python3 -u tests/hardware/infer.py

writes one file a kernel and sizes to the folder $OUT (or infer/), to be copied to fixtures/h200/infer/. Every file is
replayed at once; a line says what was found.
"""

import multiprocessing as mp
import os
import subprocess
import sys
import tarfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src")]
OUT = Path(os.environ.get("OUT", "infer"))
WORKERS = int(os.environ.get("WORKERS", "12"))
COMMAND = "PYTHONPATH=src python3 -u tests/hardware/infer.py"


def jobs():
    """(kernel, options), the slowest first."""
    found = [("grouped_gemm", {"dtype": "bf16", "k": 2048})]
    names = ("grouped_gemm", "padded_gemm", "int4_linear.dot")
    for name in ("moe_w4a16.grouped", "moe_w4a16.padded"):
        found += [(name, {"dtype": dtype, "k": 256}) for dtype in ("bf16", "fp16")]
    for name in ("moe_w4a16.decode", "int4_linear.rows", "int8_lm_head", "int8_lm_head.rows", *names):
        found += [(name, {"dtype": dtype, "k": 512}) for dtype in ("bf16", "fp16")]
    found += [("int4_linear", {"dtype": "bf16", "k": 512, "rows": rows}) for rows in (1, 16)]
    for zero in ("rdna", "unpacked"):
        found += [("grouped_gemm", {"dtype": "bf16", "k": 512, "rows": rows, "zero": zero}) for rows in (16, 256)]
    found += [("grouped_gemm", {"dtype": "fp16", "k": 512, "rows": 16, "zero": "unpacked"})]
    found += [("padded_gemm", {"dtype": "bf16", "k": 512, "rows": 16, "zero": "unpacked"})]
    found += [("int4_linear.dot", {"dtype": "bf16", "k": 512, "rows": 16, "zero": "unpacked"})]
    found += [("moe_w4a16.grouped", {"dtype": "bf16", "k": 256, "rows": 16, "zero": "unpacked"})]
    found += [("moe_w4a16.decode", {"dtype": "bf16", "k": 512, "rows": 16, "zero": "unpacked"})]
    found += [("grouped_gemm", {"dtype": "bf16", "k": 512, "rows": 16})]
    for name in ("grouped_gemm.hopper", "padded_gemm.hopper", "padded_gemm.hopper_split"):
        found += [(name, {"dtype": "bf16", "k": 512, "rows": rows}) for rows in (16, 256)]
    found += [(name, {"dtype": "bf16", "k": 256}) for name in ("moe_w4a16.hopper", "moe_w4a16.fused")]
    return found


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
        from moeracle.properties.infer.drive import find_site
        from moeracle.target import load_target

        device = "cuda" if torch.cuda.is_available() else "cpu"
        kernel = next(k for k in load_target("moeracle.kernels", device).kernels if k.name == name)
        path = OUT / f"{title}.json"
        site = find_site(kernel, **options)
        head = {"options": options, "site": str(site.case), **header()}
        found = infer(kernel, **options, record=lambda calls: calls.save(path, head))
        again = infer_recorded(path)
        same = "replayed alike" if again.schedule == found.schedule else f"REPLAY DIFFERS: {again.text}"
        what = (
            f"{found.text} | {'explained' if found.explained else 'UNKNOWN ' + found.why_not} | {len(found.verdicts)}"
        )
        notes = " | ".join(found.notes)
        return f"{title}: {what} cases | {same} | {found.rows} rows {path.stat().st_size} bytes {time.time() - started:.1f} s | {found.order} | {notes}"
    except Exception:
        return f"{title}: FAILED {traceback.format_exc()}"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[1:]
    todo = [job for job in jobs() if not wanted or job[0] in wanted]
    started = time.time()
    with mp.get_context("spawn").Pool(min(WORKERS, len(todo))) as pool:
        for line in pool.imap_unordered(work, todo):
            print(line, flush=True)
    with tarfile.open(OUT / "infer.tar", "w") as tar:
        for path in sorted(OUT.glob("*.json")):
            tar.add(path, path.name)
    print(f"{len(todo)} recordings, {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
