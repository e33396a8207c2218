"""Run the HIP GEMMs at full size on a GPU and in emulation, with fp32 stored instead of D, and keep digests of both.

    PYTHONPATH=src python3 -u tests/on_hardware/hip_sums.py

writes hip_sums.json to the folder $OUT (or here); exit 1 if one bit differs. hip.py compares what kernels store; this sees
every bit of their accumulators. On AMD `equal` may be false: v_dot2 and WMMA are not verified to round as emulated.
"""

import concurrent.futures as cf
import hashlib
import json
import multiprocessing as mp
import os
import platform
import sys
import time
from pathlib import Path

OUT = Path(os.environ.get("OUT", "."))
COMMAND = "PYTHONPATH=src python3 -u tests/on_hardware/hip_sums.py"
# name: (runner, case). Sizes of docs/formats.md section 8: one token's eight experts, the attention projections, the vocabulary.
JOBS = {
    "lm_head.g32": ("int8_lm_head", "int8_lm_head/T1-V248320-K2048-G32/bf16/-/-/normal/s1"),
    "lm_head.channel": ("int8_lm_head", "int8_lm_head/T2-V32768-K2048-G-1/fp16/-/-/normal/s2"),
    "prefill.qwen3_5": ("prefill", "padded_gemm/T32-E2-k1-N1024-K2048-G128-B16/bf16/exllama-sym/uniform/normal/s3"),
    "prefill.fp16": ("prefill", "padded_gemm/T16-E2-k1-N1024-K2048-G32-B16/fp16/exllama-rdna/uniform/outliers/s4"),
    "linear.qkv": ("linear", "int4_linear/T1-N5120-K2048-G32/bf16/exllama-sym/-/normal/s5"),
    "linear.o_proj": ("linear", "int4_linear/T1-N2048-K4096-G128/fp16/exllama-rdna/-/outliers/s6"),
    "linear.five_rows": ("linear", "int4_linear/T5-N1536-K2048-G64/bf16/exllama-unpacked/-/cancelling/s7"),
    "linear.sum": ("linear_sum", "int4_linear/T2-N2048-K2048-G128/bf16/exllama-sym/-/normal/s8"),
    "gemm1.qwen3_omni": ("decode", "padded_gemm/T1-E8-k8-N1536-K2048-G32-B1/bf16/exllama-sym/uniform/normal/s9"),
    "gemm1.qwen3_5": ("decode", "padded_gemm/T4-E8-k8-N1024-K2048-G128-B4/fp16/exllama-sym/uniform/normal/s10"),
    "gemm2.qwen3_omni": ("decode", "padded_gemm/T8-E8-k1-N2048-K768-G32-B1/bf16/exllama-sym/balanced+weight/wide/s11"),
    "gemm2_reduce": ("reduce", "moe_w4a16/T2-E8-k8-H2048-I768-G32/bf16/exllama-sym/uniform/normal/s12"),
    "gemm2_reduce.silu": ("reduce_silu", "moe_w4a16/T1-E8-k8-H2048-I512-G128/bf16/exllama-sym/uniform/normal/s13"),
    "dense.router": ("dense", "silu_and_mul/T1-I2048/bf16/-/-/normal/s16"),
    "dense.shared_expert": ("shared", "silu_and_mul/T2-I2048/bf16/-/-/normal/s17"),
}


def results(runner, text, device):
    """{stage: tensor} of one job; fp32 sums wherever a kernel can store them."""
    import torch

    from moeracle import Case
    from moeracle.kernels.hip import int4_linear, int8_lm_head, moe_w4a16, padded_gemm, shared_expert

    case = Case.parse(text)
    if runner in ("dense", "shared"):  # tensors of the case's size from torch's generator: no op of ours builds them
        make = torch.Generator().manual_seed(case.seed)
        H, I, D = case.I, 512, torch.bfloat16
        x, w13, w2, g = (
            torch.randn(s, generator=make).to(D).to(device) for s in ((case.T, H), (2 * I, H), (H, I), (H,))
        )
        if runner == "dense":
            return {"sums": shared_expert.dense_gemv(x, w13, store32=True)}
        return {"out": shared_expert.shared_expert(x, w13, w2, g), "dot": shared_expert.tiny_dot(x, g)}
    args = case.build(device=device).args.values()
    if runner.startswith("reduce"):
        _, _, w2, weights, ids = args
        make = torch.Generator().manual_seed(case.seed)
        silu = runner.endswith("silu")
        x = torch.randn(ids.numel(), w2.K * (1 + silu), generator=make).to(w2.scale.dtype).to(device)
        return {"sums": moe_w4a16.gemm2_reduce(x, w2, weights, ids, fuse_silu=silu, store32=True)}
    if runner == "int8_lm_head":
        return {"sums": int8_lm_head.int8_lm_head(*args, store32=True)}
    if runner.startswith("linear"):
        decode = "sum" if runner.endswith("sum") else "truncate"
        return {"sums": int4_linear.int4_linear(*args, decode=decode, store32=True)}
    return {"sums": padded_gemm.padded_gemm(*args, block_size=case.B, store32=True)}


def digests(runner, text, device):
    """Return ({stage: [elements, sha256]}, seconds)."""
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    found = results(runner, text, device)
    plain = {s: t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for s, t in found.items()}
    taken = round(time.monotonic() - started, 2)
    return {s: [found[s].numel(), hashlib.sha256(data).hexdigest()] for s, data in plain.items()}, taken


def emulate(name):
    return name, digests(*JOBS[name], "cpu")


def main():
    import torch

    from moeracle.kernels.hip.runtime.build import nvcc, version
    from moeracle.kernels.toolchain.compilers import host_cxx

    if not torch.cuda.is_available():
        print("error: torch finds no GPU here; the sums are read from one", file=sys.stderr)
        return 2
    started = time.monotonic()
    gpu = torch.cuda.get_device_properties(0)
    workers = cf.ProcessPoolExecutor(min(len(JOBS), os.cpu_count() or 1), mp_context=mp.get_context("spawn"))
    emulated = [workers.submit(emulate, name) for name in JOBS]
    on_gpu = {}
    for name, (runner, text) in JOBS.items():
        on_gpu[name] = digests(runner, text, "cuda")
        print(f"{name}: gpu {on_gpu[name][1]} s", flush=True)
    entries = []
    for future in emulated:
        name, (host, seconds) = future.result()
        runner, text = JOBS[name]
        equal = host == on_gpu[name][0]
        entries.append(
            {"name": name, "runner": runner, "case": text, "equal": equal, "gpu": on_gpu[name][0], "host": host}
        )
        elements = sum(n for n, _ in host.values())
        print(
            f"{name}: {'equal' if equal else 'DIFFERENT'} in {elements:,} elements, emulation {seconds} s", flush=True
        )
    header = {
        "gpu": gpu.name,
        "torch": torch.__version__,
        "hip": torch.version.hip,
        "nvcc": None if torch.version.hip else version(nvcc()).splitlines()[-1],
        "host_compiler": version(host_cxx()).splitlines()[0],
        "host": f"{platform.system()} {platform.machine()}",
        "command": COMMAND,
    }
    text = json.dumps({"format": 1, **header, "entries": sorted(entries, key=lambda e: e["name"])}, indent=1)
    (OUT / "hip_sums.json").write_text(text + "\n")
    print(f"{len(entries)} jobs, {time.monotonic() - started:.0f} s")
    return 0 if all(e["equal"] for e in entries) else 1


if __name__ == "__main__":
    sys.exit(main())
