"""What each op's case may say: its dimensions, dtypes, routings, data recipes and modifiers."""

from __future__ import annotations

from dataclasses import dataclass

ROUTINGS = ("balanced", "uniform", "zipf1", "zipf2", "hot16", "onehot", "empty", "repeat", "ignored")
GEMM_DATA = (
    "normal",
    "outliers",
    "cancelling",
    "wide",
    "subnormal",
    "codes16",
    "integers",
    "onehot",
    "samesign",
    "stagnation",
)
NONE = ("-",)
HALF = ("bf16", "fp16")
LAYERS = ("moe_w4a16", "shared_expert")  # of two GEMMs, whose stages h, a and y a kernel may store too

# The zero-point forms that each weight layout is found with, and Int4Weight's name for the stored form.
ZERO_LAYOUT: dict[str, dict[str, str | None]] = {
    "exllama": {"sym": None, "rdna": "rdna", "v1": "gptq_v1", "v2": "gptq_v2", "unpacked": "unpacked"},
    "gptq": {"sym": None, "v1": "gptq_v1", "v2": "gptq_v2", "unpacked": "unpacked"},
    "awq": {"sym": None, "asym": "awq", "unpacked": "unpacked"},
    "compressed_tensors": {"sym": None, "asym": "compressed_tensors", "unpacked": "unpacked"},
    "nibble_pairs": {"sym": None, "asym": "nibble_pairs", "unpacked": "unpacked"},
}
ZEROS_PER_WORD = {"gptq_v1": 8, "gptq_v2": 8, "awq": 8, "compressed_tensors": 8, "rdna": 8, "nibble_pairs": 2}


@dataclass(frozen=True)
class OpFields:
    """The fields that a case of one op has; ("-",) stands for a field without meaning for the op.

    Args:
        dims: dimension letters in canonical order.
        optional: letters that may be absent.
        dtypes, routings, data: legal names, the plainest first.
        weight: whether the op reads an int4 weight, so that layout-zero has meaning.
        routing_flags, data_flags: modifiers of the routing and the data field.
    """

    dims: tuple[str, ...]
    dtypes: tuple[str, ...] = HALF
    weight: bool = False
    routings: tuple[str, ...] = NONE
    data: tuple[str, ...] = ("normal",)
    routing_flags: tuple[str, ...] = ()
    data_flags: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


OPS: dict[str, OpFields] = {
    "unpack_int4": OpFields(("E", "N", "K", "G"), weight=True, data=("normal", "codes16"), optional=("E",)),
    "dequantize_int4": OpFields(
        ("E", "N", "K", "G"),
        weight=True,
        data=("normal", "codes16", "wide", "subnormal", "integers"),
        optional=("E",),
    ),
    "topk_softmax": OpFields(
        ("T", "E", "k"),
        dtypes=("bf16", "fp16", "fp32"),
        data=("normal", "ties", "nonfinite", "outliers", "wide"),
        routing_flags=("renorm",),
    ),
    "moe_align_block_size": OpFields(
        ("T", "E", "k", "B"), dtypes=NONE, routings=ROUTINGS, data=NONE, routing_flags=("ep2",)
    ),
    "moe_permute": OpFields(
        ("T", "E", "k", "K"),
        routings=ROUTINGS,
        data=("normal", "wide", "subnormal", "integers"),
        routing_flags=("ep2",),
        data_flags=("strided",),
    ),
    "moe_unpermute": OpFields(
        ("T", "E", "k", "K"),
        routings=ROUTINGS,
        data=("normal", "outliers", "cancelling", "wide", "subnormal", "integers", "samesign"),
    ),
    "int4_linear": OpFields(("T", "N", "K", "G"), weight=True, data=GEMM_DATA, data_flags=("bias", "strided")),
    "grouped_gemm": OpFields(
        ("T", "E", "k", "N", "K", "G"),
        weight=True,
        routings=ROUTINGS,
        data=GEMM_DATA,
        routing_flags=("ep2",),
        data_flags=("strided",),
    ),
    "padded_gemm": OpFields(
        ("T", "E", "k", "N", "K", "G", "B"),
        weight=True,
        routings=ROUTINGS,
        data=GEMM_DATA,
        routing_flags=("ep2", "weight"),
        data_flags=("strided",),
    ),
    "silu_and_mul": OpFields(
        ("T", "I"),
        data=("normal", "outliers", "wide", "subnormal", "integers", "samesign", "allgates"),
        data_flags=("strided",),
    ),
    "moe_w4a16": OpFields(
        ("T", "E", "k", "H", "I", "G"),
        weight=True,
        routings=ROUTINGS,
        data=(*GEMM_DATA, "sweep", "onehot2"),
        data_flags=("strided",),
    ),
    "shared_expert": OpFields(
        ("T", "H", "I", "G"), weight=True, data=(*GEMM_DATA, "sweep", "onehot2"), data_flags=("gate", "strided")
    ),
    "tiny_dot": OpFields(
        ("T", "K"),
        data=tuple(name for name in GEMM_DATA if name != "codes16"),
        data_flags=("sigmoid", "strided"),
    ),
    "quantize_int8": OpFields(
        ("V", "K", "G"),
        dtypes=("bf16", "fp16", "fp32"),
        data=("normal", "outliers", "wide", "subnormal", "integers"),
    ),
    "int8_lm_head": OpFields(
        ("T", "V", "K", "G"),
        data=tuple(name for name in GEMM_DATA if name != "codes16"),
        data_flags=("bias", "strided"),
    ),
}
