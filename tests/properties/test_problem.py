"""Problem: the op's arguments in order, one problem in many layouts, strides that are real."""

import pytest
import torch

from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.cases.device import check_device
from moeracle.properties.cases.optable import OPS, ZERO_LAYOUT
from moeracle.ref.weights.layouts import pack_int4
from moeracle.ref.weights.weight import Int4Weight

SIZES = {"T": 7, "E": 5, "k": 3, "N": 24, "K": 48, "H": 48, "I": 32, "G": 16, "B": 16, "V": 20}
ARGUMENTS = {
    "unpack_int4": "w",
    "dequantize_int4": "w",
    "topk_softmax": "logits top_k renormalize",
    "grouped_topk": "logits correction_bias num_groups topk_group top_k scoring renormalize routed_scaling_factor",
    "moe_align_block_size": "topk_ids block_size num_experts expert_map",
    "moe_permute": "x topk_ids num_experts expert_map",
    "moe_unpermute": "y topk_weights inv",
    "int4_linear": "x w bias",
    "grouped_gemm": "x w expert_offsets",
    "padded_gemm": "x w sorted_token_ids expert_ids num_tokens_post_padded topk_weights top_k",
    "silu_and_mul": "h",
    "moe_w4a16": "x w13 w2 topk_weights topk_ids",
    "quantize_int8": "w group_size",
    "int8_lm_head": "x codes scale bias",
    "shared_expert": "x w_gate_up w_down gate_weight",
    "tiny_dot": "x w sigmoid",
}


def sized(op: str, **options: object) -> Case:
    sizes = {**SIZES, **OPS[op].plain_sizes}
    return Case.of(op, **{**{letter: sizes[letter] for letter in OPS[op].dims}, **options})  # type: ignore[arg-type]


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


@pytest.mark.parametrize("op", OPS)
def test_arguments_come_in_the_ops_order(op: str) -> None:
    assert " ".join(sized(op).build().args) == ARGUMENTS[op]


@pytest.mark.parametrize("op", [op for op in OPS if "T" in OPS[op].dims])
def test_no_tokens_is_a_problem_too(op: str) -> None:
    for data in OPS[op].data:
        problem = sized(op, T=0, data=data).build()
        rows = [value for name, value in problem.args.items() if name in ("x", "y", "h", "logits", "topk_ids", "inv")]
        assert rows
        assert all(value.shape[0] == 0 for value in rows)


def test_shapes_and_dtypes_of_a_layer() -> None:
    x, w13, w2, weights, ids = sized("moe_w4a16", dtype="fp16", G=-1).build().args.values()
    assert (x.shape, x.dtype) == ((7, 48), torch.float16)
    assert (w13.shape, w2.shape) == ((5, 64, 48), (5, 48, 32))
    assert (w13.scale.shape, w13.scale.dtype, w13.group_size) == ((5, 64, 1), torch.float16, -1)
    assert (weights.shape, weights.dtype) == ((7, 3), torch.float32)
    assert (ids.shape, ids.dtype) == ((7, 3), torch.int32)


@pytest.mark.parametrize("data", ["normal", "cancelling", "codes16", "integers", "samesign", "stagnation"])
@pytest.mark.parametrize("K", [48, 64, 80])
def test_codes_and_scales_do_not_depend_on_the_layout(data: str, K: int) -> None:
    plain = sized("grouped_gemm", K=K, data=data, layout="exllama").build().args
    for layout in ZERO_LAYOUT:
        for pad in (0, 3):
            args = sized("grouped_gemm", K=K, data=data, layout=layout, pad=pad).build().args
            assert torch.equal(args["w"].codes(), plain["w"].codes()), (layout, pad)
            assert torch.equal(args["w"].scale, plain["w"].scale)
            assert torch.equal(args["x"], plain["x"])
            assert torch.equal(args["w"].packed, pack_int4(plain["w"].codes(), layout))


@pytest.mark.parametrize("data", ["normal", "samesign", "stagnation"])
def test_zero_points_do_not_depend_on_their_form(data: str) -> None:
    plain = sized("int4_linear", data=data, zero="unpacked").build().args["w"]
    assert plain.zeros().unique().numel() > 4
    for layout, zeros in ZERO_LAYOUT.items():
        for zero in zeros:
            w = sized("int4_linear", data=data, layout=layout, zero=zero).build().args["w"]
            if zero == "sym":
                assert w.zero is None
            else:
                assert torch.equal(w.zeros(), plain.zeros())
                assert w.zero_layout == zeros[zero]


def test_nibble_pairs_take_columns_that_fill_no_word() -> None:
    short = Case.of("int4_linear", T=2, N=6, K=26, G=13, layout="nibble_pairs").build().args["w"]
    awq = Case.of("int4_linear", T=2, N=8, K=26, G=13, layout="awq").build().args["w"]
    assert short.codes().shape == (6, 26)
    assert torch.equal(awq.codes()[:3], short.codes()[:3])


def test_making_experts_in_runs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.of("unpack_int4", E=5, N=3, K=40, G=8)
    whole = case.build().args["w"].packed
    monkeypatch.setattr("moeracle.properties.cases.weights._WORDS_AT_ONCE", 16)
    assert torch.equal(case.build().args["w"].packed, whole)


@pytest.mark.parametrize("layout", ZERO_LAYOUT)
def test_padded_rows_are_views_of_a_wider_buffer(layout: str) -> None:
    packed = sized("moe_w4a16", layout=layout, pad=32).build().args["w13"].packed
    assert packed.stride(-2) == packed.shape[-1] + 32
    assert not packed.is_contiguous()


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_scales_are_stored_as_their_kernels_read_them(layout: str) -> None:
    w = sized("moe_w4a16", layout=layout).build().args["w13"]
    assert w.scale.shape == (5, 64, 3)
    assert w.scale.mT.is_contiguous()


@pytest.mark.parametrize("op", [op for op in OPS if "strided" in OPS[op].data_flags])
def test_strided_rows_have_nan_between_them(op: str) -> None:
    name = "h" if op == "silu_and_mul" else "x"
    plain, cut = (sized(op, flags=flags).build().args[name] for flags in ([], ["strided"]))
    assert torch.equal(plain, cut)
    assert cut.stride(0) == cut.shape[1] + 8
    assert cut.as_strided((cut.shape[0] * cut.stride(0),), (1,)).isnan().sum() == 8 * cut.shape[0]


def test_moving_keeps_strides_and_truth() -> None:
    problem = sized("padded_gemm", layout="gptq", zero="v1", pad=5, flags=["strided", "ep2"]).build()
    moved = problem.to("meta")
    for name, tensor in tensors(problem).items():
        assert tensors(moved)[name].stride() == tensor.stride()
        assert tensors(moved)[name].device.type == "meta"
    assert moved.truth["topk_ids"].device.type == "meta"
    assert moved.args["top_k"] == 3
    assert problem.to("cpu") is problem


def test_half_of_the_experts_are_here_under_ep2() -> None:
    problem = sized("padded_gemm", flags=["ep2"], T=40).build()
    assert problem.args["w"].E == 3
    assert problem.truth["expert_map"].tolist() == [0, 1, 2, -1, -1]
    assert set(problem.args["expert_ids"].tolist()) == {-1, 0, 1, 2}
    offsets = sized("grouped_gemm", flags=["ep2"], T=40).build().args["expert_offsets"]
    assert offsets.shape == (4,)
    assert 0 < offsets[-1] < 120


def test_grouped_rows_are_the_tokens_rows_in_expert_order() -> None:
    problem = sized("grouped_gemm", routing="zipf1").build()
    x = sized("padded_gemm", routing="zipf1").build().args["x"]
    slots = torch.arange(21).reshape(7, 3)
    for t, row in enumerate(slots.tolist()):
        for j, slot in enumerate(row):
            dest = int(problem.truth["inv"][slot])
            e = int(problem.truth["topk_ids"][t, j])
            assert torch.equal(problem.args["x"][dest], x[t])
            assert problem.args["expert_offsets"][e] <= dest < problem.args["expert_offsets"][e + 1]


def test_unpermute_gives_ignored_slots_zero_rows() -> None:
    problem = sized("moe_unpermute", routing="ignored").build()
    rows = problem.args["y"][problem.args["inv"].long()]
    ignored = problem.truth["topk_ids"].flatten() < 0
    assert (rows[ignored] == 0).all()
    assert (rows[~ignored] != 0).any(1).all()


def test_flags_reach_the_arguments() -> None:
    assert sized("topk_softmax", flags=["renorm"]).build().args["renormalize"] is True
    assert sized("topk_softmax").build().args["renormalize"] is False
    assert sized("int4_linear", flags=["bias"]).build().args["bias"].shape == (24,)
    assert sized("padded_gemm", flags=["weight"]).build().args["topk_weights"].shape == (7, 3)
    assert sized("padded_gemm").build().args["topk_weights"] is None
    assert sized("int8_lm_head", G=-1).build().args["scale"].shape == (20,)
    assert sized("int8_lm_head").build().args["scale"].shape == (20, 3)


def test_exact_recipes_promise_exactness_and_others_do_not() -> None:
    for op in (
        "int4_linear",
        "grouped_gemm",
        "padded_gemm",
        "moe_w4a16",
        "int8_lm_head",
        "moe_unpermute",
        "silu_and_mul",
    ):
        assert sized(op, data="integers").build().exact
        assert not sized(op).build().exact
    assert sized("int4_linear", data="onehot").build().exact
    assert not sized("int4_linear", data="onehot", flags=["bias"]).build().exact


def test_a_device_that_is_not_here_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device: got 'cuda', but torch sees no CUDA device here; must be cpu"):
        sized("silu_and_mul").build("cuda")
    with pytest.raises(ValueError, match=r"device: got 'cdua', must be a torch device like cpu or cuda") as raised:
        sized("silu_and_mul").build("cdua")
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"device: got 'xpu', which is not here"):
        check_device("xpu")


def test_a_cuda_index_beyond_the_last_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"device: got 'cuda:2', must be one of the 2 CUDA devices"):
        check_device("cuda:2")
    assert check_device("cuda") == torch.device("cuda", 0)


def test_bytes_count_every_argument() -> None:
    problem = sized("int4_linear", flags=["bias"], zero="unpacked", pad=32).build()
    assert problem.nbytes() == 7 * 48 * 2 + 24 * 48 // 2 + 24 * 3 * 2 + 24 * 3 + 24 * 2
