"""What the HIP ops refuse, each in one line that names the argument, what it was and what it must be."""

from __future__ import annotations

import json
import re

import pytest
import torch

from moeracle import Case
from moeracle.kernels.hip.common import KNOBS_FILE, knobs_for, lds_bytes, refusal
from moeracle.kernels.hip.int4_linear import int4_linear
from moeracle.kernels.hip.int8_lm_head import int8_lm_head
from moeracle.kernels.hip.moe_w4a16 import decode_stages, fused_stages, gemm2_reduce, silu_and_mul
from moeracle.kernels.hip.padded_gemm import padded_gemm
from moeracle.kernels.hip.shared_expert import dense_gemv


def args_of(text: str) -> list:
    return list(Case.parse(text).build().args.values())


def refused(pattern: str, call, *args, **options) -> None:
    with pytest.raises(ValueError, match=pattern) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    assert re.match(r"\w+(, \w+)*: got ", str(caught.value)), str(caught.value)


def test_rows_over_5() -> None:
    six = args_of("int4_linear/T6-N16-K64-G32/bf16/exllama-sym/-/normal/s1")
    refused(r"x: got 6 rows, must be 1 to 5", int4_linear, *six)
    refused(r"x: got 6 rows", int8_lm_head, *args_of("int8_lm_head/T6-V16-K64-G32/bf16/-/-/normal/s1"))
    refused(r"x: got 6 rows", dense_gemv, six[0], six[0])
    layer = args_of("moe_w4a16/T6-E4-k2-H64-I64-G32/bf16/exllama-sym/uniform/normal/s1")
    for stages in (decode_stages, fused_stages):
        refused(r"x: got 6 rows, must be 1 to 5", stages, *layer)
    routed = args_of("padded_gemm/T6-E4-k2-N16-K64-G32-B8/bf16/exllama-sym/uniform/normal/s1")
    refused(r"x: got 8 rows", padded_gemm, *routed)


def test_k_over_the_lds_budget() -> None:
    assert knobs_for("int4_gemv", 1, 32768, 128)
    assert knobs_for("int4_gemv", 4, 8192, 128)
    refused(r"K: got 8192 with 5 rows, must be at most 6553 \(64 KB of LDS", knobs_for, "int4_gemv", 5, 8192, 128)
    refused(r"K: got 32896 with 1 rows, must be at most 32768", knobs_for, "moe_gemv", 1, 32896, 128)
    refused(r"K: got 32768 with 1 rows", knobs_for, "moe_gemm2_reduce", 1, 32768, 128, 8192)
    x = torch.zeros(1, 32784, dtype=torch.bfloat16)
    refused(r"K: got 32784", dense_gemv, x, x)


def test_groups_that_chunks_straddle() -> None:
    refused(
        r"G: got 8, must be a multiple of A_CHUNK = 16",
        int4_linear,
        *args_of("int4_linear/T1-N16-K64-G8/bf16/exllama-sym/-/normal/s1"),
    )
    refused(r"G: got 16, must be a multiple of A_CHUNK = 32", knobs_for, "moe_wmma", 16, 64, 16)
    refused(r"G: got 48, must be a power of two, or K = 96", knobs_for, "int4_gemv", 1, 96, 48)
    assert refusal("int4_gemv", 1, 96, 96) is True
    assert refusal("int4_gemv", 1, 96, 48) == "G: got 48, must be a power of two, or K = 96 for one group a row"


def test_shapes_dtypes_and_names() -> None:
    x, w, bias = args_of("int4_linear/T1-N16-K64-G32/bf16/exllama-sym/-/normal+bias/s1")
    refused(r"bias: got torch.float32", int4_linear, x, w, bias.float())
    refused(r"decode: got 'trunc'.*truncate", int4_linear, x, w, decode="trunc")
    refused(r"x: got shape \(1, 32\)", int4_linear, x[:, :32], w)
    half = args_of("int4_linear/T1-N16-K64-G32/fp16/exllama-sym/-/normal/s1")
    refused(r"decode: got 'sum' for fp16", int4_linear, *half, decode="sum")
    refused(r"epilogue: got 'gelu'", dense_gemv, x, x, epilogue="gelu")
    refused(r"gate_x, gate_weight: got None", dense_gemv, x, x, epilogue="gate_mul")
    refused(r"w: got 3 rows, must be even", dense_gemv, x, x.repeat(3, 1), epilogue="silu_mul")
    head = args_of("int8_lm_head/T1-V16-K64-G32/bf16/-/-/normal/s1")
    refused(r"scale: got torch.bfloat16", int8_lm_head, head[0], head[1], head[2].bfloat16())
    refused(r"codes: got torch.uint8", int8_lm_head, head[0], head[1].view(torch.uint8), head[2])
    routed = args_of("padded_gemm/T2-E4-k2-N16-K64-G32-B2/bf16/exllama-sym/uniform/normal/s1")
    refused(r"out: got torch.float64", padded_gemm, *routed, out=torch.empty(4, 16, dtype=torch.float64))
    layer = args_of("moe_w4a16/T1-E80-k70-H64-I64-G32/bf16/exllama-sym/uniform/normal/s1")
    a = torch.zeros(70, 64, dtype=torch.bfloat16)
    refused(r"topk_ids: got k = 70, must be at most 64", gemm2_reduce, a, layer[2], layer[3], layer[4])


def test_nothing_to_do_launches_nothing() -> None:
    for text, call in (
        ("int4_linear/T0-N16-K64-G32/bf16/exllama-sym/-/normal/s1", int4_linear),
        ("int8_lm_head/T0-V16-K64-G32/fp16/-/-/normal/s1", int8_lm_head),
        ("padded_gemm/T0-E4-k2-N16-K64-G32-B2/bf16/exllama-sym/uniform/normal/s1", padded_gemm),
    ):
        assert call(*args_of(text)).shape == (0, 16)
    assert silu_and_mul(torch.zeros(0, 8, dtype=torch.bfloat16)).shape == (0, 4)
    assert decode_stages(*args_of("moe_w4a16/T0-E4-k2-H64-I32-G32/bf16/exllama-sym/uniform/normal/s1"))[
        "out"
    ].shape == (0, 64)


def test_every_rule_of_the_data_file_says_why_and_is_reached() -> None:
    rules = {name: of for name, of in json.loads(KNOBS_FILE.read_text()).items() if name != "about"}
    for name, of in rules.items():
        for rule in of:
            assert rule["why"], name
            low, high = rule["rows"]
            K = max(rule["K"][0], 32)
            K += -K % 32
            G = 32 if rule.get("group", 1) > 1 or name == "moe_wmma" else 16
            if name == "moe_gemm2_reduce" and G == 16:
                assert rule is of[-1]
            for r in range(low, high + 1):
                found = knobs_for(name, r, K, G)
                assert found.pop("UNRL", 0) <= rule["knobs"].get("UNRL", 0)
                assert found == {knob: n for knob, n in rule["knobs"].items() if knob != "UNRL"}, (name, rule)
    assert knobs_for("moe_gemm2_reduce", 1, 512, 32)["A_CHUNK"] == 32
    assert knobs_for("moe_gemm2_reduce", 1, 512, 16)["A_CHUNK"] == 16
    small = knobs_for("moe_gemv", 1, 768, 32)
    assert (small["YTILE"], small["WAVES"], small["A_CHUNK"], small["UNRL"]) == (2, 16, 16, 2)  # published: 113 VGPRs


def test_unroll_leaves_the_fewest_steps_empty_and_zeros_lie_where_one_is_not_whole() -> None:
    for K, unroll, zeros in (
        (512, 1, 0),
        (528, 2, 32),
        (1024, 2, 0),
        (1536, 3, 0),
        (2048, 4, 0),
        (2560, 3, 32),
        (4096, 4, 0),
    ):
        knobs = knobs_for("dense_gemv", 1, K, K)
        assert (knobs["UNRL"], lds_bytes(1, K, knobs) - 2 * K) == (unroll, zeros), K
