"""Cases worked by hand, for every op: inputs and outputs are the literals you read here.

Each can be followed with pencil and paper; the arithmetic is beside it. `moeracle golden verify` asks the derivation
and the reference op for the same bytes. To add one, append a Literal and run `moeracle golden regen --accept REASON`.
"""

from __future__ import annotations

from .literal_data import Literal, bf16, fp16, fp32, int32, octets, weight, words

COUNT = [0, 1, 2, 3, 4, 5, 6, 7]
DOWN = [15, 14, 13, 12, 11, 10, 9, 8]
ONES = bf16([[1.0], [1.0]])

UNPACK = [
    # Columns 0..7 at shifts 0, 16, 4, 20, 8, 24, 12, 28: the even codes in the low half, the odd ones in the high half.
    Literal(
        "unpack_int4.exllama",
        "unpack_int4/N2-K8-G8/bf16/exllama-sym/-/normal/s0",
        lambda: {"w": weight("exllama", words([[0x75316420], [0x8ACE9BDF]]), ONES, 8)},
        lambda: {"out": octets([COUNT, DOWN])},
        "took the columns in sequence, or let the sign bit of column 7 spread",
    ),
    Literal(
        "unpack_int4.compressed_tensors",
        "unpack_int4/N2-K8-G8/bf16/compressed_tensors-sym/-/normal/s0",
        lambda: {"w": weight("compressed_tensors", words([[0x76543210], [0x89ABCDEF]]), ONES, 8)},
        lambda: {"out": octets([COUNT, DOWN])},
        "took the columns interleaved",
    ),
    # One word holds eight columns of one row; the rows lie side by side.
    Literal(
        "unpack_int4.gptq",
        "unpack_int4/N2-K8-G8/bf16/gptq-sym/-/normal/s0",
        lambda: {"w": weight("gptq", words([[0x76543210, 0x89ABCDEF]]), ONES, 8)},
        lambda: {"out": octets([COUNT, DOWN])},
        "read [K/8, N] as [N, K/8]",
    ),
    # One word holds eight rows of one column, interleaved: word 0 is column 0, codes 0..7; word 1 column 1, 15..8.
    Literal(
        "unpack_int4.awq",
        "unpack_int4/N8-K2-G2/bf16/awq-sym/-/normal/s0",
        lambda: {"w": weight("awq", words([[0x75316420], [0x8ACE9BDF]]), bf16([[1.0]] * 8), 2)},
        lambda: {"out": octets([[0, 15], [1, 14], [2, 13], [3, 12], [4, 11], [5, 10], [6, 9], [7, 8]])},
        "took the rows in sequence, or N for K",
    ),
    Literal(
        "unpack_int4.nibble_pairs",
        "unpack_int4/N2-K8-G8/bf16/nibble_pairs-sym/-/normal/s0",
        lambda: {"w": weight("nibble_pairs", octets([[0x10, 0x32, 0x54, 0x76], [0xEF, 0xCD, 0xAB, 0x89]]), ONES, 8)},
        lambda: {"out": octets([COUNT, DOWN])},
        "swapped the nibbles of a byte",
    ),
]

DEQUANTIZE = [
    # (u-8) * (1 + 2^-7) in bf16, which between 4 and 8 has steps of 1/32: 7.0546875 = 225.75/32 -> 226/32 = 7.0625;
    # 6.046875 = 193.5/32, a tie -> 194/32 = 6.0625; 5.0390625 = 161.25/32 -> 161/32. Between 2 and 4, steps of 1/64:
    # 3.0234375 = 193.5/64, a tie -> 194/64 = 3.03125. Powers of two times the scale are exact.
    Literal(
        "dequantize_int4.rounding",
        "dequantize_int4/N1-K8-G8/bf16/compressed_tensors-sym/-/normal/s0",
        lambda: {"w": weight("compressed_tensors", words([[0x02589DEF]]), bf16([[1.0078125]]), 8)},
        lambda: {"out": bf16([[7.0625, 6.0625, 5.03125, 1.0078125, 0.0, -3.03125, -6.0625, -8.0625]])},
        "truncated instead of rounding, or sent a tie away from even",
    ),
    # Zero points 3 and 12 for two groups of 4 columns: (u-3)*0.5, then (u-12)*2.
    Literal(
        "dequantize_int4.zero_points",
        "dequantize_int4/N2-K8-G4/fp16/compressed_tensors-unpacked/-/normal/s0",
        lambda: {
            "w": weight(
                "compressed_tensors",
                words([[0x76543210], [0x89ABCDEF]]),
                fp16([[0.5, 2.0], [0.5, 2.0]]),
                4,
                octets([[3, 12], [3, 12]]),
            )
        },
        lambda: {
            "out": fp16(
                [[-1.5, -1.0, -0.5, 0.0, -16.0, -14.0, -12.0, -10.0], [6.0, 5.5, 5.0, 4.5, -2.0, -4.0, -6.0, -8.0]]
            )
        },
        "took one group's scale or zero point for the other's",
    ),
    # The smallest subnormal of fp16 is 2^-24: codes times it are subnormals, none is lost.
    Literal(
        "dequantize_int4.subnormal",
        "dequantize_int4/N1-K8-G8/fp16/compressed_tensors-sym/-/normal/s0",
        lambda: {"w": weight("compressed_tensors", words([[0x0F9A8761]]), fp16([[2.0**-24]]), 8)},
        lambda: {"out": fp16([[n * 2.0**-24 for n in (-7, -2, -1, 0, 2, 1, 7, -8)]])},
        "flushed subnormals to zero",
    ),
]

ROUTING = [
    # All equal: 1/4 each, the lowest ids win. Two of four at -inf: 1/2 each for the others. One NaN: nothing is known.
    Literal(
        "topk_softmax.ties",
        "topk_softmax/T3-E4-k2/fp32/-/-/ties/s0",
        lambda: {
            "logits": fp32([[3.0] * 4, [-float("inf"), 1.0, -float("inf"), 1.0], [0.0, float("nan"), 9.0, 9.0]]),
            "top_k": 2,
            "renormalize": False,
        },
        lambda: {"weights": fp32([[0.25, 0.25], [0.5, 0.5], [0.0, 0.0]]), "ids": int32([[0, 1], [1, 3], [0, 1]])},
        "broke ties at random, or let a NaN choose",
    ),
    # The two weights 1/4 become 1/2 each; scores that are all zero stay zero: their sum counts as 1.
    Literal(
        "topk_softmax.renormalized",
        "topk_softmax/T2-E4-k2/bf16/-/-+renorm/ties/s0",
        lambda: {"logits": bf16([[3.0] * 4, [-float("inf")] * 4]), "top_k": 2, "renormalize": True},
        lambda: {"weights": fp32([[0.5, 0.5], [0.0, 0.0]]), "ids": int32([[0, 1], [0, 1]])},
        "divided 0 by 0",
    ),
    # Slots of expert 0: 0, 5; of expert 2: 1, 2, 4; slot 3 is ignored and expert 1 is empty. Blocks of 2, 6 is padding.
    Literal(
        "moe_align_block_size.by_hand",
        "moe_align_block_size/T3-E3-k2-B2/-/-/ignored/-/s0",
        lambda: {"topk_ids": int32([[0, 2], [2, -1], [2, 0]]), "block_size": 2, "num_experts": 3, "expert_map": None},
        lambda: {
            "sorted_token_ids": int32([0, 5, 1, 2, 4, 6, 6, 6, 6]),
            "expert_ids": int32([0, 2, 2, -1, -1]),
            "num_tokens_post_padded": int32([6]),
        },
        "gave the empty expert a block, or the ignored slot a place",
    ),
    # Row r of the result is the token of the slot with inv = r; the ignored slot 3 comes last.
    Literal(
        "moe_permute.by_hand",
        "moe_permute/T3-E3-k2-K2/bf16/-/ignored/normal/s0",
        lambda: {
            "x": bf16([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
            "topk_ids": int32([[0, 2], [2, -1], [2, 0]]),
            "num_experts": 3,
            "expert_map": None,
        },
        lambda: {
            "x_permuted": bf16([[1.0, 2.0], [5.0, 6.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [3.0, 4.0]]),
            "expert_offsets": int32([0, 2, 2, 5]).long(),
            "inv": int32([0, 2, 3, 5, 4, 1]),
        },
        "lost the order of the slots, or put the ignored row among the others",
    ),
    # out = 0.5 * y[1] + 0.25 * y[0] = [1, 3] + [1, 2]; then 1 * y[3] + 2^-8 * y[2] = 1 + 2^-8, a tie -> 1 (even).
    Literal(
        "moe_unpermute.by_hand",
        "moe_unpermute/T2-E2-k2-K2/bf16/-/uniform/normal/s0",
        lambda: {
            "y": bf16([[4.0, 8.0], [2.0, 6.0], [1.0, 3.0], [1.0, 1.0]]),
            "topk_weights": fp32([[0.5, 0.25], [1.0, 0.00390625]]),
            "inv": int32([1, 0, 3, 2]),
        },
        lambda: {"out": bf16([[2.0, 5.0], [1.0, 1.015625]])},
        "took slots for rows, or rounded 1 + 3/256 = 1.01171875 (a tie) to 1.0078125",
    ),
]
