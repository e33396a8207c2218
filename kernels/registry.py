"""The kernels of this folder: what each implements, reads, promises and cannot do.

Importing this module imports no kernel and no triton; `Entry.load` (entry.py) does. A file of `entries/` may state
entries of its own, `ENTRIES`, with the arguments that they are compiled for and what their machine code must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from moeracle.kernels import case_schedules
from moeracle.kernels.entry import EXLLAMA_ZEROS, Entry
from moeracle.kernels.hopper.cases import hopper_case, hopper_device, hopper_schedule, layer_schedule, split_schedule
from moeracle.kernels.hopper.tiles.linear import linear_schedule
from moeracle.kernels.triton.schedules import GEMM, LAYER, SUM_ALONE

IN_FP32 = "grouped,accumulator=fp32"
STAGES = {"return_stages": True}
LM_HEAD_ON_A_MATRIX_UNIT = "int8_lm_head,accumulator=tensor_core"


def few_tokens(case: Any) -> bool | str:
    """Support T <= 16: above it each expert's weights are read more than once."""
    return case.T <= 16 or "decode is for T <= 16"


def chosen_ids(case: Any) -> bool | str:
    """Support what a softmax can choose: ids that differ within a token and are all there."""
    return case.routing not in ("repeat", "ignored") or "router logits choose each expert at most once"


def _int4(op: str, name: str, fn: str, **fields: Any) -> Entry:
    return Entry(op, name, f"moeracle.kernels.{fn}", layout="exllama", zeros=EXLLAMA_ZEROS, **fields)


def _hopper(op: str, name: str, fn: str, **fields: Any) -> Entry:
    return _int4(
        op, name, f"hopper.moe_w4a16:{fn}", supports=hopper_case, here=hopper_device, needs="cuda 9.0", **fields
    )


def _dense(op: str, name: str, fn: str, **fields: Any) -> Entry:
    return _int4(
        op, name, f"hopper.int4_linear:{fn}", supports=hopper_case, here=hopper_device, needs="cuda 9.0", **fields
    )


def _plain(op: str, name: str, fn: str, **fields: Any) -> Entry:
    return Entry(op, name, f"moeracle.kernels.{fn}", **fields)


def _read(make: Callable[..., Entry], op: str, name: str, fn: str, rule: Any, **fields: Any) -> Entry:
    """Make an entry whose order of sums is read off what `fn` launches for a case."""
    return make(op, name, fn, schedule=case_schedules.read(rule, fn), **fields)


def _of_files() -> Iterator[Entry]:
    for file in sorted(Path(__file__).with_name("entries").glob("*.py")):
        yield from import_module(f"moeracle.kernels.entries.{file.stem}").ENTRIES


REGISTRY: list[Entry] = [
    _int4("unpack_int4", "unpack_int4", "triton.dequantize_int4:unpack_int4"),
    _int4("dequantize_int4", "dequantize_int4", "triton.dequantize_int4:dequantize_int4"),
    _plain("topk_softmax", "topk_softmax", "triton.topk_softmax:topk_softmax", dtypes=("bf16", "fp16", "fp32")),
    _plain("topk_softmax", "topk_softmax.route", "triton.route_as_ops:topk_by_route", dtypes=("bf16", "fp16", "fp32")),
    _plain("moe_align_block_size", "moe_align_block_size", "triton.moe_permute:moe_align_block_size"),
    _plain("moe_align_block_size", "moe_align_block_size.torch", "triton.moe_permute_torch:moe_align_block_size"),
    _plain(
        "moe_align_block_size", "moe_align_block_size.route", "triton.route_as_ops:align_by_route", supports=chosen_ids,
    ),
    _plain("moe_permute", "moe_permute", "triton.moe_permute:moe_permute"),
    _plain("moe_permute", "moe_permute.torch", "triton.moe_permute_torch:moe_permute"),
    _plain("moe_permute", "moe_permute.route", "triton.route_as_ops:permute_by_route", supports=chosen_ids),
    _plain("moe_unpermute", "moe_unpermute", "triton.moe_unpermute:moe_unpermute", schedule=SUM_ALONE),
    _read(_int4, "int4_linear", "int4_linear", "triton.int4_linear:int4_linear", case_schedules.linear),
    _int4("int4_linear", "int4_linear.dot", "triton.int4_linear:int4_linear_dot", schedule=GEMM),
    _read(_int4, "int4_linear", "int4_linear.rows", "triton.int4_linear:int4_linear_rows", case_schedules.linear),
    _int4("grouped_gemm", "grouped_gemm", "triton.grouped_gemm:grouped_gemm", schedule=GEMM),
    _int4("padded_gemm", "padded_gemm", "triton.padded_gemm:padded_gemm", schedule=GEMM),
    _plain("silu_and_mul", "silu_and_mul", "triton.silu_and_mul:silu_and_mul"),
    _int4("moe_w4a16", "moe_w4a16.grouped", "triton.moe_w4a16:moe_w4a16_grouped", schedule=LAYER, given=STAGES),
    _int4("moe_w4a16", "moe_w4a16.padded", "triton.moe_w4a16:moe_w4a16_padded", schedule=LAYER, given=STAGES),
    _int4("moe_w4a16", "moe_w4a16.fused", "triton.moe_w4a16:moe_w4a16_fused", schedule=LAYER, given=STAGES),
    _read(
        _int4, "moe_w4a16", "moe_w4a16.decode", "triton.moe_w4a16:moe_w4a16_decode", case_schedules.decode,
        supports=few_tokens, given=STAGES,
    ),
    _dense("int4_linear", "int4_linear.hopper", "int4_linear_hopper", schedule=linear_schedule),
    _dense(
        "shared_expert", "shared_expert.hopper", "shared_expert_hopper", given=STAGES,
        schedule=case_schedules.read(case_schedules.shared, "hopper.int4_linear:shared_expert_hopper"),
    ),
    _hopper("grouped_gemm", "grouped_gemm.hopper", "hopper_grouped_gemm", schedule=hopper_schedule),
    _hopper("padded_gemm", "padded_gemm.hopper", "hopper_padded_gemm", schedule=hopper_schedule),
    _hopper("padded_gemm", "padded_gemm.hopper_split", "hopper_padded_gemm_split", schedule=split_schedule),
    _hopper("moe_w4a16", "moe_w4a16.hopper", "moe_w4a16_hopper", schedule=layer_schedule, given=STAGES),
    _read(
        _plain, "int8_lm_head", "int8_lm_head", "choose:int8_lm_head", case_schedules.lm_head,
        contract=LM_HEAD_ON_A_MATRIX_UNIT,
    ),
    _read(
        _plain, "int8_lm_head", "int8_lm_head.rows", "triton.int8_lm_head:int8_lm_head_rows", case_schedules.lm_head,
        contract="int8_lm_head",
    ),
    _read(
        _int4, "shared_expert", "shared_expert", "triton.shared_expert:shared_expert", case_schedules.shared,
        given=STAGES,
    ),
    _read(_plain, "tiny_dot", "tiny_dot", "triton.tiny_dot:tiny_dot", case_schedules.tiny, contract=IN_FP32),
    *_of_files(),
]  # fmt: skip
