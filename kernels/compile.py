"""Compile the Triton kernels for architectures that are not here, and read what the compiler says about them.

    python -m moeracle.kernels.compile gfx1151 sm_90

prints one JSON line a kernel: registers, spills, scratch, shared memory and matrix instructions. It needs a process of
its own, because a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from moeracle.kernels.tiles import GFX11, HOPPER, Tile

# Compute capability, or name and lanes of a wave.
CUDA = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
HIP = {"gfx942": 64, "gfx950": 64, "gfx1100": 32, "gfx1151": 32, "gfx1201": 32}
ARCHITECTURES = (*CUDA, *HIP)
POINTERS = {"w_ptr": "*i32", "z_ptr": "*i32", "table_ptr": "*i64", "end_ptr": "*i32", "experts_ptr": "*i32"}
POINTERS |= {"ids_ptr": "*i32", "inv_ptr": "*i32", "weights_ptr": "*fp32", "logits_ptr": "*fp32"}
ALIGNED = (
    "N",
    "K",
    "H",
    "I",
    "stride_xm",
    "stride_hm",
    "stride_ym",
    "stride_we",
    "stride_wn",
    "stride_se",
    "stride_sn",
)
UNIT = ("stride_xk", "stride_wk", "stride_sg", "stride_zg", "stride_hn", "stride_yn", "stride_e")


@dataclass(frozen=True)
class Build:
    """One kernel with its compile-time choices.

    Args:
        kernel: "module:function" in moeracle.kernels.
        constants: its constexpr arguments.
        num_warps, num_stages: launch options.
        dtype: Triton's name of D, "bf16" or "fp16"; every pointer not in POINTERS is to D.
        pointers: pointers that differ from POINTERS in this kernel.
    """

    kernel: str
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    dtype: str = "bf16"
    pointers: dict[str, str] = field(default_factory=dict)


def gemm_builds(tile: Tile, group: int, zero: int = 0, dtype: str = "bf16") -> Iterator[Build]:
    """Yield the grouped and the padded GEMM with one tile."""
    blocks = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    constants = {"GROUP": group, "ZERO": zero, **blocks}
    options = (tile.num_warps, tile.num_stages, dtype, {"z_ptr": "*u8"} if zero == 1 else {})
    yield Build("grouped_gemm_triton:grouped_gemm_kernel", constants, *options)
    yield Build("padded_gemm_triton:padded_gemm_kernel", {"WEIGHTED": True, **constants}, *options)


def default_builds(architecture: str) -> Iterator[Build]:
    """Yield every kernel as it is launched by default on an architecture, the GEMMs with G = 128 and 32."""
    tiles = HOPPER.values() if architecture in CUDA else [GFX11]
    for tile in tiles:
        for group in (128, 32):
            yield from gemm_builds(tile, group)
    tile = next(iter(tiles))
    blocks = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    linear = {"BIAS": True, "GROUP": 128, "ZERO": 0, **blocks}
    yield Build("int4_linear_triton:int4_linear_kernel", linear, tile.num_warps, tile.num_stages)
    yield Build("decode_triton:decode_gemm_kernel", {"GROUP": 128, "ZERO": 0, "BLOCK_N": 16, "BLOCK_K": 256})
    yield Build("dequantize_triton:dequantize_kernel", {"GROUP": 128, "ZERO": 0, "BLOCK_N": 32, "BLOCK_K": 128})
    yield Build("dequantize_triton:unpack_kernel", {"BLOCK": 256}, pointers={"out_ptr": "*u8"})
    yield Build("silu_and_mul_triton:silu_and_mul_kernel", {"BLOCK": 1024})
    yield Build("unpermute_triton:unpermute_kernel", {"BLOCK": 1024})
    topk = {"RENORMALIZE": True, "BLOCK_T": 4, "BLOCK_E": 256, "BLOCK_TOPK": 8}
    yield Build("topk_softmax_triton:topk_softmax_kernel", topk)


def compile_kernel(build: Build, architecture: str) -> Any:
    """Compile one kernel with no GPU at hand.

    Args:
        build: what to compile.
        architecture: one of ARCHITECTURES.
    Returns:
        Triton's compiled kernel, with `asm` and `metadata`.
    Raises:
        ValueError: an unknown architecture.
        RuntimeError: triton is interpreting in this process.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"arch: got {architecture!r}, must be one of {', '.join(ARCHITECTURES)}")
    module, name = build.kernel.split(":")
    function = getattr(import_module(f"moeracle.kernels.{module}"), name)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if type(function).__name__ == "InterpretedFunction":
        raise RuntimeError("triton: is interpreting; compile in a process with TRITON_INTERPRET=0")
    if architecture in CUDA:
        target = GPUTarget("cuda", CUDA[architecture], 32)
    else:
        target = GPUTarget("hip", architecture, HIP[architecture])
    names = function.arg_names
    constants = build.constants | {n: 1 for n in UNIT if n in names}
    pointers = {n: f"*{build.dtype}" for n in names if n.endswith("_ptr")} | POINTERS | build.pointers
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
    aligned = [i for i, n in enumerate(names) if n not in constants and (n.endswith("_ptr") or n in ALIGNED)]
    source = ASTSource(
        function,
        signature,
        {(names.index(n),): value for n, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(source, target=target, options={"num_warps": build.num_warps, "num_stages": build.num_stages})


def report(build: Build, architecture: str) -> dict[str, Any]:
    """Compile one kernel and return what its machine code needs, as plain values."""
    compiled = compile_kernel(build, architecture)
    facts: dict[str, Any] = {"kernel": build.kernel.split(":")[1], "arch": architecture, **build.constants}
    facts |= {"num_warps": build.num_warps, "shared": compiled.metadata.shared}
    if architecture in CUDA:
        text = compiled.asm["ptx"]
        return facts | {"wgmma": text.count("wgmma.mma_async"), "mma": text.count("mma.sync.aligned.m16n8k16")}
    text = compiled.asm["amdgcn"]
    for key in ("vgpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"):
        facts[key] = int(re.findall(rf"\.{key}:\s+(\d+)", text)[-1])  # the last one is the metadata's
    return facts | {name: text.count(f"v_{name}_") for name in ("wmma", "mfma", "dot2")}


def main(architectures: list[str]) -> None:
    """Print one JSON line for each kernel and architecture."""
    for architecture in architectures or ["gfx1151", "sm_90"]:
        for build in default_builds(architecture):
            print(json.dumps(report(build, architecture)), flush=True)


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "0"
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default changes in triton 3.10
    main(sys.argv[1:])
