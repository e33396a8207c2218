"""The HIP kernels of this folder: what each implements, promises and refuses; TARGET `moeracle.kernels.hip`.

They run where their inputs are: emulated on a CPU, through nvcc on NVIDIA, as gfx machine code on AMD. Their order of
additions is data (A_CHUNK of knobs.json), so a contract's schedule is a function of the case; on AMD silicon, where
v_dot2 and WMMA are not verified to round as two fused multiply-adds do, their results are judged by interval instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeracle.kernels.entry import DEVICE, EXLLAMA_ZEROS, Entry
from moeracle.kernels.hip.common import check_groups, knobs_for, refusal
from moeracle.kernels.hip.moe_w4a16 import PARTIALS, block_size_for, fused_chunk

Supports = Callable[[Any], "bool | str"]
Schedule = Callable[[Any], "str | None"]
DECODE_BLOCKS = (1, 2, 4)


def _group(G: int, K: int) -> int:
    return K if G == -1 else G


def _lanes(kernel: str, rows: int, K: int, G: int, hoisted: bool = False) -> str:
    chunk = knobs_for(kernel, max(rows, 1), K, _group(G, K))["A_CHUNK"]
    return f"fma/lanes32x{chunk}/fused" + ("/zerofused" if hoisted else "")


def linear_supports(case: Any) -> bool | str:
    """Say whether int4_gemv takes a case; T = 0 launches nothing."""
    return refusal("int4_gemv", max(case.T, 1), case.K, _group(case.G, case.K))


def decode_supports(case: Any) -> bool | str:
    """Say whether moe_gemv takes a padded_gemm case: blocks of 1, 2 or 4 ids."""
    if case.B not in DECODE_BLOCKS:
        return f"decode blocks are of {', '.join(map(str, DECODE_BLOCKS))} ids, not {case.B}"
    return refusal("moe_gemv", case.B, case.K, _group(case.G, case.K))


def prefill_supports(case: Any) -> bool | str:
    """Say whether moe_wmma takes a padded_gemm case: blocks of whole tiles of 16 ids."""
    if case.B % 16:
        return f"tiles are of 16 ids, not {case.B}"
    return refusal("moe_wmma", 16, case.K, _group(case.G, case.K))


def layer_supports(case: Any) -> bool | str:
    """Say whether the decode layer takes a moe_w4a16 case."""
    if case.T > 5:
        return f"decode is for T <= 5, not {case.T}"
    rows = block_size_for(case.T, case.k, case.E)
    for K in (case.H, case.I):
        answer = refusal("moe_gemv", rows, K, _group(case.G, K))
        if answer is not True:
            return answer
    return True


def fused_supports(case: Any) -> bool | str:
    """Say whether the fused layers take a moe_w4a16 case: also the slots' partial sums must fit in LDS."""
    if case.G == -1 and (case.H % 32 == 0) != (case.I % 32 == 0):
        return "with one group a row, A_CHUNK would differ between the two GEMMs"
    if case.k > PARTIALS // 32:
        return f"k is at most {PARTIALS // 32}: partial sums are in LDS"
    answer = layer_supports(case)
    return answer if answer is not True else refusal("moe_gemm2_reduce", 1, case.I, _group(case.G, case.I))


def shared_supports(case: Any) -> bool | str:
    """Say whether the two dense launches take a shared_expert case, and the cast before them its groups."""
    for K in (case.H, case.I):
        answers = refusal("dense_gemv", max(case.T, 1), K, K), groups_supported(case.G, K)
        if answers != (True, True):
            return next(answer for answer in answers if answer is not True)
    return True


def tiny_supports(case: Any) -> bool | str:
    """Say whether dense_gemv takes a tiny_dot case."""
    return refusal("dense_gemv", max(case.T, 1), case.K, case.K)


def lm_head_supports(case: Any) -> bool | str:
    """Say whether int8_gemv takes a case."""
    return refusal("int8_gemv", max(case.T, 1), case.K, _group(case.G, case.K))


def groups_supported(G: int, K: int) -> bool | str:
    """Say whether dequantize_int4.hip takes groups: of whole words, and a shift of k, or one a row."""
    try:
        check_groups(_group(G, K), K, 8)
    except ValueError as error:
        return str(error)
    return True


def _fused(hoisted: bool) -> Schedule:
    tail = "/zerofused" if hoisted else ""
    return lambda case: f"fma/lanes32x{fused_chunk(case.I, _group(case.G, case.I))}/fused{tail}"


def layer(case: Any) -> str:
    """Return the schedules of the decode layer's GEMMs; the data file may give them two A_CHUNKs."""
    rows = block_size_for(case.T, case.k, case.E)
    return _both(*(_lanes("moe_gemv", rows, K, case.G) for K in (case.H, case.I)))


def dense(case: Any) -> str:
    """Return the schedules of both launches of the shared expert."""
    rows, launches = max(case.T, 1), (("dense_gemv.silu_mul", case.H), ("dense_gemv", case.I))
    return _both(*(f"fma/lanes32x{knobs_for(kernel, rows, K, K)['A_CHUNK']}" for kernel, K in launches))


def _both(first: str, second: str) -> str:
    return first if first == second else f"{first},gemm2_schedule={second}"


def _int4(op: str, name: str, fn: str, contract: str, supports: Supports, schedule: Schedule, **fields: Any) -> Entry:
    return Entry(
        op,
        name,
        f"moeracle.kernels.{fn}",
        layout="exllama",
        zeros=EXLLAMA_ZEROS,
        contract=contract,
        device=DEVICE,
        supports=supports,
        schedule=schedule,
        **fields,
    )


BF16 = ("bf16",)


def linear(case: Any) -> str:
    """Return the schedule of int4_gemv."""
    return _lanes("int4_gemv", case.T, case.K, case.G)


def linear_sum(case: Any) -> str:
    """Return the schedule of int4_gemv where the zero point is subtracted from the sum."""
    return _lanes("int4_gemv", case.T, case.K, case.G, hoisted=True)


def decode(case: Any) -> str:
    """Return the schedule of moe_gemv."""
    return _lanes("moe_gemv", case.B, case.K, case.G)


def prefill(case: Any) -> str:
    """Return the schedule of moe_wmma in bf16, where the zero point is subtracted from the sum."""
    return f"{prefill_exact(case)}/zerofused"


def prefill_exact(case: Any) -> str:
    """Return the schedule of moe_wmma in fp16: a sum for each group of K."""
    return f"fma/t{_group(case.G, case.K)}/fused"


def lm_head(case: Any) -> str:
    """Return the schedule of int8_gemv."""
    return _lanes("int8_gemv", case.T, case.K, case.G)


REGISTRY: list[Entry] = [
    _int4("int4_linear", "int4_gemv", "hip.int4_linear:int4_linear", "wvsplitk", linear_supports, linear),
    _int4(
        "int4_linear", "int4_gemv.sub_finite", "hip.int4_linear:int4_linear", "wvsplitk", linear_supports, linear,
        dtypes=BF16, given={"decode": "sub_finite"},  # rounds codes as the default does: the same bits
    ),
    _int4(
        "int4_linear", "int4_gemv.sum", "hip.int4_linear:int4_linear", "wmma", linear_supports, linear_sum, dtypes=BF16,
        given={"decode": "sum"},
    ),
    _int4("padded_gemm", "moe_gemv", "hip.padded_gemm:padded_gemm", "wvsplitk", decode_supports, decode),
    _int4("padded_gemm", "moe_wmma", "hip.padded_gemm:padded_gemm", "wmma", prefill_supports, prefill, dtypes=BF16),
    _int4(
        "padded_gemm", "moe_wmma.fp16", "hip.padded_gemm:padded_gemm", "wvsplitk", prefill_supports, prefill_exact,
        dtypes=("fp16",),
    ),
    Entry(
        "dequantize_int4", "dequantize_int4.hip", "moeracle.kernels.hip.dequantize_int4:dequantize_int4",
        layout="exllama", zeros=EXLLAMA_ZEROS, contract="wvsplitk,weight=cast",
        supports=lambda case: groups_supported(case.G, case.K),
    ),
    Entry("silu_and_mul", "silu_and_mul.hip", "moeracle.kernels.hip.moe_w4a16:silu_and_mul", contract="wvsplitk"),
    _int4("moe_w4a16", "moe_hip.decode", "hip.moe_w4a16:decode_stages", "wvsplitk", layer_supports, layer),
    _int4(
        "moe_w4a16", "moe_hip.fused", "hip.moe_w4a16:fused_stages", "megakernel,silu=rounded", fused_supports,
        _fused(False)
    ),
    _int4(
        "moe_w4a16", "moe_hip.fused_silu", "hip.moe_w4a16:fused_silu_stages", "megakernel", fused_supports,
        _fused(False)
    ),
    _int4(
        "moe_w4a16", "moe_hip.fused_sum", "hip.moe_w4a16:fused_silu_stages", "megakernel_sum", fused_supports,
        _fused(True), dtypes=BF16, given={"decode": "sum"},
    ),
    _int4(
        "shared_expert", "shared_expert.hip", "hip.shared_expert:shared_expert_stages", "grouped,accumulator=rdna",
        shared_supports, dense,
    ),
    Entry(
        "tiny_dot", "tiny_dot.hip", "moeracle.kernels.hip.shared_expert:tiny_dot", contract="grouped,accumulator=rdna",
        supports=tiny_supports,
    ),
    Entry(
        "int8_lm_head", "int8_gemv", "moeracle.kernels.hip.int8_lm_head:int8_lm_head", contract="int8_lm_head",
        supports=lm_head_supports, schedule=lm_head,
    ),
]  # fmt: skip
