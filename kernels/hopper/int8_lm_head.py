"""The int8 lm_head on compute capability 9.0: one kernel for every number of tokens, and one order of sums.

K is cut into as many passes as x needs to fit into shared memory; between passes the sums lie in memory, in fp32, so a
pass continues exactly where the one before ended. More than 64 tokens are taken 64 at a time.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch

from moeracle.kernels.triton.tiles import pow2_at_least

GROUPS = (0, 32, 64, 128)  # 0: one scale a row
STEP = 256  # inputs of a stage
MOST = 64  # tokens of a launch
LOCAL = 228 * 1024  # shared memory of a multiprocessor, of which the system takes RESERVED for each program
RESERVED = 1024
# Warps of a program, programs a multiprocessor and stages of its ring: the first that x leaves room for.
SHAPES = ((4, 3, 2), (4, 2, 3), (4, 2, 2), (8, 1, 3), (8, 1, 2))


class Plan(NamedTuple):
    """How one launch is made."""

    warps: int
    programs: int
    stages: int
    columns: int
    steps: int
    passes: int


def why_not_hopper(K: int, G: int, codes: torch.Tensor) -> str | None:
    """Say why the Hopper kernel does not take these sizes and strides, or return None.

    Args:
        K: inputs.
        G: group size, 0 for one scale a row.
        codes: int8 [V, K].
    """
    if not gluon_is_here():
        return "this triton has no Gluon; the Hopper kernels need triton 3.6 or newer"
    if G not in GROUPS:
        return f"the group size must be 32, 64, 128 or K, not {G}"
    if codes.shape[0] >= 1 << 25:  # 64 rows of the output are counted in 32 bits
        return f"there may be at most 2^25 - 1 rows, not {codes.shape[0]}"
    if K % 16 or codes.stride(1) != 1 or codes.stride(0) % 16 or codes.stride(0) < K or codes.data_ptr() % 16:
        return "the copy engine needs rows of codes that begin at multiples of 16 bytes"
    return None


@cache
def gluon_is_here() -> bool:
    """Say whether triton's dialect with explicit layouts can be imported."""
    try:
        import moeracle.kernels.hopper.gluon_import
    except ImportError:
        return False
    return bool(moeracle.kernels.hopper.gluon_import.gl)


@cache
def plan(T: int, K: int, G: int, scale_bytes: int) -> Plan:
    """Choose a launch for T tokens, 1..64: the fewest passes over K, then the most programs.

    Args:
        T, K, G: sizes.
        scale_bytes: of one scale.
    """
    columns, steps = max(8, pow2_at_least(T)), -(-K // STEP)
    groups = STEP // G * scale_bytes if G else 0
    for passes in range(1, steps + 1):
        each = -(-steps // passes)
        for warps, programs, stages in SHAPES:
            at_once = 32 * max(16, 64 * warps // columns)  # inputs of x that the kernel brings at a time
            x = columns * 2 * (-(-each * STEP // at_once) * at_once)
            ring, out = stages * 16 * warps * (STEP + groups), 16 * warps * columns * 2
            if x + ring + out + 1024 <= LOCAL // programs - RESERVED:
                return Plan(warps, programs, stages, columns, each, passes)
    raise AssertionError("one step always fits")


@cache
def multiprocessors(device: int) -> int:
    """Return how many multiprocessors a GPU has."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def lm_head_on_hopper(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, G: int
) -> torch.Tensor:
    """Launch the kernel for checked arguments; y [T, V] is filled and returned.

    Args:
        x, codes, scale, bias: as int8_lm_head's, for which why_not_hopper says nothing.
        y: [T, V], contiguous.
        G: group size, 0 for one scale a row.
    """
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from moeracle.kernels.hopper.device.int8_lm_head import hopper_lm_head_kernel
    from moeracle.kernels.hopper.gluon_import import gl

    (T, V), K = y.shape, x.shape[1]
    if x.stride(1) != 1 or x.stride(0) % 2 or x.data_ptr() % 4:
        x = x.clone(memory_format=torch.contiguous_format)  # pairs are loaded at once
    if G and scale.stride(1) != 1:
        scale = scale.contiguous()
    words = codes.view(torch.int32)
    for start in range(0, T, MOST):
        rows = slice(start, min(T, start + MOST))
        p = plan(rows.stop - start, K, G, scale.element_size())
        in_ring = bool(G) and _copied(scale, STEP // G)
        width = STEP // G * scale.element_size() if in_ring else 0
        tall = 16 * p.warps
        layout = gl.NVMMASharedLayout(width if width >= 32 else 0, 8 * scale.element_size(), 2)
        code_tiles = TensorDescriptor.from_tensor(words, [tall, STEP // 4], gl.NVMMASharedLayout(128, 32, 2))
        scale_tiles = TensorDescriptor.from_tensor(scale, [tall, STEP // G], layout) if in_ring else code_tiles
        sums = y if p.passes == 1 else torch.empty(V, p.columns, dtype=torch.float32, device=y.device)
        programs = min(p.programs * multiprocessors(x.device.index or 0), -(-V // tall))
        options: dict[str, Any] = {
            "num_warps": p.warps,
            "maxnreg": min(255, 65536 // (32 * p.warps * p.programs) // 8 * 8),
        }
        for i in range(p.passes):
            hopper_lm_head_kernel[(programs,)](
                x[rows].view(torch.int32), code_tiles, scale_tiles, scale, x if bias is None else bias.contiguous(),
                sums, y[rows], rows.stop - start, V, K, scale.shape[-1], x.stride(0) // 2, scale.stride(0), programs,
                i * p.steps, BIAS=bias is not None, GROUP=G, STEPS=p.steps, STAGES=p.stages, TN=p.columns,
                IN_RING=in_ring, FIRST=i == 0, LAST=i == p.passes - 1, **options,
            )  # fmt: skip
    return y


def _copied(scale: torch.Tensor, groups: int) -> bool:
    """Say whether the copy engine can bring tiles of scales: 16 bytes a row at least, at multiples of 16 bytes."""
    size = scale.element_size()
    whole = scale.stride(0) * size % 16 == 0 and scale.stride(0) >= scale.shape[1] and scale.data_ptr() % 16 == 0
    return size in (2, 4) and groups * size >= 16 and whole
