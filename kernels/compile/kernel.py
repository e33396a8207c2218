"""Compile one Triton kernel with stated choices for an architecture that is not here.

The table of everything that the registry launches is `compile.table`; this is for looking at one build, whatever would
launch it. It needs a process of its own, because a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from moeracle.kernels.triton.tiles import Tile

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
    "packed_e",
    "packed_n",
    "scale_e",
    "scale_n",
)
UNIT = ("stride_xk", "packed_k", "scale_g", "zero_g", "stride_hn", "stride_yn", "stride_e")


@dataclass(frozen=True)
class Build:
    """One kernel with its compile-time choices.

    Args:
        kernel: "module:function" in moeracle.kernels.
        constants: its constexpr arguments.
        num_warps, num_stages: launch options.
        dtype: Triton's name of D, "bf16" or "fp16"; every pointer not in POINTERS is to D.
        pointers: pointers that differ from POINTERS in this kernel.

    A weight's pointers are w_ptr, s_ptr and z_ptr, and the members of its Form are named as if they were arguments.
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
    yield Build("triton.grouped_gemm:grouped_gemm_kernel", constants, *options)
    yield Build("triton.padded_gemm:padded_gemm_kernel", {"WEIGHTED": True, **constants}, *options)


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
    from moeracle.kernels.triton.device.int4_tile import Form

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
    members = {"w": ("w_ptr", "s_ptr", "z_ptr"), "form": Form._fields}
    places: dict[str, tuple[int, ...]] = {}
    for i, n in enumerate(names):
        places |= {member: (i, j) for j, member in enumerate(members[n])} if n in members else {n: (i,)}
    constants = build.constants | {n: 1 for n in UNIT if n in places}
    pointers = {n: f"*{build.dtype}" for n in places if n.endswith("_ptr")} | POINTERS | build.pointers
    kinds = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in places}
    aligned = [n for n, kind in kinds.items() if kind.startswith("*") or (n in ALIGNED and n not in constants)]
    tuples: dict[str, Any] = {"w": tuple, "form": Form._make}
    source = ASTSource(
        function,
        {n: tuples[n](kinds[member] for member in members[n]) if n in members else kinds[n] for n in names},
        {places[n]: value for n, value in constants.items()},
        {places[n]: [["tt.divisibility", 16]] for n in aligned},
    )
    return triton.compile(source, target=target, options={"num_warps": build.num_warps, "num_stages": build.num_stages})
