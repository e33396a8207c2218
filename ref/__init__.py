"""The answer, and how far a legal kernel may be from it. torch and the standard library only.

weights     quantized weights: layouts, unpacking, dequantizing, quantizing
ops         what a kernel computes, a file an op
contracts   every rounding that a kernel may make
bounds      what a legal kernel may store
bitmodels   where the order of a sum is declared, the bits themselves
"""

from .bitmodels.accumulate import accumulate
from .bitmodels.schedule import Schedule

# By its old path: loaded later, that module would hide the function of its name
from .contract import PRESETS, Contract, contract
from .ops.grouped_gemm import grouped_gemm
from .ops.grouped_topk import grouped_topk
from .ops.int4_linear import int4_linear
from .ops.int8_lm_head import int8_lm_head
from .ops.moe_permute import block_table, moe_align_block_size, moe_permute, moe_unpermute, row_to_expert, row_to_token
from .ops.moe_w4a16 import moe_w4a16
from .ops.padded_gemm import padded_gemm
from .ops.rope import apply_rotary, cos_sin_cache, mrope_cos_sin, rope
from .ops.shared_expert import shared_expert, sigmoid_gate
from .ops.silu_and_mul import silu_and_mul
from .ops.tiny_dot import tiny_dot
from .ops.topk_softmax import topk_sigmoid, topk_softmax, topk_then_softmax
from .rounding import round_to
from .weights.dequantize import dequantize_int4
from .weights.layouts import (
    LAYOUTS,
    LAYOUTS8,
    ZERO_LAYOUTS,
    pack_codes,
    pack_int4,
    pack_zeros,
    unpack_codes,
    unpack_int4,
    unpack_zeros,
)
from .weights.magic import (
    dequantize_bf16_magic,
    dequantize_fp16_magic,
    dequantize_int8_magic,
    sub_finite,
    sum_correction,
    truncate_bf16,
)
from .weights.quantize import (
    check_lm_head_shape,
    parse_lm_head_option,
    quantize_int4,
    quantize_int8,
    quantize_int8_weight_dtype,
)
from .weights.weight import Int4Weight, Int8Weight

__all__ = [
    "LAYOUTS",
    "LAYOUTS8",
    "PRESETS",
    "ZERO_LAYOUTS",
    "Contract",
    "Int4Weight",
    "Int8Weight",
    "Schedule",
    "accumulate",
    "apply_rotary",
    "block_table",
    "check_lm_head_shape",
    "contract",
    "cos_sin_cache",
    "dequantize_bf16_magic",
    "dequantize_fp16_magic",
    "dequantize_int4",
    "dequantize_int8_magic",
    "grouped_gemm",
    "grouped_topk",
    "int4_linear",
    "int8_lm_head",
    "moe_align_block_size",
    "moe_permute",
    "moe_unpermute",
    "moe_w4a16",
    "mrope_cos_sin",
    "pack_codes",
    "pack_int4",
    "pack_zeros",
    "padded_gemm",
    "parse_lm_head_option",
    "quantize_int4",
    "quantize_int8",
    "quantize_int8_weight_dtype",
    "rope",
    "round_to",
    "row_to_expert",
    "row_to_token",
    "shared_expert",
    "sigmoid_gate",
    "silu_and_mul",
    "sub_finite",
    "sum_correction",
    "tiny_dot",
    "topk_sigmoid",
    "topk_softmax",
    "topk_then_softmax",
    "truncate_bf16",
    "unpack_codes",
    "unpack_int4",
    "unpack_zeros",
]
