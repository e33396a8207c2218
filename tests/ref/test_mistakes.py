"""What a reference refuses, in its own words, and the smallest and largest inputs that it must not refuse."""

import pytest
import torch

from moeracle.ref import (
    Int4Weight,
    block_table,
    dequantize_int4,
    grouped_gemm,
    int4_linear,
    moe_align_block_size,
    moe_permute,
    moe_unpermute,
    moe_w4a16,
    pack_int4,
    padded_gemm,
    silu_and_mul,
)
from moeracle.ref.contracts.contract import PRESETS, contract
from moeracle.ref.ops.padded_gemm import infer_block_size, padded_rows

BF16 = torch.bfloat16


def weight(*shape, G=16):
    codes = torch.full(shape, 9, dtype=torch.uint8)
    scale = torch.ones(*shape[:-1], shape[-1] // G).to(BF16)
    return Int4Weight(pack_int4(codes, "exllama"), scale, None, "exllama", G)


def x(*shape):
    return torch.ones(*shape).to(BF16)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def refused(message):
    return pytest.raises(ValueError, match="^" + message)


def test_gemm_refuses_x_of_other_columns_or_dimensions():
    w = weight(16, 32)
    for shape in ((2, 16), (32,), (1, 2, 32), (32, 16)):
        with refused(rf"x: got shape \({', '.join(map(str, shape))},?\), must be \[rows, K=32\]"):
            int4_linear(x(*shape), w)
    assert int4_linear(x(2, 32), w).tolist() == [[32.0] * 16] * 2


def test_grouped_gemm_refuses_other_offsets_and_a_lone_matrix():
    with refused(r"w: got shape \(16, 32\), must be \[E, N, K\]"):
        grouped_gemm(x(2, 32), weight(16, 32), torch.tensor([0, 2]))
    with refused(r"expert_offsets: got shape \(3,\), must be \[E\+1=4\]"):
        grouped_gemm(x(2, 32), weight(3, 16, 32), torch.tensor([0, 1, 2]))


def test_padded_rows_ends_where_the_padding_ends_whatever_lies_beyond():
    rows = padded_rows(ints(0, 2, 4, 4, 1, 3), ints(1, 2, 0), ints(4), 4, 2)
    assert [(e, r.tolist()) for e, r in rows] == [(1, [0, 2])]
    rows = padded_rows(ints(0, 2, 1, 3, 1, 3), ints(1, 2, 0), ints(4), 4, 2)
    assert [(e, r.tolist()) for e, r in rows] == [(1, [0, 2]), (2, [1, 3])]


def test_the_block_size_of_one_block_of_none_and_of_several_that_fit():
    assert infer_block_size(0, 0, 0, 4, 0) == infer_block_size(5, 0, 3, 4, 0) == 1
    assert infer_block_size(8, 1, 1, 1, 8) == 8  # one id and one expert: one block of eight
    assert infer_block_size(40, 5, 12, 4, 24) == 8  # 12 + 4 * 7
    assert infer_block_size(67, 9, 11, 3, 24) == 8  # of 7 experts, 3 of them here: only a power of two fits
    assert infer_block_size(17, 3, 3, 1, 24) == 8  # 6 and 8 fit
    assert infer_block_size(25, 3, 3, 2, 36) == 12  # 9 and 12 fit: 25 is 3 + 2 * 11
    with refused("block_size: got None, must be given, since 9 sorted ids in 5 blocks fit no size"):
        infer_block_size(9, 5, 2, 3, 7)
    ids = moe_align_block_size(ints(0, 1, 1)[None], 4, 2)
    for told in (None, 4):
        y = padded_gemm(x(1, 32), weight(2, 16, 32), *ids, None, 3, block_size=told)
        assert y.tolist() == [[32.0] * 16] * 3


def layer(T=2, E=3, k=2, H=32, I=16):
    return [x(T, H), weight(E, 2 * I, H), weight(E, H, I), torch.ones(T, k), torch.zeros(T, k, dtype=torch.int32)]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, x(32), r"x: got shape \(32,\), must be \[T, H\]"),
        (1, weight(3, 32, 16), r"w13: got shape \(3, 32, 16\), must be \[E, 2I, H=32\]"),
        (1, weight(3, 32, 64), r"w13: got shape \(3, 32, 64\), must be"),
        (1, weight(32, 32), r"w13: got shape \(32, 32\), must be"),
        (2, weight(3, 32, 32), r"w2: got shape \(3, 32, 32\), must be \[E=3, H=32, I=16\]"),
        (2, weight(4, 32, 16), r"w2: got shape \(4, 32, 16\), must be"),
        (2, weight(2, 32, 16), r"w2: got shape \(2, 32, 16\), must be"),
        (4, ints(0, 1), r"topk_ids: got shape \(2,\), must be \[T=2, k\]"),
        (4, torch.zeros(3, 2, dtype=torch.int32), r"topk_ids: got shape \(3, 2\), must be"),
        (3, torch.ones(2, 1), r"topk_weights: got shape \(2, 1\), must be topk_ids' \(2, 2\)"),
        (4, ints(0, 3, 1, 1).reshape(2, 2), r"topk_ids: got ids from 0 to 3, must be in -1..2"),
        (4, ints(0, 9, 1, 1).reshape(2, 2), r"topk_ids: got ids from 0 to 9, must be in -1..2"),
        (4, ints(0, -2, 1, 1).reshape(2, 2), r"topk_ids: got ids from -2 to 1, must be in -1..2"),
    ],
)
def test_a_layer_refuses_what_does_not_fit(place, value, message):
    args = layer()
    args[place] = value
    with refused(message):
        moe_w4a16(*args)


def test_a_layer_takes_many_tokens_and_one():
    for T in (1, 300):  # 300: an int that is no singleton
        assert moe_w4a16(*layer(T=T)).shape == (T, 32)


def test_silu_and_mul_refuses_odd_columns_and_other_dimensions():
    for shape in ((2, 5), (4,), (2, 2, 4)):
        with refused(r"h: got shape .*, must be \[R, 2I\]"):
            silu_and_mul(x(*shape))


def test_no_columns_are_dequantized_to_no_columns():
    empty = dequantize_int4(torch.zeros(2, 0, dtype=torch.uint8), torch.zeros(2, 0).to(BF16))
    assert empty.shape == (2, 0)


def test_align_takes_one_expert_and_names_the_wrong_id():
    assert moe_align_block_size(ints(0, 0)[:, None], 2, 1)[0].tolist() == [0, 1, 2]
    for ids, wrong in (([-1, 4], 4), ([-2, 0], -2), ([0, 3], 3)):
        with refused(rf"topk_ids: got id {wrong}, must be -1 \(ignored\) or 0..2"):
            moe_align_block_size(ints(*ids)[None], 2, 3)
    with refused("num_experts: got 0, must be at least 1"):
        moe_align_block_size(ints(0)[None], 2, 0)


def test_contracts_defaults_and_none():
    with_atomics = {"moe_wna16", "vllm@0.33:moe_wna16", "vllm@0.33:gptq_gemm", "vllm@0.33:moe_gemm_rdna3"}
    assert {name for name, preset in PRESETS.items() if not preset.deterministic} == with_atomics
    assert contract("grouped,depth=none").depth is None
    assert contract("grouped,schedule=none").schedule is None
    for text in ("zebra", "-1", "1.5"):
        with refused(f"depth: got '{text}', must be a whole number"):
            contract(f"grouped,depth={text}")
    assert not contract("grouped,ftz=false").ftz


def test_unpermute_and_block_table_say_what_they_needed():
    inv, ones = torch.arange(6), torch.ones(3, 2)
    with refused(r"y: got shape \(5, 4\), must be \[T\*k = 6, K\]"):
        moe_unpermute(x(5, 4), ones, inv)
    with refused("inv: got a repeated or missing row, must be a permutation of 0..5$"):
        moe_unpermute(x(6, 4), ones, inv.clamp(max=4))
    for offsets in (torch.zeros(1, 2, dtype=torch.int64), torch.zeros(3), torch.zeros(0, dtype=torch.int64)):
        with refused(r"expert_offsets: got .*, must be integer \[E\+1\]"):
            block_table(offsets, 4)
    assert moe_permute(x(3, 4), ints(0, 0, 0)[:, None], 1)[1].tolist() == [0, 3]
