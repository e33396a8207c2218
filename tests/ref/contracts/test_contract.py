"""Contracts: presets by name, overrides in text, and one line for each mistake."""

import pytest

from moeracle.ref.contracts.contract import PRESETS, Contract, contract


def test_presets_are_those_of_formats():
    assert set(PRESETS) >= {
        "gptq_awq",
        "hybrid",
        "grouped",
        "wvsplitk",
        "megakernel",
        "wmma",
        "moe_wna16",
        "marlin",
        "et_vecmat",
        "et_batched",
    }
    assert all(name == preset.name for name, preset in PRESETS.items())


def test_marlin_and_gptq_awq_differ_where_the_router_weight_is_rounded():
    assert contract("marlin").differences(contract("gptq_awq")) == [
        "router_weight: gemm2_dtype, gemm2",
        "topk_sum: fp32, vllm",
    ]


def test_overrides():
    rules = contract("grouped, accumulator=rdna, depth=64, stores=h+out, ftz=true")
    assert (rules.accumulator, rules.depth, rules.stores, rules.ftz) == ("rdna", 64, ("h", "out"), True)
    assert rules.name == "grouped,accumulator=rdna,depth=64,stores=h+out,ftz=true"
    assert contract(rules) is rules


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("groupd", r"contract: got 'groupd', must be one of .*; did you mean 'grouped'\?"),
        ("grouped,acumulator=rdna", r"contract field: got 'acumulator'.*did you mean 'accumulator'"),
        ("grouped,accumulator=rdna3", r"accumulator: got 'rdna3'.*did you mean 'rdna'"),
        ("grouped,depth=deep", r"depth: got 'deep', must be a whole number"),
        ("grouped,depth=²", r"depth: got '²', must be a whole number"),
        ("grouped,depth=0", r"depth: got 0, must be 1 to "),
        ("grouped,stores=h", r"stores: got \('h',\), must hold 'out'"),
        ("grouped,stores=b+out", r"stores: got 'b', must be one of h, a, y, out"),
        ("grouped,ftz=1", r"ftz: got '1', must be true or false"),
        ("grouped,ftz", r"contract: got 'ftz', must be field=value"),
        ("grouped,depth=1,depth=2", r"contract: got depth twice, must be said once"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(ValueError, match="^" + message):
        contract(text)


def test_vllm_sums_in_dtype_for_two_to_four():
    rules = Contract("c", topk_sum="vllm")
    assert [k for k in range(1, 10) if rules.sum_in_dtype(k)] == [2, 3, 4]
