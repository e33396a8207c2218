"""Compile what record_vectors.py runs, without a GPU, and print what became of it; Triton's interpreter must be off."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MMA = [
    *[(f"mma.m16n8k32.fp8{out}.sm90", "e4m3", capability) for out in ("", ".f16") for capability in (90, 100)],
    ("mma.m16n8k32.fp8.sm89", "e4m3", 89),
    ("mma.m16n8k32.fp8.f16.sm89", "e5m2", 89),
    ("mma.m16n8k32.fp8.sm120", "e4m3", 120),
    ("mma.m16n8k8.tf32.sm90", "tf32", 90),
    ("mma.m16n8k16.f16.sm90", "fp16", 90),
]
WGMMA = [("wgmma.k32.fp8.sm90", "e4m3", 64), ("wgmma.k8.tf32.sm90", "tf32", 16), ("wgmma.k16.f16.sm90", "fp16", 16)]
POINTERS = {"fp16": "*fp16", "bf16": "*bf16", "tf32": "*fp32", "e4m3": "*fp8e4nv", "e5m2": "*fp8e5"}


def main() -> None:
    """Print JSON: of each MMA the machine code's arithmetic, of each WGMMA its PTX instruction and other arithmetic."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moeracle.ref.bitmodels.models import MODELS
    from on_hardware import record_vectors as record

    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"

    def compiled(kernel: Any, signature: dict[str, str], constants: dict[str, Any], capability: int, warps: int) -> Any:
        types = {**signature, **dict.fromkeys(constants, "constexpr")}
        target = GPUTarget("cuda", capability, 32)
        return triton.compile(ASTSource(kernel, types, constants), target=target, options={"num_warps": warps})

    found: dict[str, Any] = {}
    for model, operands, capability in MMA:
        how = MODELS[model]
        half, wide = how.core.form == "fp16", how.k * record.INPUTS[operands].itemsize == 32
        acc = "*i32" if half else "*fp32"
        constants = {"ASM": record.assembly(model, operands), "WIDE": wide, "HALF": half}
        pointers = {"a_ptr": "*i32", "b_ptr": "*i32", "c_ptr": acc, "d_ptr": acc}
        kernel = compiled(record.mma_kernel, pointers, constants, capability, 1)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernel.cubin"
            file.write_bytes(kernel.asm["cubin"])
            if not disassembler.is_file():
                break
            text = subprocess.run([disassembler, "-c", file], capture_output=True, text=True, check=True).stdout
        found[f"{model} {capability}"] = re.findall(r"\b((?:[HQO]MMA|FADD|HADD2|HFMA2)[\w.]*) ([^;]*);", text)
    for model, operands, K in WGMMA:
        half = MODELS[model].core.form == "fp16"
        acc = "*fp16" if half else "*fp32"
        pointers = {"a_ptr": POINTERS[operands], "b_ptr": POINTERS[operands], "c_ptr": acc, "d_ptr": acc}
        kernel = compiled(record.dot_kernel, pointers, {"K": K, "TILE": 64, "HALF": half}, 90, 4)
        other = re.findall(r"\b(?:add|sub|fma|mul)(?:\.rn)?\.f(?:32|16x2)\b|\bcvt[\w.]*\.tf32\b", kernel.asm["ptx"])
        found[model] = [record.instruction_of(kernel, model), other]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
