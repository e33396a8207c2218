"""Faults of scales and of the rounding of weights."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.rounding import round_in_fp64

from ..simulate.weights import one
from .base import (
    ARITHMETIC,
    ASYMMETRIC,
    GEMMS,
    SCALED,
    fault,
    issue,
    only_after_dot,
    only_before_dot,
    only_cast_rne,
    pull,
)
from .weights import taken

T = torch.Tensor


def rtz(x: T, dtype: torch.dtype) -> T:
    """Round fp32 to D toward zero, as fp32."""
    return round_in_fp64(x.double(), dtype, "rtz").float()


def truncated_product(sim: Any, base: Any, silu: T, up: T, dtype: torch.dtype) -> T:
    """Multiply in bf16, truncating."""
    return rtz(base(silu, up, dtype), dtype)


@fault("F02", "a K tile longer than the group takes one scale", ops=SCALED, stage="h",
       source=pull("vllm-project/vllm", 39705), step="scale_group")  # fmt: skip
def one_scale_a_tile(sim: Any, base: Any, K: int, G: int, which: str) -> T:
    return torch.arange(K) // (2 * G) * 2


def group_of_128(sim: Any, base: Any, K: int, G: int, which: str) -> T:
    """Take 128 for the group size."""
    return (torch.arange(K) // 128).clamp(max=K // G - 1)


fault("F03", "group size hard-coded to 128", ops=SCALED, stage="h", source=issue("sgl-project/sglang", 38573),
      step="scale_group", also={"zero_group": group_of_128})(group_of_128)  # fmt: skip


@fault("F20", "scales not sharded along K under tensor parallelism: rank 1 reads rank 0's", ops=SCALED, stage="h",
       source=issue("vllm-project/vllm", 41511), step="scale_group")  # fmt: skip
def unsharded_scales(sim: Any, base: Any, K: int, G: int, which: str) -> T:
    return base(K, G, which) % max(1, K // G // 2)


@fault("F22", "bf16 multiply that truncates: weights and silu * up", ops=(*SCALED, "silu_and_mul"), stage="h",
       source=pull("triton-lang/triton", 11227), step="cast", also={"product": truncated_product},
       dtypes=("bf16",), not_under=only_cast_rne)  # fmt: skip
def truncating_multiply(sim: Any, base: Any, values: T, dtype: torch.dtype) -> T:
    return rtz(values, dtype)


@fault("F29", "scale taken from the next group", ops=SCALED, stage="h", source=ARITHMETIC, step="scales")
def scale_of_next_group(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which).roll(-1, 1)


@fault("F30", "only the last group's scale wrong", ops=SCALED, stage="h", source=ARITHMETIC, step="scales")
def last_scale_wrong(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    scale = base(w, e, which).clone()
    scale[:, -1] = scale[:, -2] if scale.shape[1] > 1 else scale[:, -1].roll(1)
    return scale


@fault("F43", "weights truncated in place of rounded", ops=SCALED, stage="h", source=pull("triton-lang/triton", 11227),
       step="cast", not_under=only_cast_rne)  # fmt: skip
def truncated_weights(sim: Any, base: Any, values: T, dtype: torch.dtype) -> T:
    return rtz(values, dtype)


@fault("F51", "group index divides too early: one row with G > 32 uses group 0 for all of K", ops=GEMMS, stage="h",
       source=pull("intel/torch-xpu-ops", 5001), step="dot")  # fmt: skip
def group_zero_for_one_row(sim: Any, base: Any, a: T, w: Any, dtype: torch.dtype, which: str, *rest: Any) -> T:
    groups = w.scale.shape[1]
    if a.shape[0] == 1 and w.codes.shape[1] > 32 * groups:
        first = torch.zeros_like(w.scale_group)
        w = sim.form(w.codes, w.zero, w.scale, first, first, dtype)
    return base(a, w, dtype, which, *rest)


def block_of_64(sim: Any, base: Any, K: int, G: int, which: str) -> T:
    """Give each block of 64 columns its own place in the rolled table."""
    return torch.arange(K) // 64 if G == K else base(K, G, which)


@fault("F52", "one group over K given as -1: later blocks read scales at a negative offset", ops=SCALED, stage="h",
       source=pull("vllm-project/vllm", 37329), step="scales", also={"scale_group": block_of_64})  # fmt: skip
def negative_scale_offset(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    scale = base(w, e, which)
    return torch.cat([scale.roll(k, 0) for k in range(0, w.K, 64)], 1) if w.G == w.K else scale


@fault("F54", "scale table transposed at load and viewed in its old shape", ops=SCALED, stage="h",
       source=pull("vllm-project/vllm", 47116), step="scales")  # fmt: skip
def transposed_scales(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    scale = base(w, e, which)
    return scale.mT.contiguous().view(scale.shape)


@fault("F61", "small scales flushed to zero", ops=SCALED, stage="h", source=pull("vllm-project/vllm", 34577),
       step="scales", dtypes=("bf16",))  # fmt: skip
def small_scales_flushed(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    scale = base(w, e, which)
    return torch.where(scale < scale.max() / 64, 0.0, scale)


@fault("F62", "u*s and z*s rounded apart and then subtracted in fp16", ops=SCALED, stage="h",
       source=pull("vllm-project/vllm", 55532), step="values", zeros=ASYMMETRIC, dtypes=("fp16",),
       not_under=only_before_dot)  # fmt: skip
def zero_times_scale_in_fp16(sim: Any, base: Any, steps: T, zero: T, scale: T) -> T:
    return (steps + zero) * scale - (zero * scale).half().float()


@fault("F63", "group sum rounded to fp16 before its scale, and again after", ops=GEMMS, stage="h",
       source=pull("openvinotoolkit/openvino", 34528), step="scaled_partial", contract="wvsplitk",
       not_under=only_after_dot)  # fmt: skip
def partial_in_fp16(sim: Any, base: Any, a: T, steps: T, zero: T, scale: T, dtype: torch.dtype) -> T:
    return (sim.accumulate(a, steps, dtype).half().float() * scale).half().float()


@fault("F73", "padded shard size used as offset into the checkpoint", ops=("moe_w4a16",), stage="h",
       source=pull("vllm-project/vllm", 42595), step="load")  # fmt: skip
def padded_shard_offset(sim: Any, base: Any, w: Any, e: int | None, dtype: torch.dtype, which: str) -> Any:
    loaded = base(w, e, dtype, which)
    I, half = w.N // 2, w.N // 4
    if which != "w13" or half % 64 == 0:
        return loaded
    row = torch.arange(I)
    row = torch.where(row < half, row, row - half + -(-half // 64) * 64)  # rank 1 of 2 starts at the padded size
    absent = (row >= I).repeat(2)
    shifted = taken(loaded, torch.cat([row.clamp(max=I - 1), I + row.clamp(max=I - 1)]))
    values = None if shifted.values is None else shifted.values.masked_fill(absent[:, None], 0.0)
    return shifted._replace(scale=shifted.scale.masked_fill(absent[:, None], 0.0), values=values)


@fault("F76", "second GEMM's scales indexed with a stride padded to 256 columns",
       ops=("int4_linear", "grouped_gemm", "padded_gemm", "moe_w4a16"), stage="y",
       source=pull("ROCm/aiter", 5232), step="scales")  # fmt: skip
def padded_scale_stride(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    scale = base(w, e, which)
    if which == "w13":
        return scale
    N, groups = scale.shape
    stride = -(-w.K // 256) * 256 // w.G if w.G < w.K else 1
    at = torch.arange(N)[:, None] * stride + torch.arange(groups)[None, :]
    return scale.flatten()[at % scale.numel()]


@fault("F79", "merged gate and up: only the gate's scales are filled in", ops=("moe_w4a16",), stage="h",
       source=pull("vllm-project/vllm", 38517), step="scales")  # fmt: skip
def gate_scales_for_up(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    scale = base(w, e, which)
    return scale[: w.N // 2].repeat(2, 1) if which == "w13" else scale


@fault("F197", "sign of a scale forgotten", ops=SCALED, stage="h", source=ARITHMETIC, step="scales")
def sign_of_scales_forgotten(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which).abs()


@fault("F198", "scales of wider rows read as if rows lay one after another", ops=SCALED, stage="h", source=ARITHMETIC,
       step="scales")  # fmt: skip
def rows_of_scales(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    scale = one(w, e).scale
    N, groups = scale.shape
    close = (1, N) if w.layout in ("gptq", "awq") else (groups, 1)
    return scale.as_strided(scale.shape, close).float()
