"""Each registered kernel loads, takes the op's arguments in their order, and names its op and zero points rightly."""

from __future__ import annotations

import importlib.util
import inspect

import pytest

from moeracle.kernels.registry import REGISTRY

ARGUMENTS = {
    "unpack_int4": ["w"],
    "dequantize_int4": ["w"],
    "topk_softmax": ["logits", "top_k", "renormalize"],
    "grouped_topk": [
        "logits",
        "correction_bias",
        "num_groups",
        "topk_group",
        "top_k",
        "scoring",
        "renormalize",
        "routed_scaling_factor",
    ],
    "moe_align_block_size": ["topk_ids", "block_size", "num_experts", "expert_map"],
    "moe_permute": ["x", "topk_ids", "num_experts", "expert_map"],
    "moe_unpermute": ["y", "topk_weights", "inv"],
    "int4_linear": ["x", "w", "bias"],
    "grouped_gemm": ["x", "w", "expert_offsets"],
    "padded_gemm": ["x", "w", "sorted_token_ids", "expert_ids", "num_tokens_post_padded", "topk_weights", "top_k"],
    "silu_and_mul": ["h"],
    "int8_lm_head": ["x", "codes", "scale", "bias"],
    "shared_expert": ["x", "w_gate_up", "w_down", "gate_weight"],
    "tiny_dot": ["x", "w", "sigmoid"],
    "moe_w4a16": ["x", "w13", "w2", "topk_weights", "topk_ids"],
}


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")
@pytest.mark.parametrize("entry", REGISTRY, ids=lambda e: e.name)
def test_entry(entry):
    parameters = inspect.signature(entry.load()).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ARGUMENTS[entry.op]
    assert (entry.layout == "exllama") == ("rdna" in entry.zeros)
    assert entry.device in ("cpu", "cuda")


def test_names_are_unique_and_every_path_of_the_layer_is_there():
    names = [entry.name for entry in REGISTRY]
    assert len(set(names)) == len(names)
    assert {f"moe_w4a16.{path}" for path in ("grouped", "padded", "decode")} <= set(names)


def test_decode_says_why_it_refuses_many_tokens():
    decode = next(entry for entry in REGISTRY if entry.name == "moe_w4a16.decode")
    case = lambda T: type("Case", (), {"T": T})()
    assert decode.supports(case(16)) is True
    assert "T <= 16" in decode.supports(case(17))
