"""What every HIP op here shares: knobs from knobs.json, the checks that refuse a launch, and aligned operands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from moeracle.kernels.common.weight_args import RDNA, SYMMETRIC, UNPACKED, WeightArgs
from moeracle.kernels.hip.runtime.launch import WAVE, Long, hip_kernel
from moeracle.kernels.toolchain.compilers import SOURCES
from moeracle.ref.errors import unknown

KNOBS_FILE = SOURCES / "knobs.json"
MOST_ROWS = 5
LDS_BYTES = 65536  # of one workgroup on gfx11 and gfx12
ZERO_KNOB = {SYMMETRIC: 0, UNPACKED: 1, RDNA: 2}  # knobs.h: ZERO_NONE, ZERO_UNPACKED, ZERO_RDNA
WHOLE_ROW = 31  # the group shift of one group a row: k >> 31 is 0
DECODE_KNOB = {"sub_finite": 0, "truncate": 1, "sum": 2}  # knobs.h: SUB_FINITE, TRUNCATE, MAGIC
CPU_BLOCKS = 4  # blocks of the striding kernels in emulation; they change no bit

Knobs = dict[str, int]


@cache
def _rules() -> dict[str, list[dict[str, Any]]]:
    return json.loads(KNOBS_FILE.read_text())


def knobs_for(kernel: str, rows: int, K: int, G: int, reserved: int = 0) -> Knobs:
    """Return the knobs of one launch, by the first rule of hip/source/knobs.json that fits.

    Args:
        kernel: the .hip file's name without its ending, or a key of the data file for one of its variants.
        rows: activation rows of a launch, or of a routed block, 1..5; 16 for the matrix kernel.
        K: inputs of the dot product.
        G: inputs that share a scale, or K where there is none.
        reserved: bytes of LDS that the kernel uses besides its activations.
    Raises:
        ValueError: rows over 5, K over the LDS budget, or a G that the lanes' chunks do not divide; in one line.
    """
    if kernel != "moe_wmma":  # whose 16 rows pass through LDS a tile at a time
        check_rows(rows, K, reserved)
    last = None
    for rule in _rules()[kernel]:
        (low, high), (least, most) = rule["rows"], rule["K"]
        if low <= rows <= high and least <= K <= most:
            last = rule["knobs"]
            if G % rule.get("group", 1) == 0:
                break
    if last is None:
        raise ValueError(f"K: got {K}, hip/source/knobs.json has no rule for {kernel} with {rows} rows")
    check_groups(G, K, last.get("A_CHUNK", 32))
    chosen = dict(last)
    if "UNRL" in chosen:
        chosen["UNRL"] = _unroll(-(-K // (WAVE * chosen["A_CHUNK"])), chosen["UNRL"])
        check_rows(rows, K, reserved + lds_bytes(rows, K, chosen) - rows * K * 2)
    return chosen


def _unroll(steps: int, most: int) -> int:
    """Return how many steps to take together: for the fewest rounds, and then the fewest steps without any input."""
    return min(range(1, most + 1), key=lambda unroll: (-(-steps // unroll), -steps % unroll))


def lds_bytes(rows: int, K: int, knobs: Knobs) -> int:
    """Return the bytes of a decode kernel's LDS: its rows, and a chunk of zeros where the last step is not whole."""
    chunk = knobs["A_CHUNK"]
    return (rows * K + (chunk if K % (WAVE * chunk * knobs["UNRL"]) else 0)) * 2


def check_rows(rows: int, K: int, reserved: int = 0) -> None:
    """Refuse what one launch cannot hold: more than 5 rows, or more activations than fit in 64 KB of LDS."""
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(f"x: got {rows} rows, must be 1 to {MOST_ROWS} (these are decode kernels)")
    capacity = (LDS_BYTES - reserved) // 2
    if rows * K > capacity:
        raise ValueError(f"K: got {K} with {rows} rows, must be at most {capacity // rows} (64 KB of LDS hold them)")


def check_groups(G: int, K: int, chunk: int) -> None:
    """Refuse groups that a lane's chunk would straddle, and group sizes that are no shift of k."""
    if G % chunk:
        raise ValueError(f"G: got {G}, must be a multiple of A_CHUNK = {chunk}")
    if G != K and G & (G - 1):
        raise ValueError(f"G: got {G}, must be a power of two, or K = {K} for one group a row")


def refusal(kernel: str, rows: int, K: int, G: int) -> bool | str:
    """Say True, or why a launch of these sizes is refused: what `supports` returns."""
    try:
        knobs_for(kernel, rows, K, G)
    except ValueError as error:
        return str(error)
    return True


def group_shift(G: int, K: int) -> int:
    """Return the shift that takes k to its group."""
    return WHOLE_ROW if G == K else G.bit_length() - 1


def dtype_defines(dtype: torch.dtype, store32: bool = False) -> dict[str, int]:
    """Return the macros that say which 16-bit dtype D is, and that fp32 is stored in its stead."""
    return ({"DTYPE_FP16": 1} if dtype == torch.float16 else {}) | ({"STORE_FP32": 1} if store32 else {})


def result(shape: tuple[int, int], x: torch.Tensor, store32: bool) -> torch.Tensor:
    """Return memory for a result, in x's dtype or in fp32."""
    return torch.empty(shape, dtype=torch.float32 if store32 else x.dtype, device=x.device)


def aligned_rows(t: torch.Tensor, unit: int = 16) -> torch.Tensor:
    """Return t, or a copy, with rows that start at multiples of `unit` bytes and hold their columns side by side."""
    size = t.element_size()
    rows = all(stride * size % unit == 0 for stride, n in zip(t.stride()[:-1], t.shape[:-1], strict=True) if n > 1)
    fits = t.stride(-1) == 1 and rows and t.data_ptr() % unit == 0
    return t if fits else t.clone(memory_format=torch.contiguous_format)


def weight_words(args: WeightArgs, chunk: int) -> tuple[torch.Tensor, int, int]:
    """Return the packed words, rows aligned for a lane's loads, and their strides: expert to expert, row to row."""
    words = aligned_rows(args.packed, 16 if chunk % 32 == 0 else 8)
    expert = words.stride(0) if words.ndim == 3 else 0
    return words, expert, words.stride(-2)


def blocks_for(N: int, per_block: int, device: torch.device) -> int:
    """Return how many blocks stride over N outputs: as many as the device has compute units, or fewer."""
    units = CPU_BLOCKS if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(units, -(-N // per_block)))


def decode_defines(decode: str, dtype: torch.dtype) -> dict[str, int]:
    """Return the macro that says how codes are read.

    Raises:
        ValueError: an unknown way, or "sum" for fp16, which subtracts exactly at no cost.
    """
    if decode not in DECODE_KNOB:
        raise unknown("decode", decode, DECODE_KNOB)
    if decode == "sum" and dtype == torch.float16:
        raise ValueError("decode: got 'sum' for fp16, must be 'truncate' or 'sub_finite' (the correction is for bf16)")
    return {"DECODE": DECODE_KNOB[decode]}


def run(kernel: str, defines: Knobs, grid: tuple[int, ...], shared: int, *args: Any, strides: Sequence[int]) -> None:
    """Launch one kernel with its WAVES * 32 threads a block.

    Args:
        kernel: the .hip file's name without its ending, and its function's.
        defines: its macros, WAVES among them.
        grid: blocks.
        shared: bytes of its dynamic LDS.
        args: tensors and 32-bit numbers, in the kernel's order.
        strides: the 64-bit numbers that follow them.
    """
    wide = tuple(Long(stride) for stride in strides)
    hip_kernel(SOURCES / f"{kernel}.hip", kernel, **defines).launch(
        grid, (defines["WAVES"] * 32,), *args, *wide, shared=shared
    )
