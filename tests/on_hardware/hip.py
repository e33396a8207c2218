"""Run every HIP kernel on this machine's GPU and on the CPU's emulation, at full size, and compare the bits. Minutes.

    PYTHONPATH=src python3 tests/on_hardware/hip.py             AMD (torch with ROCm) or NVIDIA; needs a compiler, docs/hip.md
    PYTHONPATH=src python3 tests/on_hardware/hip.py --gpu-only  only the GPU's part, with its JSON
    PYTHONPATH=src python3 tests/on_hardware/hip.py --against hip.json    emulate what a JSON recorded and compare

Writes hip.json (every case judged on the GPU, docs/json.md) to $OUT or here. Exit 0: all legal, and on NVIDIA equal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from moeracle.kernels.hip.runtime import launch
from moeracle.kernels.hip.runtime.emulate import library
from moeracle.kernels.hip.runtime.launch import in_order
from moeracle.properties.cases.case import Case
from moeracle.properties.common.guard import digest
from moeracle.target.load import load_target

TARGET = "moeracle.kernels.hip"
Key = tuple[str, str, str]
# Layers of Qwen3.5-35B-A3B (H2048 I512 E256 k8 G128), Qwen3-30B-A3B (H2048 I768 E128 k8 G32) and their dense projections.
MOE = [
    f"moe_w4a16/T{T}-E{E}-k8-H2048-I{I}-G{G}/{dtype}/exllama-{zero}/{routing}/{data}/s{T}"
    for T, E, I, G, dtype, zero, routing, data in (
        (1, 256, 512, 128, "bf16", "sym", "uniform", "normal"),
        (1, 256, 512, 128, "fp16", "sym", "uniform", "normal"),
        (4, 256, 512, 128, "bf16", "sym", "zipf1", "outliers"),
        (5, 256, 512, 128, "bf16", "sym", "hot16", "cancelling"),
        (1, 256, 512, 128, "bf16", "rdna", "uniform", "normal"),
        (1, 128, 768, 32, "bf16", "sym", "uniform", "normal"),
        (3, 128, 768, 32, "fp16", "sym", "zipf1", "normal"),
    )
]
PADDED = [
    f"padded_gemm/T{T}-E{E}-k8-N{N}-K2048-G128-B{B}/{dtype}/exllama-sym/uniform/normal/s{B}"
    for T, E, N, B, dtype in (
        (1, 256, 1024, 1, "bf16"),
        (4, 256, 1024, 2, "bf16"),
        (4, 256, 1024, 4, "fp16"),
        (16, 8, 256, 16, "bf16"),
        (16, 8, 256, 16, "fp16"),
    )
]
LINEAR = [
    f"int4_linear/T{T}-N{N}-K{K}-G{G}/{dtype}/exllama-{zero}/-/{data}/s{T}"
    for T, N, K, G, dtype, zero, data in (
        (1, 5120, 2048, 32, "bf16", "sym", "normal"),
        (1, 2048, 4096, 32, "bf16", "sym", "outliers+bias"),
        (2, 2048, 4096, 128, "fp16", "rdna", "normal"),
        (3, 1024, 2048, 128, "bf16", "unpacked", "wide"),
        (5, 5120, 2048, 64, "bf16", "sym", "cancelling"),
    )
]
LM_HEAD = [
    f"int8_lm_head/T{T}-V{V}-K2048-G{G}/{dtype}/-/-/normal/s{T}"
    for T, V, G, dtype in (
        (1, 248320, 32, "bf16"),
        (1, 32768, 32, "bf16"),
        (1, 32768, -1, "bf16"),
        (2, 16384, 128, "fp16"),
    )
]
SILU = [f"silu_and_mul/T{T}-I512/{dtype}/-/-/outliers/s0" for T, dtype in ((32, "bf16"), (32, "fp16"))]
DENSE = [
    "shared_expert/T1-H2048-I512-G128/bf16/exllama-sym/-/normal+gate/s1",
    "shared_expert/T4-H2048-I512-G128/fp16/exllama-sym/-/outliers+gate/s4",
    "tiny_dot/T1-K2048/bf16/-/-/normal+sigmoid/s1",
    "dequantize_int4/N1024-K2048-G128/bf16/exllama-sym/-/normal/s1",
]
CASES = MOE + PADDED + LINEAR + LM_HEAD + SILU + DENSE


def check(path: Path, cases: list[str]) -> dict:
    """Judge the cases on the GPU through the command line, as a user would, and return its JSON."""
    command = [sys.executable, "-m", "moeracle", "check", TARGET, "--device", "cuda", "--json", str(path)]
    done = subprocess.run([*command, *(word for case in cases for word in ("--case", case))], check=False)
    if done.returncode not in (0, 1):  # nothing was judged, and it has said why
        sys.exit(done.returncode)
    return json.loads(path.read_text())


def recorded(run: dict) -> dict[Key, str]:
    """Return {(kernel, case, stage): digest} of everything a run stored."""
    return {
        (kernel["kernel"], case["case"], stage): digest
        for kernel in run["kernels"]
        for case in kernel["cases"]
        for stage, digest in case.get("bits", {}).items()
    }


@contextmanager
def equal_launches_once(done: dict) -> Iterator[None]:
    """Emulate once what several kernels of an op launch alike, as the fused layers their first GEMM.

    Args:
        done: what was launched so far; launches are alike where kernel, macros, sizes and inputs are.
    """
    emulate = launch.emulate

    def once(kernel, grid, block, args, **options):
        written = [letter == "w" for letter in library(*kernel)[2]]
        key = [kernel, grid, block, sorted(options.items())]
        for value, out in zip(args, written, strict=True):
            if not isinstance(value, torch.Tensor):
                key.append(str(value))
            elif not out:  # `done` keeps a weight, so that no other comes to lie at its address
                key.append(value.data_ptr() if value.numel() > 1 << 20 else digest(value))
        first = done.get(str(key))
        if first is None:
            done[str(key)] = args, emulate(kernel, grid, block, args, **options)
            return done[str(key)][1]
        for value, before, out in zip(args, first[0], written, strict=True):
            if out:
                value.copy_(before)
        return first[1]

    with mock.patch.object(launch, "emulate", once):
        yield


def emulated(keys: list[tuple[str, str]], backward: bool = False) -> dict[Key, str]:
    """Run kernels on cases on the CPU, judging nothing, and return the digests of what they stored.

    Args:
        keys: (kernel, case) as `recorded` has them.
        backward: threads in descending order; the bits must not know.
    """
    kernels = {kernel.name: kernel for kernel in load_target(TARGET, "cpu").kernels}
    found = {}
    for text in dict.fromkeys(text for _, text in keys):  # a full-size layer is built once
        args, done = tuple(Case.parse(text).build("cpu").args.values()), {}
        for name in (name for name, case in keys if case == text):
            with in_order(backward), equal_launches_once(done):
                output = kernels[name].fn(*args)
            stages = output if isinstance(output, dict) else {"out": output}
            found |= {(name, text, stage): digest(t) for stage, t in stages.items()}
    return found


def compare(gpu: dict[Key, str], cpu: dict[Key, str]) -> tuple[int, list[str]]:
    """Return how many stored stages are equal, and one line for each that is not."""
    common = sorted(gpu.keys() & cpu.keys())
    differ = [" ".join(key) for key in common if gpu[key] != cpu[key]]
    return len(common) - len(differ), differ


def read(path: Path) -> dict:
    """Return what a `check --json` wrote.

    Raises:
        ValueError: in one line: there is no such file, or it is another.
    """
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read, must be a hip.json ({error.__class__.__name__})") from error
    if not isinstance(run, dict) or run.get("kind") != "moeracle check":
        raise ValueError(f"{path}: is not what `moeracle check --json` wrote, must be a hip.json")
    return run


def main() -> int:
    """Run, compare, and say where the result should go."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu-only", action="store_true", help="do not emulate: the bits can be compared later")
    parser.add_argument("--against", type=Path, help="a hip.json from a GPU, to compare with this CPU's emulation")
    chosen = parser.parse_args()
    folder = Path(os.environ.get("OUT", "."))
    try:
        gpu = read(chosen.against) if chosen.against else check(folder / "hip.json", CASES)
    except ValueError as error:
        parser.error(f"--against: {error}")
    illegal = sum(kernel["illegal"] for kernel in gpu["kernels"])
    print(f"{', '.join(gpu['environment']['gpus'])}: {illegal} illegal elements, exit {gpu['exit_code']}")
    if chosen.gpu_only:
        return gpu["exit_code"]
    torch.set_num_threads(1)
    bits = recorded(gpu)
    equal, differ = compare(bits, emulated(list(dict.fromkeys(key[:2] for key in bits))))
    print(
        f"{equal} of {equal + len(differ)} stored stages have the bits of the CPU emulation",
        *differ,
        sep="\n  differs: ",
    )
    if gpu["environment"]["hip"]:
        print(
            "Please attach hip.json and this text to an issue of this project (docs/hip.md): no AMD GPU is in it yet."
        )
        return gpu["exit_code"]
    return gpu["exit_code"] or (1 if differ else 0)


if __name__ == "__main__":
    sys.exit(main())
