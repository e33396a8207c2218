"""What cannot be judged is refused in one line that says what was given and what fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from moeracle import Case, NotJudged, assert_legal, judge_tensors, tolerance_report
from moeracle.ref.weights.weight import Int4Weight
from moeracle.testing import assert_close, check_all_close

from .made import arguments, layer, linear


def w13() -> Int4Weight:
    found: Int4Weight = layer()[0].args["w13"]
    return found


def dense(name: str) -> torch.Tensor:
    values: torch.Tensor = layer()[0].args[name].dequantize()
    return values.bfloat16()


def fake(*shape: int) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(shape, dtype=torch.bfloat16)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "swapped weights": ({"w13": layer()[0].args["w2"], "w2": w13()}, "it fits with w13 and w2 swapped"),
    "swapped dense weights": ({"w13": dense("w2"), "w2": dense("w13")}, "it fits with w13 and w2 swapped"),
    "transposed weight": ({"w2": dense("w2").mT}, "w2: got shape [4, 64, 128], must be [E=4, H=128, I=64] to fit"),
    "transposed weight's hint": ({"w2": dense("w2").mT}, "it fits with w2 transposed"),
    "transposed scales": (
        {"w13": (w13().packed, w13().scale.mT), "layout": "exllama"},
        "w13: scale: got shape (4, 4, 128), must be (4, 128, 4); it fits transposed",
    ),
    "scales of other groups": (
        {"w13": (w13().packed, w13().scale[..., :3]), "layout": "exllama"},
        "w13: got scale [4, 128, 3], must be [4, 128, K/G] with K = 128",
    ),
    "another layout's words": (
        {"w13": (w13().packed, w13().scale), "layout": "gptq"},
        "with K = 1024 in layout 'gptq'; they fit layout 'exllama' or 'awq'",
    ),
    "words as bytes": (
        {"w13": (w13().packed.view(torch.uint8), w13().scale), "layout": "exllama"},
        "(words given as bytes fit as .view(torch.int32), codes must be packed)",
    ),
    "zero points of 200": (
        {"w13": (w13().packed, w13().scale, torch.full((4, 128, 4), 200).to(torch.uint8)), "layout": "exllama"},
        "w13: got a zero point of 200, must be 0..15",
    ),
    "no slots": (
        {"topk_weights": torch.zeros(17, 0), "topk_ids": torch.zeros(17, 0, dtype=torch.int32)},
        "case dimensions: got k = 0, must be at least 1",
    ),
    "stages in a list": ({"stages": [torch.zeros(34, 128)]}, "stages: got list, must be a dict of h, a or y"),
    "a nested tensor": (
        {"x": torch.nested.as_nested_tensor([torch.zeros(2)], layout=torch.jagged)},
        "x: got a nested tensor, must be torch.strided (.to_dense())",
    ),
    "a fake tensor": ({"out": fake(17, 128)}, "out: got a FakeTensor, must be a plain torch.Tensor that holds values"),
    "no layout": ({"w13": (w13().packed, w13().scale)}, "layout: got None for w13, must be one of exllama, gptq, awq"),
    "unknown layout": ({"w13": (w13().packed, w13().scale), "layout": "gtpq"}, "layout: got 'gtpq' for w13, must be"),
    "codes alone": ({"w13": w13().packed}, "w13: got a tensor of torch.int32, must be an Int4Weight, (packed, scale"),
    "a weight of four": ({"w13": (1, 2, 3, 4)}, "w13: got 4 values, must be an Int4Weight, (packed, scale, zero) or"),
    "meta tensor": ({"x": layer()[0].args["x"].to("meta")}, "x: got a meta tensor [17, 128], must hold values"),
    "meta weight": ({"w13": w13().to("meta")}, "w13.packed: got a meta tensor"),
    "sparse tensor": (
        {"topk_weights": layer()[0].args["topk_weights"].to_sparse()},
        "topk_weights: got layout torch.sparse_coo, must be torch.strided (.to_dense())",
    ),
    "fp32 activations": ({"x": layer()[0].args["x"].float()}, "x: got torch.float32, must be torch.bfloat16 or"),
    "another dtype's dense weight": (
        {"w13": dense("w13").half()},
        "w13: got a dequantized weight of torch.float16, must be torch.bfloat16 or torch.float32",
    ),
    "codes needed": (
        {"w13": dense("w13"), "contract": "wvsplitk"},
        "w13: got a dequantized weight of torch.bfloat16; contract 'wvsplitk' (weight=post) needs codes",
    ),
    "float ids": ({"topk_ids": torch.ones(17, 2)}, "topk_ids: got torch.float32, must be torch.int32"),
    "ids of all ranks": ({"topk_ids": torch.full((17, 2), 4)}, "topk_ids: got values from 4 to 4, must be -1..3"),
    "no ids": ({"topk_ids": None}, "topk_ids: got None, must be int32 [T, k]"),
    "a wrong name": ({"topk_idx": 1}, "argument of moe_w4a16: got 'topk_idx', must be one of x, w13, w2, topk_weights"),
    "a tolerance": ({"atol": 1e-2}, "atol: got 0.01; what is legal needs none (tolerance_report says what one lets"),
    "no contract": ({"contract": None}, "contract: got None, and tensors do not say whose kernel stored them; must be"),
    "a wrong contract": ({"contract": "groped"}, "did you mean 'grouped'?"),
    "a contract's typing error": ({"contract": "grouped,depht=3"}, "contract field: got 'depht', must be one of"),
    "another client's op": ({"client": "vllm.awq_dequantize"}, "whose op is dequantize_int4, must be one of"),
    "unknown client": ({"client": "vllm.fused_marlin"}, "client: got 'vllm.fused_marlin', must be one of vllm.fused"),
    "a map too short": (
        {"expert_map": torch.tensor([0, 1]), "topk_ids": torch.full((17, 2), 3)},
        "topk_ids: got id 3, must be -1 (ignored) or 0..1",
    ),
    "a short stage": ({"stages": {"h": torch.zeros(17, 128).bfloat16()}}, "h: got shape [17, 128], must be [34, 128]"),
    "a stage of fp32": ({"stages": {"h": torch.zeros(34, 128)}}, "h: got dtype torch.float32, must be torch.bfloat16"),
    "an unknown stage": ({"stages": {"g": torch.zeros(34, 128)}}, "stage: got 'g', must be one of h, a, y, out"),
    "a stage that is not stored": (
        {"stages": {"y": torch.zeros(34, 128).bfloat16()}, "contract": "megakernel"},
        "y: got a stored stage, but contract 'megakernel' stores h, a, out only",
    ),
    "infinite activations": (
        {"x": layer()[0].args["x"] / 0},
        "x: holds 2,176 elements that are NaN or infinite, must be finite",
    ),
    "no signal": ({"x": layer()[0].args["x"] * 0, "out": torch.zeros(17, 128).bfloat16()}, "every result is zero"),
    "nothing": (
        {
            "x": torch.zeros(0, 128).bfloat16(), "out": torch.zeros(0, 128).bfloat16(),
            "topk_weights": torch.zeros(0, 2), "topk_ids": torch.zeros(0, 2, dtype=torch.int32),
        },
        "nothing to judge: the result has no elements",
    ),
    "no output": ({"out": None}, "out: got NoneType, must be a tensor or a dict of the stages h, a, y and out"),
    "a transposed output": ({"out": layer()[1]["out"].mT}, "out: got shape [128, 17], must be [17, 128]; it fits"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_fits(mistake: str) -> None:
    changed, words = MISTAKES[mistake]
    out = changed.get("out", layer()[1]["out"])
    given = {"contract": "grouped", **arguments(**{name: v for name, v in changed.items() if name != "out"})}
    with pytest.raises(NotJudged) as said:
        assert_legal("moe_w4a16", out, save=False, **given)
    assert words in str(said.value)
    assert len(str(said.value).splitlines()) == 1
    assert len(str(said.value)) < 500


def test_words_and_ids_may_be_unsigned() -> None:
    w, ids = w13(), layer()[0].args["topk_ids"]
    given = {"w13": (w.packed.view(torch.uint32), w.scale), "topk_ids": ids.to(torch.uint32), "layout": "exllama"}
    assert_legal("moe_w4a16", layer()[1]["out"], contract="grouped", **arguments(**given))


def test_whole_numbers_of_another_width_are_the_same_numbers() -> None:
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    weights, ids = logits.float().softmax(-1).topk(2)
    for dtype in (torch.int32, torch.int64, torch.uint32):
        assert judge_tensors("topk_softmax", (weights, ids.to(dtype)), logits, 2, False).ok
    with pytest.raises(NotJudged, match=r"ids: got torch.int64, must be torch.int32"):
        judge_tensors("topk_softmax", (weights, ids + 2**40), logits, 2, False)


@pytest.mark.parametrize("layout", ["exllama_k", "sequential_n", "twos_complement"])
def test_unpacked_zeros_may_stand_beside_layouts_that_no_case_has_them_with(layout: str) -> None:
    w = w13()
    other = Int4Weight.from_codes(w.codes(), w.scale, layout=layout)
    zero = torch.full(tuple(w.scale.shape), 8, dtype=torch.uint8)
    given = {"w13": (other.packed, other.scale, zero), "layout": layout}
    assert judge_tensors("moe_w4a16", layer()[1]["out"], contract="grouped", **arguments(**given)).ok


def test_shims_refuse_what_is_no_tensor_and_no_number() -> None:
    one = torch.ones(2)
    with pytest.raises(NotJudged, match="a: got ndarray, must be a tensor"):
        check_all_close(one.numpy(), one)  # type: ignore[arg-type]
    with pytest.raises(NotJudged, match="rtol: got nan, must be a finite number from 0 on"):
        check_all_close(one, one, rtol=float("nan"))
    with pytest.raises(NotJudged, match="inputs: got Tensor, must be a tuple in the op's order, or a dict by name"):
        assert_close(one, one, op="moe_w4a16", inputs=one, contract="grouped")


def test_nothing_is_judged_inside_torch_func() -> None:
    out = layer()[1]["out"]
    judged = lambda one: assert_legal("moe_w4a16", one, contract="grouped", **arguments()) or one
    with pytest.raises(NotJudged, match=r"out: got a tensor inside torch.func, must be a plain torch.Tensor"):
        torch.func.vmap(judged)(out[None])


@pytest.mark.parametrize("value", [float("nan"), -1, "0.1", True])
def test_a_tolerance_is_a_number(value: Any) -> None:
    with pytest.raises(NotJudged, match=r"atol: got .*, must be a finite number from 0 on, or None"):
        tolerance_report("moe_w4a16", layer()[1]["out"], contract="grouped", atol=value, **arguments())


def test_packed_zeros_name_the_form_that_fits() -> None:
    problem, out = linear()
    x, w = problem.args["x"], problem.args["w"]
    given = {"contract": "grouped", "layout": "gptq"}
    with pytest.raises(
        NotJudged, match=r"which fits gptq_v1 and gptq_v2 .gptq_v1 stores z-1.; must be said by zero_layout"
    ):
        judge_tensors("int4_linear", out, x, (w.packed, w.scale, w.zero), **given)
    with pytest.raises(
        NotJudged, match=r"must be torch.uint8 for 'unpacked'; it fits zero_layout 'gptq_v1' or 'gptq_v2'"
    ):
        judge_tensors("int4_linear", out, x, (w.packed, w.scale, w.zero), zero_layout="unpacked", **given)
    with pytest.raises(NotJudged, match=r"must be torch.int32; it fits zero_layout 'unpacked'"):
        judge_tensors("int4_linear", out, x, (w.packed, w.scale, w.zeros()), zero_layout="gptq_v1", **given)
    assert judge_tensors("int4_linear", out, x, (w.packed, w.scale, w.zeros()), **given).ok
    assert judge_tensors("int4_linear", out, x, (w.packed, w.scale, w.zero), zero_layout="gptq_v1", **given).ok
    other = judge_tensors(
        "int4_linear", out, x, (w.packed, w.scale, w.zero), zero_layout="gptq_v2", explain=False, **given
    )
    assert other.status == "illegal"


def test_what_lies_behind_the_end_of_the_blocks_may_be_anything() -> None:
    from moeracle import ref

    ids = torch.tensor([[0, 2], [1, 2], [2, 0]], dtype=torch.int32)
    sorted_ids, experts, end = ref.moe_align_block_size(ids, 4, 3)
    x, w = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).bfloat16(), torch.eye(32).repeat(3, 1, 1)
    blocks = int(end) // 4
    more = torch.cat([experts[:blocks], torch.full((5,), 99, dtype=torch.int32)])
    given = (x, w.bfloat16(), sorted_ids)
    out = x.repeat_interleave(2, 0)
    assert judge_tensors("padded_gemm", out, *given, more, end, None, 2, contract="gptq_awq", B=4).ok
    with pytest.raises(NotJudged, match=r"block_size: got 5, must divide num_tokens_post_padded = 12, and"):
        judge_tensors("padded_gemm", out, *given, experts[:blocks], end, None, 2, contract="gptq_awq", B=5)
    more[0] = 99
    with pytest.raises(NotJudged, match=r"expert_ids: got values from 1 to 99, must be -1..2"):
        judge_tensors("padded_gemm", out, *given, more, end, None, 2, contract="gptq_awq", B=4)


def test_tensors_on_two_devices_are_refused() -> None:
    from moeracle.tensors.problem import _check_devices

    with pytest.raises(NotJudged, match="w: got device meta, must be x's cpu"):  # the one other device there is
        _check_devices({"x": torch.zeros(1), "w": torch.zeros(1, device="meta")})


def test_the_text_of_a_comparison_cannot_be_built_as_a_case() -> None:
    verdict = judge_tensors("moe_w4a16", layer()[1]["out"], contract="grouped", **arguments())
    case = Case.parse(str(verdict.problem.case))
    assert case == verdict.problem.case
    with pytest.raises(ValueError, match="moeracle judge FILE"):
        case.build()
    with pytest.raises(ValueError, match="must be one of"):
        Case.parse(str(case).replace("/own/s0", "/normal/s0"))
