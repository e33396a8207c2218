"""Case: text and back, what the attributes mean, and one clear line for every mistake."""

import copy
import pickle

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS

TEXTS = [
    "unpack_int4/E3-N8-K64-G32/bf16/gptq-v1/-/codes16/s0",
    "unpack_int4/N8-K64-G-1/bf16/nibble_pairs-sym+pad3/-/normal/s0",
    "dequantize_int4/N8-K64-G32/fp16/awq-asym/-/subnormal/s1",
    "topk_softmax/T5-E8-k2/fp32/-/-+renorm/nonfinite/s2",
    "moe_align_block_size/T0-E8-k2-B16/-/-/ignored+ep2/-/s3",
    "moe_permute/T5-E8-k2-K17/bf16/-/repeat/normal+strided/s4",
    "moe_unpermute/T5-E8-k2-K17/fp16/-/zipf1/cancelling/s5",
    "int4_linear/T3-N8-K64-G16/bf16/compressed_tensors-asym/-/onehot+bias+strided/s6",
    "grouped_gemm/T5-E8-k2-N8-K64-G32/bf16/exllama-unpacked/hot16/stagnation/s7",
    "padded_gemm/T5-E8-k2-N8-K64-G32-B16/fp16/exllama-rdna+pad32/onehot+ep2+weight/integers/s8",
    "silu_and_mul/T5-I7/bf16/-/-/wide/s9",
    "moe_w4a16/T33-E8-k2-H256-I128-G32/bf16/exllama-sym/zipf1/normal/s18446744073709551615",
    "quantize_int8/V5-K64-G-1/fp32/-/-/integers/s11",
    "int8_lm_head/T5-V9-K64-G32/fp16/-/-/samesign+bias/s12",
    "shared_expert/T5-H64-I32-G32/bf16/exllama-rdna+pad3/-/sweep+gate+strided/s13",
    "tiny_dot/T5-K65/fp16/-/-/stagnation+sigmoid/s14",
    "grouped_topk/T5-E12-k3-g4-m2/fp32/-/-+renorm+sigmoid+bias+scaled/ties/s15",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trip(text: str) -> None:
    case = Case.parse(text)
    assert str(case) == text
    assert Case.parse(str(case)) == case
    assert hash(case) == hash(Case.parse(text))
    assert not set(text) & set(" *?[]{}()<>|&;$`'\"\\~!#")  # safe in a shell


def test_every_op_is_among_the_texts() -> None:
    assert {text.split("/")[0] for text in TEXTS} == set(OPS)


def test_order_and_repetition_in_the_text_do_not_matter() -> None:
    loose = "padded_gemm/B16-G32-K64-N8-k2-E8-T5/fp16/exllama-sym/uniform+weight+ep2/normal/s007"
    assert str(Case.parse(loose)) == "padded_gemm/T5-E8-k2-N8-K64-G32-B16/fp16/exllama-sym/uniform+ep2+weight/normal/s7"


def test_dimensions_are_attributes() -> None:
    case = Case.parse("moe_w4a16/T33-E8-k2-H256-I128-G-1/fp16/gptq-v2+pad32/zipf1/normal/s7")
    assert (case.T, case.E, case.k, case.H, case.I, case.G) == (33, 8, 2, 256, 128, -1)
    assert (case.K, case.N, case.R) == (256, 256, 66)
    assert case.torch_dtype is torch.float16
    assert (case.layout, case.zero, case.zero_layout, case.pad) == ("gptq", "v2", "gptq_v2", 32)
    assert case.weight_shapes() == {"w13": (256, 256), "w2": (256, 128)}
    assert Case.parse(TEXTS[4]).torch_dtype is None
    assert Case.parse(TEXTS[10]).R == 5


def test_a_missing_dimension_names_the_op() -> None:
    case = Case.parse("silu_and_mul/T5-I7/bf16/-/-/wide/s9")
    with pytest.raises(ValueError, match=r"case\.K: op 'silu_and_mul' has no dimension 'K'; it has T I"):
        _ = case.K
    assert getattr(case, "B", None) is None
    with pytest.raises(AttributeError, match="'Case' object has no attribute 'block'"):
        _ = case.block


def test_of_takes_the_plainest_values() -> None:
    case = Case.of("moe_w4a16", T=4, E=2, k=1, H=16, I=8, G=8)
    assert str(case) == "moe_w4a16/T4-E2-k1-H16-I8-G8/bf16/exllama-sym/uniform/normal/s0"
    assert (
        str(Case.of("moe_align_block_size", T=4, E=2, k=1, B=16))
        == "moe_align_block_size/T4-E2-k1-B16/-/-/uniform/-/s0"
    )


def test_replace_takes_fields_and_dimensions() -> None:
    case = Case.parse(TEXTS[8]).replace(T=0, seed=3, data="normal", flags={"strided"})
    assert str(case) == "grouped_gemm/T0-E8-k2-N8-K64-G32/bf16/exllama-unpacked/hot16/normal+strided/s3"
    with pytest.raises(ValueError, match="G = 48"):
        case.replace(G=48)


def test_a_case_survives_copy_and_pickle() -> None:
    case = Case.parse(TEXTS[9])
    assert copy.deepcopy(case) == case == pickle.loads(pickle.dumps(case))


GOOD = "moe_w4a16/T33-E8-k2-H256-I128-G32/bf16/exllama-sym/zipf1/normal/s7"
MISTAKES = [
    ("moe_w4a16/T33", "got 2 fields in 'moe_w4a16/T33', must be 7"),
    (GOOD.replace("moe_w4a16", "moe_w4a6"), "case op: got 'moe_w4a6'"),
    (GOOD.replace("moe_w4a16", "moe_w4a6"), "did you mean 'moe_w4a16'?"),
    (GOOD.replace("T33", "T33-"), "case dimensions: got 'T33--E8"),
    (GOOD.replace("T33", "T-1"), "got T = -1, must be at least 0"),
    (GOOD.replace("E8", "E0"), "got E = 0, must be at least 1"),
    (GOOD.replace("-G32", "-G0"), "got G = 0, must be -1 (one group) or at least 1"),
    (GOOD.replace("-G32", "-G-2"), "got G = -2, must be -1"),
    (GOOD.replace("-G32", ""), "got no G, moe_w4a16 must have T E k H I G"),
    (GOOD.replace("T33", "T33-T34"), "got T twice"),
    (GOOD.replace("T33", "T33-V3"), "case dimensions of moe_w4a16: got 'V', must be one of T, E, k, H, I, G"),
    (
        GOOD.replace("bf16", "bf17"),
        "case dtype of moe_w4a16: got 'bf17', must be one of bf16, fp16; did you mean 'bf16'?",
    ),
    (GOOD.replace("bf16", "fp32"), "case dtype of moe_w4a16: got 'fp32'"),
    (GOOD.replace("exllama", "exlama"), "did you mean 'exllama'?"),
    (GOOD.replace("exllama-sym", "exllama"), "case layout-zero: got 'exllama', must be LAYOUT-ZERO"),
    (GOOD.replace("exllama-sym", "-"), "case layout of moe_w4a16: got '-'"),
    (GOOD.replace("-sym", "-asym"), "case zero point of exllama: got 'asym'"),
    (GOOD.replace("sym", "sym+padx"), "got modifier 'padx', must be padN"),
    (GOOD.replace("zipf1", "zipf3"), "case routing of moe_w4a16: got 'zipf3'"),
    (GOOD.replace("zipf1", "zipf1+renorm"), "case routing modifier of moe_w4a16: got 'renorm', must be one of ep2"),
    (
        "moe_unpermute/T3-E4-k2-K8/bf16/-/zipf1+ep2/normal/s1",
        "case routing: got modifier 'ep2', moe_unpermute has none",
    ),
    (GOOD.replace("zipf1", "zipf1+ep2+epany"), "case routing: got ep2 and epany, must have one placement of experts"),
    (GOOD.replace("normal", "norml"), "did you mean 'normal'?"),
    (GOOD.replace("normal", "normal+bias"), "case data modifier of moe_w4a16: got 'bias', must be one of strided"),
    (GOOD.replace("s7", "7"), "case seed: got '7', must be s followed by a number"),
    (GOOD.replace("s7", "s18446744073709551616"), "must be 0..2^64-1"),
    (GOOD.replace("k2", "k9"), "got k = 9 with E = 8, must be at most E"),
    (GOOD.replace("I128", "I112"), "got G = 32 for w2, must divide its K = 112"),
    (
        GOOD.replace("H256", "H250").replace("G32", "G-1"),
        "got K = 250 for w13, must be a multiple of 8 in layout exllama",
    ),
    (
        GOOD.replace("exllama", "awq").replace("H256", "H36").replace("G32", "G-1"),
        "got N = 36 for w2, must be a multiple of 8",
    ),
    (
        GOOD.replace("-sym", "-rdna").replace("I128", "I124").replace("G32", "G4"),
        "K = 124 for w2, must be a multiple of 8",
    ),
    (
        "int4_linear/T3-N9-K64-G16/bf16/compressed_tensors-asym/-/normal/s6",
        "got N = 9 for w, must be a multiple of 8 for zero",
    ),
    (
        "int4_linear/T3-N9-K64-G16/bf16/nibble_pairs-asym/-/normal/s6",
        "got N = 9 for w, must be a multiple of 2 for zero",
    ),
    ("int4_linear/T3-N9-K63-G-1/bf16/nibble_pairs-sym/-/normal/s6", "got K = 63 for w, must be a multiple of 2"),
    ("int8_lm_head/T3-V9-K63-G16/bf16/-/-/normal/s6", "got G = 16 for codes, must divide its K = 63"),
    (
        "silu_and_mul/T3-I9/bf16/exllama-sym/-/normal/s6",
        "case layout of silu_and_mul: got 'exllama-sym', must be one of -",
    ),
    ("silu_and_mul/T3-I9/bf16/-+pad3/-/normal/s6", "got pad3, but silu_and_mul reads no int4 weight"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_get_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="case") as raised:
        Case.parse(text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_repeated_ids_allow_more_choices_than_experts() -> None:
    assert Case.parse(GOOD.replace("k2", "k9").replace("zipf1", "repeat")).k == 9


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 71.5 GiB"), RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")]
)
def test_a_case_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*args: object) -> None:
        raise error

    monkeypatch.setattr(type(OPS["int4_linear"]), "build", full)
    case = Case.parse("int4_linear/T5-N64-K96-G32/bf16/exllama-sym/-/normal/s1")
    with pytest.raises(ValueError, match=rf"case: {case} is too large for the memory here"):
        case.build()
    error.args = ("something else",)
    with pytest.raises(ValueError if isinstance(error, MemoryError) else RuntimeError):
        case.build()
