"""Judge every tuned tile of the Hopper layer on the GPU that is here, several processes side by side. About 3 minutes.

    PYTHONPATH=src python3 tests/on_hardware/check_tuned.py F.json

Each tile goes through `moeracle check` on the cases below as a padded_gemm (one legal value an element: its schedule is
declared), each tuned layer as a moe_w4a16. F.json: the GPU and versions, and for each kernel its verdicts.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROCESSES = 14
GEMM = [
    "padded_gemm/T24-E3-k2-N128-K512-G128-B16/bf16/exllama-sym/uniform/outliers/s1",
    "padded_gemm/T40-E2-k2-N128-K512-G128-B48/bf16/exllama-sym/zipf1/wide/s2",
    "padded_gemm/T9-E4-k2-N256-K768-G32-B8/fp16/exllama-rdna/uniform+weight/cancelling/s3",
    "padded_gemm/T9-E4-k2-N256-K768-G32-B8/fp16/exllama-unpacked/uniform/normal/s4",
    "padded_gemm/T24-E3-k2-N128-K512-G128-B16/bf16/exllama-sym/uniform/subnormal/s5",
    "padded_gemm/T17-E3-k2-N96-K96-G32-B16/bf16/exllama-rdna/uniform/normal/s6",
]
LAYER = [
    "moe_w4a16/T24-E4-k2-H512-I256-G128/bf16/exllama-sym/uniform/normal/s1",
    "moe_w4a16/T33-E6-k3-H512-I256-G128/bf16/exllama-sym/zipf1/outliers/s2",
    "moe_w4a16/T9-E4-k2-H256-I768-G32/fp16/exllama-rdna/ignored/normal/s3",
    "moe_w4a16/T3-E8-k2-H256-I768-G32/fp16/exllama-unpacked/uniform/normal/s4",
]


def main(path: str) -> int:
    cases = [word for case in (*GEMM, *LAYER) for word in ("--case", case)]
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for i in range(PROCESSES):
            out = Path(folder, f"{i}.json")
            target = str(HERE / "tuned_tiles.py")
            command = [sys.executable, "-m", "moeracle", "check", target, *cases, "--json", str(out)]
            env = os.environ | {"TILES": f"{i}/{PROCESSES}", "OMP_NUM_THREADS": "1"}
            running.append(
                (out, subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
            )
        codes, reports, texts = [], [], []
        for out, process in running:
            texts.append(process.communicate()[0])
            codes.append(process.returncode)
            if out.exists():
                reports.append(json.loads(out.read_text()))
    import torch
    import triton

    result = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "command": "PYTHONPATH=src python3 tests/on_hardware/check_tuned.py fixtures/hardware/h200/tuned_tiles.json",
        "exit_codes": codes,
        "kernels": [kernel for report in reports for kernel in report.get("kernels", [])],
    }
    Path(path).write_text(json.dumps(result, indent=1) + "\n")
    for code, text in zip(codes, texts, strict=True):
        if code:
            print(text[-1500:])
    verdicts = [k.get("verdict", k.get("status", "?")) for k in result["kernels"]]
    print(f"{len(verdicts)} kernels: { ({v: verdicts.count(v) for v in set(verdicts)}) }, exit codes {codes}")
    return max(codes, default=3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
