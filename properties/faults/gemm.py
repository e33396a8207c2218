"""Faults of the sum over K: columns lost, repeated or misaligned, accumulators too narrow, splits badly joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..simulate.orders import shuffle
from ..simulate.weights import Loaded
from .base import ARITHMETIC, GEMMS, ROUTED, fault, issue, only_fp32_sums, pull

T = torch.Tensor
SUMS = (*GEMMS, "int8_lm_head", "shared_expert", "tiny_dot")


def atomics(contract: Any) -> str | None:
    """16-bit atomics are no fault where the contract has them."""
    return only_fp32_sums(contract) or (None if contract.deterministic else "two runs may differ")


def only_wide_parts(contract: Any) -> str | None:
    """Narrowed parts of K are none where the contract has them."""
    narrow = contract.parts is not None and contract.parts.kept == "dtype"
    return only_fp32_sums(contract) or ("its parts of K are stored in D" if narrow else None)


@fault("F04", "K tail loaded without a mask: the next row's columns are added", ops=GEMMS, stage="h",
       source=issue("vllm-project/vllm", 52576), step="dot")  # fmt: skip
def unmasked_tail(sim: Any, base: Any, a: T, w: Any, dtype: torch.dtype, which: str, *rest: Any) -> T:
    K = a.shape[1]
    pad = min(-K % 64, K)
    values = w.steps * w.scale[:, w.scale_group]
    return base(a, w, dtype, which, *rest) + a.float().roll(-1, 0)[:, :pad] @ values.roll(-1, 0)[:, :pad].T


@fault("F13", "split-K through 16-bit atomics", ops=GEMMS, stage="h", source=issue("vllm-project/vllm", 56887),
       step="accumulate", not_under=atomics)  # fmt: skip
def atomic_split_k(sim: Any, base: Any, a: T, w: T, dtype: torch.dtype) -> T:
    parts = [base(a_part, w_part, dtype) for a_part, w_part in zip(a.chunk(4, 1), w.chunk(4, 1), strict=True)]
    shuffle(parts)
    total = parts[0].to(dtype)
    for part in parts[1:]:
        total = total + part.to(dtype)
    return total.float()


@fault("F23", "last K tile dropped", ops=SUMS, stage="h", source=pull("ROCm/aiter", 4331), step="operand")
def last_tile_dropped(sim: Any, base: Any, a: T, which: str) -> T:
    a = base(a, which).clone()
    a[:, (a.shape[1] - 1) // 32 * 32 :] = 0
    return a


@fault("F27", "one k dropped", ops=SUMS, stage="h", source=ARITHMETIC, step="operand")
def one_column_dropped(sim: Any, base: Any, a: T, which: str) -> T:
    a = base(a, which).clone()
    a[:, a.shape[1] // 3] = 0
    return a


@fault("F28", "one k counted twice", ops=SUMS, stage="h", source=ARITHMETIC, step="operand")
def one_column_twice(sim: Any, base: Any, a: T, which: str) -> T:
    a = base(a, which).clone()
    a[:, a.shape[1] // 3] *= 2
    return a


@fault("F39", "accumulation in fp16", ops=SUMS, stage="h", source=ARITHMETIC, step="accumulate",
       not_under=only_fp32_sums)  # fmt: skip
def fp16_accumulator(sim: Any, base: Any, a: T, w: T, dtype: torch.dtype) -> T:
    total = base(a[:, :8], w[:, :8], dtype).half()
    for k in range(8, a.shape[1], 8):
        total = (total.float() + base(a[:, k : k + 8], w[:, k : k + 8], dtype)).half()
    return total.float()


@fault("F40", "accumulation in fp16 inside a tile, fp32 across tiles", ops=GEMMS, stage="h", source=ARITHMETIC,
       step="accumulate", not_under=only_fp32_sums)  # fmt: skip
def fp16_inside_tiles(sim: Any, base: Any, a: T, w: T, dtype: torch.dtype) -> T:
    tiles = zip(a.split(32, 1), w.split(32, 1), strict=True)
    return sum((fp16_accumulator(sim, base, a_tile, w_tile, dtype) for a_tile, w_tile in tiles), torch.zeros(()))


@fault("F41", "split-K partial sums stored in bf16", ops=GEMMS, stage="h", source=ARITHMETIC, step="accumulate",
       not_under=only_fp32_sums)  # fmt: skip
def bf16_partials(sim: Any, base: Any, a: T, w: T, dtype: torch.dtype) -> T:
    parts = [base(a_part, w_part, dtype) for a_part, w_part in zip(a.chunk(4, 1), w.chunk(4, 1), strict=True)]
    return sum((part.bfloat16().float() for part in parts), torch.zeros(()))


def added_in_parts(a: T, w: Loaded, dtype: torch.dtype, base: Any, length: int, any_order: bool = False) -> T:
    """Sum parts of K, round each to D, and add them in D, in their order or in one that no run repeats."""
    starts = range(0, a.shape[1], length)
    parts = [base(a[:, k : k + length], w.inputs(slice(k, k + length)), dtype).to(dtype) for k in starts]
    if any_order:
        shuffle(parts)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.float()


@fault("F201", "partial sums of K narrowed before they are added", ops=GEMMS, stage="h",
       source=issue("vllm-project/vllm", 56887), step="dot_part", not_under=only_wide_parts)  # fmt: skip
def narrowed_parts(sim: Any, base: Any, a: T, w: Loaded, dtype: torch.dtype) -> T:
    return added_in_parts(a, w, dtype, base, max(8, a.shape[1] // 4))


def truncated_in_a_wave(K: int, width: int, sum_of: Callable[[list[int]], T], shifted: bool = False) -> T:
    """Sum over a wave of 32 lanes, `width` neighbours of K each; partial sums lose their fractions as they move.

    They move around in rows of 16 lanes, or if `shifted` up to the last one.
    """
    lane = torch.arange(K) // width % 32
    sums = torch.stack([sum_of((lane == i).nonzero().flatten().tolist()) for i in range(32)])
    for by in (8, 4, 2, 1):  # within a row of 16 lanes; the other row is added whole
        row = torch.arange(32)
        moved = sums[(row & 16) | ((row - by) & 15)].trunc()
        sums = sums + (moved * ((row & 15) >= by)[:, None, None] if shifted else moved)
    return sums[15] + sums[31] if shifted else sums[0] + sums[16]


@fault("F171", "partial sums truncated to integers", ops=SUMS, stage="h",
       source=pull("llvm/llvm-project", 112447), step="accumulate")  # fmt: skip
def truncated_sums(sim: Any, base: Any, a: T, w: T, dtype: torch.dtype) -> T:
    return truncated_in_a_wave(a.shape[1], 8, lambda at: base(a[:, at], w[:, at], dtype))


@fault("F44", "one k dropped in GEMM2 only", ops=("moe_w4a16",), stage="y", source=ARITHMETIC, step="operand")
def one_column_dropped_in_gemm2(sim: Any, base: Any, a: T, which: str) -> T:
    return one_column_dropped(sim, base, a, which) if which == "w2" else base(a, which)


@fault("F77", "K padded to 256 with stale activations whose scale is 1 in place of 0", ops=GEMMS, stage="h",
       source=pull("AMD-AGI/Primus-Turbo", 383), step="dot")  # fmt: skip
def padding_weighted_in(sim: Any, base: Any, a: T, w: Any, dtype: torch.dtype, which: str, *rest: Any) -> T:
    pad = min(-a.shape[1] % 256, a.shape[1])
    return base(a, w, dtype, which, *rest) + 7 * a.float().roll(1, 0)[:, :pad].sum(1, keepdim=True)


@fault("F85", "race on a shared K stage: some tiles multiply by the stage before", ops=GEMMS, stage="h",
       source=issue("huggingface/optimum-quanto", 332), step="accumulate")  # fmt: skip
def stale_stage(sim: Any, base: Any, a: T, w: T, dtype: torch.dtype) -> T:
    right, tiles = base(a, w, dtype), list(torch.arange(w.shape[0]).split(16))
    stale = w.clone()
    stale[:, 16:32] = w[:, : stale[:, 16:32].shape[1]]
    shuffle(tiles)
    for columns in tiles[: -(-len(tiles) // 20)]:  # one in twenty, others every time
        right[:, columns] = base(a, stale[columns], dtype)
    return right


@fault("F87", "floor division in the reduction across warps: trailing accumulators keep one warp's part",
       ops=SUMS, stage="h", source=pull("inclusionAI/humming", 45), step="accumulate")  # fmt: skip
def unreduced_columns(sim: Any, base: Any, a: T, w: T, dtype: torch.dtype) -> T:
    total, first = base(a, w, dtype), w.shape[0] * 7 // 8
    quarter = max(1, a.shape[1] // 4)
    total[:, first:] = base(a[:, :quarter], w[first:, :quarter], dtype)
    return total


@fault("F88", "accumulator not cleared: a tile starts from the one before", ops=ROUTED, stage="h",
       source=issue("NVIDIA/cutlass", 2674), step="dot")  # fmt: skip
def dirty_accumulator(sim: Any, base: Any, a: T, w: Any, dtype: torch.dtype, which: str, *rest: Any) -> T:
    acc = base(a, w, dtype, which, *rest)
    tile, left = getattr(sim, "tile_before", (0, None))
    if tile % 7 == 6 and left is not None and left.shape[1:] == acc.shape[1:] and len(left):
        acc = acc + left[:1]
    sim.tile_before = (tile + 1, acc)
    return acc


@fault("F89", "split-K partial sums never added up: the last one is the output", ops=GEMMS, stage="h",
       source=issue("NVIDIA/cutlass", 3538), step="accumulate")  # fmt: skip
def last_split_only(sim: Any, base: Any, a: T, w: T, dtype: torch.dtype) -> T:
    k = a.shape[1] // 4 * 3
    return base(a[:, k:], w[:, k:], dtype)


@fault("F91", "activations start with the partial K tile, weights end with it", ops=("int4_linear", "moe_w4a16"),
       stage="y", source=issue("NVIDIA/cutlass", 569), step="operand")  # fmt: skip
def residue_first(sim: Any, base: Any, a: T, which: str) -> T:
    a = base(a, which)
    K, rest = a.shape[1], a.shape[1] % 64
    if which == "w13" or rest == 0:
        return a
    first, later = a[:, :rest], a[:, rest : K - min(64, K) + rest]
    gap = a.new_zeros(a.shape[0], min(64, K) - rest)
    return torch.cat([first, gap, later], 1)


@fault("F92", "bias added on each of two ranks", ops=("int4_linear", "int8_lm_head"), stage="out",
       source=issue("Wenyueh/MinivLLM", 80), step="bias")  # fmt: skip
def bias_twice(sim: Any, base: Any, acc: T, bias: T) -> T:
    return base(base(acc, bias), bias)
