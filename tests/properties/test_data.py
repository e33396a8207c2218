"""Data recipes: each is hard in the way it says, and finite; the exact ones are in test_exact.py."""

import pytest
import torch

from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.cases.optable import GEMM_DATA, OPS

LINEAR = {"T": 24, "N": 32, "K": 256, "G": 32}
HALF = ("bf16", "fp16")


def linear(data: str, dtype: str = "bf16", seed: int = 0, zero: str = "sym", **dims: int) -> Problem:
    return Case.of("int4_linear", dtype=dtype, data=data, seed=seed, zero=zero, **{**LINEAR, **dims}).build()


def parts(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """x and the dequantized weight, fp64."""
    return problem.args["x"].double(), problem.args["w"].dequantize(torch.float64)


@pytest.mark.parametrize("dtype", HALF)
def test_normal_outputs_are_about_one(dtype: str) -> None:
    for K in (8, 64, 512, 4096):
        x, w = parts(linear("normal", dtype, K=K, G=-1))
        assert 0.2 < (x @ w.T).std() < 4


@pytest.mark.parametrize("dtype", HALF)
def test_outliers_are_rare_and_loud(dtype: str) -> None:
    x, _ = parts(linear("outliers", dtype, T=200))
    columns = x.abs().mean(0)
    assert (columns > 10 * columns.median()).sum() == 256 // 64
    assert x.abs().max() > 20 * x.abs().median()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("K", "G"), [(256, 32), (256, -1), (96, 32), (48, 16), (40, 8), (24, -1)])
@pytest.mark.parametrize("zero", ["sym", "unpacked"])
def test_cancelling_sums_nearly_vanish(dtype: str, K: int, G: int, zero: str) -> None:
    x, w = parts(linear("cancelling", dtype, zero=zero, K=K, G=G))
    ratio = (x @ w.T).abs() / (x.abs() @ w.abs().T)
    assert ratio.max() < (2**-7 if dtype == "bf16" else 2**-10)
    assert (x @ w.T != 0).double().mean() > 0.9


@pytest.mark.parametrize("dtype", HALF)
def test_wide_spreads_exponents(dtype: str) -> None:
    x, w = parts(linear("wide", dtype))
    for values, binades in ((x, 16 if dtype == "fp16" else 50), (w[w != 0], 8)):
        exponents = torch.frexp(values).exponent
        assert exponents.max() - exponents.min() >= binades - 2
    assert x.abs().min() >= torch.finfo(problem_dtype(dtype)).smallest_normal


def problem_dtype(dtype: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


@pytest.mark.parametrize("dtype", HALF)
def test_subnormal_makes_x_then_scales_then_outputs_subnormal(dtype: str) -> None:
    least = torch.finfo(problem_dtype(dtype)).smallest_normal
    problems = [linear("subnormal", dtype, seed=seed) for seed in range(3)]
    outputs = [x @ w.T for x, w in map(parts, problems)]
    assert (problems[0].args["x"].double().abs() < least).all()
    assert (problems[0].args["x"] != 0).all()
    assert (problems[1].args["w"].scale.double() < least).all()
    assert 0.01 < outputs[0].abs().median() < 10
    assert 0.01 < outputs[1].abs().median() < 10
    assert (outputs[2].abs() < least).double().mean() > 0.5
    assert (outputs[2].abs() > torch.finfo(problem_dtype(dtype)).smallest_normal * 2**-7).double().mean() > 0.2


@pytest.mark.parametrize("layout", ["exllama", "gptq", "awq", "compressed_tensors", "nibble_pairs"])
@pytest.mark.parametrize(("N", "K"), [(16, 8), (8, 16), (64, 128)])
def test_codes16_reaches_every_nibble_position(layout: str, N: int, K: int) -> None:
    codes = Case.of("unpack_int4", layout=layout, data="codes16", E=2, N=N, K=K, G=-1).build().args["w"].codes()
    for expert in codes:
        for position in range(8):
            assert expert[:, position::8].unique().numel() == 16
            if N >= 16:
                assert expert[position::8].unique().numel() == 16  # awq packs rows


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("K", [8, 30, 256])
def test_onehot_reads_every_column_and_even_ones_do_not_come_first(dtype: str, K: int) -> None:
    problem = linear("onehot", dtype, T=K, K=K, G=-1, seed=3) if K % 8 == 0 else None
    x = problem.args["x"] if problem else Case.of("int8_lm_head", data="onehot", T=K, V=3, K=K, G=-1).build().args["x"]
    assert set(x.flatten().tolist()) == {0.0, 1.0}
    columns = x.double().argmax(1)
    assert sorted(columns.tolist()) == list(range(K))
    assert set((columns[: K // 2] % 2).tolist()) == {0, 1}


def test_onehot_starts_elsewhere_for_another_seed() -> None:
    assert len({int(linear("onehot", seed=seed).args["x"][0].argmax()) for seed in range(8)}) > 3


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 8), ("fp16", 11)])
@pytest.mark.parametrize("zero", ["sym", "unpacked"])
def test_stagnation_sticks_to_a_rounding_tie(dtype: str, bits: int, zero: str) -> None:
    """Summed in order in fp32, row 0 stays at s(1 + 2^-bits), which rounds down; the true sum rounds up."""
    problem = linear("stagnation", dtype, zero=zero)
    x, w = parts(problem)
    true = x @ w.T
    size = w[:, :1].T.expand_as(true)
    assert torch.equal(true, size * (1 + 2.0**-bits + (256 - 2) * 2.0**-24))
    total = torch.zeros(true.shape[1], dtype=torch.float32)
    for k in range(256):
        total += x[0, k].float() * w[:, k].float()
    assert torch.equal(total.double(), size[0] * (1 + 2.0**-bits))
    assert (total.to(problem_dtype(dtype)).double() < true[0]).all()
    assert (true[0] - total.double() > 0).all()


@pytest.mark.parametrize("op", [op for op in OPS if OPS[op].dtypes != ("-",)])
@pytest.mark.parametrize("dtype", HALF)
def test_everything_is_finite(op: str, dtype: str) -> None:
    sizes = {
        "T": 5,
        "E": 4,
        "k": 2,
        "N": 16,
        "K": 32,
        "H": 32,
        "I": 32,
        "G": 16,
        "B": 16,
        "V": 12,
        **OPS[op].plain_sizes,
    }
    for data in OPS[op].data:
        for seed in range(3):
            case = Case.of(op, dtype=dtype, data=data, seed=seed, **{d: sizes[d] for d in OPS[op].dims})
            for name, value in case.build().args.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point() and data != "nonfinite":
                    assert value.isfinite().all(), f"{name} of {case}"
                if name.startswith("w") and not isinstance(value, torch.Tensor):
                    assert value.dequantize().isfinite().all(), f"{name} of {case}"
                    assert (value.scale > 0).all(), f"{name} of {case}"


@pytest.mark.parametrize("dtype", HALF)
def test_silu_integers_need_no_exponential(dtype: str) -> None:
    h = Case.of("silu_and_mul", T=50, I=64, data="integers", dtype=dtype).build().args["h"].double()
    gate, up = h[:, :64], h[:, 64:]
    assert (gate % 128 == 0).all()
    assert gate.min() < 0 < gate.max()
    assert (gate * up).abs().max() <= 65504
    assert torch.equal(up, up.round())


@pytest.mark.parametrize("dtype", HALF)
def test_silu_wide_goes_beyond_100_without_overflow(dtype: str) -> None:
    h = Case.of("silu_and_mul", T=50, I=64, data="wide", dtype=dtype).build().args["h"].double()
    gate, up = h[:, :64], h[:, 64:]
    assert gate.max() > 100
    assert gate.min() < -100
    assert (gate * up).abs().max() < torch.finfo(problem_dtype(dtype)).max


def test_logits_tie_and_spoil() -> None:
    ties = Case.of("topk_softmax", T=30, E=16, k=4, data="ties").build().args["logits"]
    assert ties.unique().numel() == 4
    assert ties[0].unique().numel() == 1
    logits = Case.of("topk_softmax", T=12, E=16, k=4, data="nonfinite").build().args["logits"]
    assert logits.isfinite().all(1).sum() == 2
    assert logits.isnan().all(1).sum() == 2
    assert logits.isnan().any(1).sum() == 4
    assert (logits == float("inf")).any(1).sum() == 2
    assert (logits == float("-inf")).any(1).sum() == 4


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("G", [16, -1])
def test_quantizer_integers_are_half_steps_of_a_power_of_two(dtype: str, G: int) -> None:
    w = Case.of("quantize_int8", V=6, K=64, G=G, data="integers", dtype=dtype).build().args["w"].double()
    groups = w.reshape(6, -1, 64 if G == -1 else G)
    scale = groups.abs().amax(2, keepdim=True) / 127
    assert (torch.frexp(scale).mantissa == 0.5).all()
    steps = groups / scale * 2
    assert torch.equal(steps, steps.round())
    assert (steps % 2 == 1).double().mean() > 0.3


def test_quantizer_subnormal_has_a_row_of_zeros() -> None:
    w = Case.of("quantize_int8", V=6, K=64, G=-1, data="subnormal").build().args["w"]
    assert (w[0] == 0).all()
    assert (w[1:] != 0).all()


@pytest.mark.parametrize("data", GEMM_DATA)
def test_moe_stays_finite_in_fp16(data: str) -> None:
    for seed in range(3):
        case = Case.of(
            "moe_w4a16", T=4, E=4, k=2, H=128, I=64, G=32, data=data, dtype="fp16", seed=seed, zero="unpacked"
        )
        x, w13, w2, _, ids = case.build().args.values()
        seen = 0.0
        for t, row in enumerate(ids.tolist()):
            for e in row:
                h = (w13.expert(e).dequantize() @ x[t].float()).half().float()
                a = (torch.nn.functional.silu(h[:64]).half().float() * h[64:]).half().float()
                y = (w2.expert(e).dequantize() @ a).half()
                assert h.isfinite().all()
                assert a.isfinite().all()
                assert y.isfinite().all()
                seen = max(seen, float(y.abs().max()))
        assert seen > 0  # not vacuous
