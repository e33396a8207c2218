"""Cases worked by hand for the ops that multiply: GEMMs, silu, a whole layer, int8.

In `compressed_tensors` words the last hex digit is column 0, and the digit 8 is weight 0: 0x8888887B is 3, -1, 0, 0, …
"""

from __future__ import annotations

from moeracle.ref.bounds.shared_expert import TINY_DOT

from .literal_data import Literal, bf16, fp32, int32, weight, words

Z = 0x88888888  # eight zero weights
EXPERTS = [[[0x88888889], [0x88888898]], [[0xFFFFFFFF], [0xFFFFFFFF]], [[0x8888888A], [0x88888887]]]
ONES = bf16([[[1.0], [1.0]]] * 3)


def row(*values: float, of: int = 8) -> list[float]:
    """These values, then zeros."""
    return [*values, *[0.0] * (of - len(values))]


LINEAR = [
    # q = 0 1 2 -1 0 0 0 0 and -8 7 0 0 0 0 0 1, times 0.5: (2 + 6 - 4)/2 = 2; (-8 + 14 + 8)/2 = 7; plus 1 and -1.
    Literal(
        "int4_linear.by_hand",
        "int4_linear/T2-N2-K8-G8/bf16/compressed_tensors-sym/-/integers+bias/s0",
        lambda: {
            "x": bf16([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], row()]),
            "w": weight("compressed_tensors", words([[0x88887A98], [0x988888F0]]), bf16([[0.5], [0.5]]), 8),
            "bias": bf16([1.0, -1.0]),
        },
        lambda: {"out": bf16([[3.0, 6.0], [1.0, -1.0]])},
        "forgot the bias, the zero point 8, or the scale",
    ),
    # q = 1 1 1 and 1 3 1. 256 + 1 = 257, a tie of bf16 (steps of 2) -> 256; 256 + 3 = 259, a tie -> 260;
    # 256 + 1 - 256 = 1 and 256 + 3 - 256 = 3: a bf16 accumulator would have lost the 1.
    Literal(
        "int4_linear.ties",
        "int4_linear/T2-N2-K8-G8/bf16/compressed_tensors-sym/-/integers/s0",
        lambda: {
            "x": bf16([row(256.0, 1.0), row(256.0, 1.0, -256.0)]),
            "w": weight("compressed_tensors", words([[0x88888999], [0x888889B9]]), bf16([[1.0], [1.0]]), 8),
            "bias": None,
        },
        lambda: {"out": bf16([[256.0, 260.0], [1.0, 3.0]])},
        "rounded a tie away from even, truncated, or accumulated in bf16",
    ),
    # Expert 0 is the identity on columns 0 and 1, expert 1 (no rows) would give 7 times everything, expert 2: 2 and -1
    # times column 0.
    Literal(
        "grouped_gemm.by_hand",
        "grouped_gemm/T3-E3-k1-N2-K8-G8/bf16/compressed_tensors-sym/uniform/integers/s0",
        lambda: {
            "x": bf16([row(1.0, 2.0), row(3.0, 4.0), row(5.0, 6.0)]),
            "w": weight("compressed_tensors", words(EXPERTS), ONES, 8),
            "expert_offsets": int32([0, 1, 1, 3]).long(),
        },
        lambda: {"out": bf16([[1.0, 2.0], [6.0, -3.0], [10.0, -5.0]])},
        "let the empty expert have rows",
        truth={"topk_ids": int32([[0], [2], [2]]), "inv": int32([0, 1, 2]), "expert_map": None},
    ),
    # Slots: token 0 to experts 0 and 2, token 1 to expert 2 and nowhere. Blocks of 2; id 4 = R is padding.
    Literal(
        "padded_gemm.by_hand",
        "padded_gemm/T2-E3-k2-N2-K8-G8-B2/bf16/compressed_tensors-sym/ignored+weight/integers/s0",
        lambda: {
            "x": bf16([row(1.0, 2.0), row(3.0, 4.0)]),
            "w": weight("compressed_tensors", words(EXPERTS), ONES, 8),
            "sorted_token_ids": int32([0, 4, 1, 2, 4, 4, 4]),
            "expert_ids": int32([0, 2, -1, -1]),
            "num_tokens_post_padded": int32([4]),
            "topk_weights": fp32([[0.5, 0.25], [2.0, 1.0]]),
            "top_k": 2,
        },
        lambda: {"out": bf16([[0.5, 1.0], [0.5, -0.25], [12.0, -6.0], [0.0, 0.0]])},
        "read token id for id // top_k, acted on padding or past the end, or left the ignored row unwritten",
        truth={"topk_ids": int32([[0, 2], [2, -1]]), "block_size": 2, "expert_map": None},
    ),
]

ACTIVATION = [
    # silu(128) = 128 and silu(-128) = -128 e^-128 = -3.3e-54 -> -0 in fp32. silu(1) = 0.73105858 = 187.15/256, rounded
    # 187/256 = 0.73046875, times 2. silu(-1) = -0.26894142 = -137.7/512 -> -138/512. Zeros keep their sign: -0 times 5,
    # and -0 times -1.
    Literal(
        "silu_and_mul.by_hand",
        "silu_and_mul/T2-I4/bf16/-/-/normal/s0",
        lambda: {
            "h": bf16([[128.0, -128.0, 1.0, -1.0, 3.0, 3.0, 2.0, 1.0], [0.0, -0.0, 64.0, -128.0, 5.0, 5.0, -2.0, -1.0]])
        },
        lambda: {"out": bf16([[384.0, -0.0, 1.4609375, -0.26953125], [0.0, -0.0, -128.0, 0.0]])},
        "swapped gate and up, interleaved them, or overflowed in exp",
    )
]

LAYER = [
    # Gates are multiples of 128, so silu is ReLU. x picks column 0: expert 0 has gates 1 -1 0 1 times 128, ups 2 2 2
    # -1; w2 gives a0, a3 and -a0-a3. Expert 1: gate 128, up 1, and w2 sends it to column 7. Token 1: x = 2, no slot 0.
    Literal(
        "moe_w4a16.by_hand",
        "moe_w4a16/T2-E2-k2-H8-I8-G8/bf16/compressed_tensors-sym/ignored/integers/s0",
        lambda: {
            "x": bf16([row(1.0), row(2.0)]),
            "w13": weight(
                "compressed_tensors",
                words(
                    [
                        [[n] for n in (0x88888889, 0x88888887, Z, 0x88888889, Z, Z, Z, Z)]
                        + [[n] for n in (0x8888888A, 0x8888888A, 0x8888888A, 0x88888887, Z, Z, Z, Z)],
                        [[n] for n in (0x88888889, Z, Z, Z, Z, Z, Z, Z)] * 2,
                    ]
                ),
                bf16([[[128.0]] * 8 + [[1.0]] * 8] * 2),
                8,
            ),
            "w2": weight(
                "compressed_tensors",
                words(
                    [
                        [[n] for n in (0x88888889, 0x88889888, 0x88887887, Z, Z, Z, Z, Z)],
                        [[n] for n in (Z, Z, Z, Z, Z, Z, Z, 0x88888889)],
                    ]
                ),
                bf16([[[1.0]] * 8] * 2),
                8,
            ),
            "topk_weights": fp32([[0.5, 0.25], [0.25, 2.0]]),
            "topk_ids": int32([[0, 1], [-1, 0]]),
        },
        lambda: {
            "h": bf16(
                [
                    row(128.0, -128.0, 0.0, 128.0) + row(2.0, 2.0, 2.0, -1.0),
                    row(128.0) + row(1.0),
                    row(of=16),
                    row(256.0, -256.0, 0.0, 256.0) + row(4.0, 4.0, 4.0, -2.0),
                ]
            ),
            "a": bf16([row(256.0, -0.0, 0.0, -128.0), row(128.0), row(), row(1024.0, -0.0, 0.0, -512.0)]),
            "y": bf16(
                [row(256.0, -128.0, -128.0), row(0, 0, 0, 0, 0, 0, 0, 128.0), row(), row(1024.0, -512.0, -512.0)]
            ),
            "out": bf16([[128.0, -64.0, -64.0, 0.0, 0.0, 0.0, 0.0, 32.0], row(2048.0, -1024.0, -1024.0)]),
        },
        "mixed up gate and up, slots or router weights, or computed the ignored slot",
    )
]

SHARED = [
    # The layer above with one expert, x = 1 and 2, and a gate on column 1 alone: sigmoid(128) = 1 and sigmoid(0) = 1/2.
    Literal(
        "shared_expert.by_hand",
        "shared_expert/T2-H8-I8-G8/bf16/compressed_tensors-sym/-/integers+gate/s0",
        lambda: {
            "x": bf16([row(1.0, 1.0), row(2.0)]),
            "w_gate_up": weight(
                "compressed_tensors",
                words(
                    [[n] for n in (0x88888889, 0x88888887, Z, 0x88888889, Z, Z, Z, Z)]
                    + [[n] for n in (0x8888888A, 0x8888888A, 0x8888888A, 0x88888887, Z, Z, Z, Z)]
                ),
                bf16([[128.0]] * 8 + [[1.0]] * 8),
                8,
            ),
            "w_down": weight(
                "compressed_tensors",
                words([[n] for n in (0x88888889, 0x88889888, 0x88887887, Z, Z, Z, Z, Z)]),
                bf16([[1.0]] * 8),
                8,
            ),
            "gate_weight": bf16(row(0.0, 128.0)),
        },
        lambda: {
            "h": bf16(
                [
                    row(128.0, -128.0, 0.0, 128.0) + row(2.0, 2.0, 2.0, -1.0),
                    row(256.0, -256.0, 0.0, 256.0) + row(4.0, 4.0, 4.0, -2.0),
                ]
            ),
            "a": bf16([row(256.0, -0.0, 0.0, -128.0), row(1024.0, -0.0, 0.0, -512.0)]),
            "y": bf16([row(256.0, -128.0, -128.0), row(1024.0, -512.0, -512.0)]),
            "out": bf16([row(256.0, -128.0, -128.0), row(512.0, -256.0, -256.0)]),
        },
        "gated before GEMM2, or took the gate of another token",
    ),
    # 1 - 2 + 3 - 4 + 5 - 6 + 7 - 8 = -4.
    Literal(
        "tiny_dot.by_hand",
        "tiny_dot/T2-K8/bf16/-/-/integers/s0",
        lambda: {
            "x": bf16([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], row()]),
            "w": bf16([1.0, -1.0] * 4),
            "sigmoid": False,
        },
        lambda: {"out": bf16([[-4.0], [0.0]])},
        "missed a lane",
        TINY_DOT,
    ),
    # sigmoid(0) = 1/2; sigmoid(1) = 0.73105858 = 187.15/256 -> 187/256; sigmoid(-1) = 0.26894142 = 137.7/512 -> 138.
    Literal(
        "tiny_dot.sigmoid",
        "tiny_dot/T3-K8/bf16/-/-/integers+sigmoid/s0",
        lambda: {"x": bf16([row(), row(1.0), row(-1.0)]), "w": bf16([1.0] * 8), "sigmoid": True},
        lambda: {"out": bf16([[0.5], [0.73046875], [0.26953125]])},
        "took the sigmoid of something rounded, or with the wrong sign",
        TINY_DOT,
    ),
]

INT8 = [
    # Scales 127/127 = 1 and 254/127 = 2; -63.5 -> -64, 0.5 -> 0 and 1.5 -> 2, all ties to even.
    Literal(
        "quantize_int8.ties",
        "quantize_int8/V2-K4-G-1/bf16/-/-/integers/s0",
        lambda: {"w": bf16([[127.0, -63.5, 0.5, 1.5], [254.0, -127.0, 1.0, 3.0]]), "group_size": -1},
        lambda: {"codes": int32([[127, -64, 0, 2], [127, -64, 0, 2]]).char(), "scale": fp32([1.0, 2.0])},
        "rounded ties away from zero, or divided by 128",
    ),
    # (3 - 256) * 0.5 + 1 = -125.5;  (5 + 14) * 2 - 1 = 37.
    Literal(
        "int8_lm_head.by_hand",
        "int8_lm_head/T1-V2-K2-G-1/bf16/-/-/integers+bias/s0",
        lambda: {
            "x": bf16([[1.0, 2.0]]),
            "codes": int32([[3, -128], [5, 7]]).char(),
            "scale": fp32([0.5, 2.0]),
            "bias": bf16([1.0, -1.0]),
        },
        lambda: {"out": bf16([[-125.5, 37.0]])},
        "negated -128 in int8, or added the bias before the scale",
        "int8_lm_head",
        {"group_size": -1},
    ),
]
