"""The same text gives the same bits on every machine, torch and numpy: digests of built cases, pinned.

A digest that changes means that every recorded replay token now names another problem. Do not just paste the new one.
"""

import hashlib

import pytest
import torch

from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.cases.optable import GEMM_DATA
from moeracle.ref.weights.weight import Int4Weight


def tensors(problem: Problem) -> dict[str, torch.Tensor]:
    """Every tensor of the arguments, a weight's parts separately."""
    found = {}
    for name, value in problem.args.items():
        if isinstance(value, Int4Weight):
            found |= {f"{name}.packed": value.packed, f"{name}.scale": value.scale}
            found |= {f"{name}.zero": value.zero} if value.zero is not None else {}
        elif isinstance(value, torch.Tensor):
            found[name] = value
    return found


def digest(*texts: str) -> str:
    """sha256 over names, dtypes, shapes and bytes, shortened."""
    total = hashlib.sha256()
    for text in texts:
        for name, tensor in tensors(Case.parse(text).build()).items():
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:24]


PINNED = {
    "moe_w4a16/T9-E8-k2-H64-I32-G32/bf16/exllama-sym/zipf1/normal/s7": "e7b146b4a9e680031d01419e",
    "moe_w4a16/T9-E8-k3-H64-I40-G8/fp16/awq-asym+pad32/hot16/wide/s1": "ccb11d0a15855084c0845a6b",
    "moe_w4a16/T4-E5-k2-H64-I32-G-1/bf16/gptq-v1/ignored/integers/s2": "f95953287686b1e806fed236",
    "grouped_gemm/T9-E6-k2-N16-K64-G32/fp16/compressed_tensors-asym/zipf2+ep2/outliers/s3": "441ff3ccec3c74fd860f9e4e",
    "padded_gemm/T9-E6-k2-N16-K64-G32-B16/bf16/exllama-rdna/onehot+weight/cancelling/s4": "fdb66c19b71ff795be1a8e29",
    "unpack_int4/E3-N6-K26-G13/bf16/nibble_pairs-asym/-/codes16/s5": "72af55a226c6eef38465ddb1",
    "dequantize_int4/N8-K64-G32/fp16/gptq-v2/-/subnormal/s6": "bbbefa1cc4c9b945098eadf3",
    "topk_softmax/T13-E16-k4/bf16/-/-/nonfinite/s7": "b3dea4e4188b1b56a31af90b",
    "topk_softmax/T13-E16-k4/fp32/-/-/normal/s8": "701de423f36bbd911ff42363",
    "grouped_topk/T13-E16-k4-g4-m2/bf16/-/-+bias/normal/s18": "68067abc90c84f0a5b05c8d8",
    "moe_align_block_size/T19-E8-k2-B16/-/-/repeat/-/s9": "19beb9ae41ef67fad6d51a3e",
    "moe_permute/T9-E8-k2-K17/fp16/-/empty/subnormal/s10": "99ea5d09478a0a9ea80b2d5e",
    "moe_unpermute/T9-E8-k3-K17/bf16/-/uniform/cancelling/s11": "8f96509e89b4cff7aa2931bd",
    "silu_and_mul/T9-I33/bf16/-/-/wide/s12": "d5d6830690eb1bba4703ba29",
    "silu_and_mul/T9-I33/fp16/-/-/subnormal/s13": "7505a2a58382f63c84b56237",
    "quantize_int8/V9-K64-G16/fp16/-/-/integers/s14": "a030a7e7c0322afd0c32256b",
    "quantize_int8/V9-K64-G-1/fp32/-/-/normal/s15": "992a3b376457b93f0469fd54",
    "int8_lm_head/T3-V9-K64-G32/fp16/-/-/stagnation+bias/s16": "84b37c74b2da63a02dda8b37",
    "int8_lm_head/T3-V9-K64-G-1/bf16/-/-/subnormal/s17": "5b8795ebb4afdcd4560f0b81",
}
PINNED_RECIPES = {
    "normal": "2d837ad26f18f9f6af59408b",
    "outliers": "2a30c9313ca23fd9e12b01aa",
    "cancelling": "afbd53795208400cac182f7e",
    "wide": "e68fff82e857ac80e08b16f5",
    "subnormal": "97a51825f8e09aac9c34bd87",
    "codes16": "b405a506d84536d3f5321204",
    "integers": "bab4ff3f8d3e05ad293dbf0a",
    "onehot": "299fd9a7614d344740c0ff55",
    "samesign": "d096721d5d8ffe76c1546467",
    "stagnation": "103cf90c4208345248d1632e",
}


@pytest.mark.parametrize("text", PINNED)
def test_the_same_text_gives_the_same_bits_everywhere(text: str) -> None:
    assert digest(text) == PINNED[text]


@pytest.mark.parametrize("data", GEMM_DATA)
def test_every_recipe_gives_the_same_bits_everywhere(data: str) -> None:
    texts = [
        f"int4_linear/T5-N16-K64-G32/{dtype}/exllama-unpacked/-/{data}+bias/s{seed}"
        for seed in range(3)
        for dtype in ("bf16", "fp16")
    ]
    assert digest(*texts) == PINNED_RECIPES[data]
