"""The stages that a bisection can name, for a layer, for one GEMM, and for kernels that are one stage themselves."""

from __future__ import annotations

UNPACK, SCALE, ZERO, ROUTING = "unpack", "scale", "zero point", "routing"
GEMM1, ACTIVATION, GEMM2, REDUCTION = "gemm1", "activation", "gemm2", "reduction"
BIAS = "bias"
ONE_GEMM = ("int4_linear", "grouped_gemm", "padded_gemm")
READERS = ("unpack_int4", "dequantize_int4")
LM_HEAD = "int8_lm_head"
STAGES = (UNPACK, SCALE, ZERO, ROUTING, GEMM1, ACTIVATION, GEMM2, REDUCTION)
OTHER_STAGES = (BIAS, "quantizer")
# What is convicted where every probe is answered rightly: the stage that stored the wrong elements.
FALLBACK = {"h": GEMM1, "a": ACTIVATION, "y": GEMM2, "out": REDUCTION}
OF_OP = {
    "topk_softmax": ROUTING, "moe_align_block_size": ROUTING, "moe_permute": ROUTING, "silu_and_mul": ACTIVATION,
    "moe_unpermute": REDUCTION, "quantize_int8": "quantizer",
}  # fmt: skip
PROBED = ("moe_w4a16", *ONE_GEMM, *READERS, LM_HEAD)  # ops that questions are made for; any other is a stage itself
