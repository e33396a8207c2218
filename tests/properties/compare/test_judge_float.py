"""The judges' own arithmetic in numbers: when a case is refused for overflow, int8 weights' sizes, what ftz allows."""

import dataclasses

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.compare import floats as judge_float
from moeracle.properties.compare.floats import promises_exact, sums_may_overflow
from moeracle.properties.compare.int8 import int8_dot_weights
from moeracle.properties.compare.tally import SAMPLE
from moeracle.properties.judge import judge
from moeracle.properties.ops import int8_lm_head as lm_head
from moeracle.ref.contracts.contract import Contract, contract
from support.simulate import Simulated

BF16 = torch.bfloat16
LINEAR = {"T": 2, "N": 8, "K": 32, "G": 16}


def test_promises_exact():
    promised = {
        data: promises_exact(Case.of("int4_linear", data=data, **LINEAR).build())
        for data in ("integers", "samesign", "onehot", "normal", "outliers", "wide")
    }
    assert promised == {"integers": True, "samesign": True, "onehot": True} | dict.fromkeys(
        ("normal", "outliers", "wide"), False
    )


@pytest.mark.parametrize(
    ("op", "rules", "code"),
    [
        ("int4_linear", "wmma", 2 * (15 + 128)),
        ("int4_linear", "wmma,zero_offset=0", 2 * 15),
        ("int4_linear", "wmma,zero_offset=1024", 2 * (15 + 1024)),
        ("int4_linear", "wvsplitk", 2 * 15),
        ("int8_lm_head", "int8_lm_head", 128),
        ("int4_linear", "grouped", None),
        ("int4_linear", "grouped,weight=exact", None),
    ],
)
def test_a_sum_may_overflow_from_2_127_on(op, rules, code):
    dims = {"T": 2, "V": 8, "K": 32, "G": 16} if op == "int8_lm_head" else LINEAR
    problem = Case.of(op, **dims).build()
    x = torch.zeros(2, 32, dtype=torch.float64)
    problem.args["x"] = x
    x[1, 5] = -(2.0**127) / 32 / (code or 1e-9)
    assert sums_may_overflow(problem, contract(rules)) == (code is not None)
    x[1, 5] *= 0.999
    assert not sums_may_overflow(problem, contract(rules)) or code is None
    problem.args["x"] = x[:0]
    assert not sums_may_overflow(problem, contract(rules))
    assert not sums_may_overflow(Case.of("moe_unpermute", T=2, E=3, k=2, K=8).build(), contract("wmma"))


def test_int8_weights_are_exact_and_their_sizes_never_below_them():
    codes = torch.tensor([[127, -3, 0, 5], [-128, 1, 2, 3]], dtype=torch.int8)
    scale = torch.tensor([[1 + 2.0**-23, 0.5], [3.0, 2.0**-20]])
    by_group = int8_dot_weights(codes, scale, contract("int8_lm_head"), BF16)
    s = scale.double().repeat_interleave(2, 1)
    assert torch.equal(by_group.values, codes.double() * s)
    size = by_group.values.abs()
    assert by_group.sizes.dtype == torch.float32
    assert bool((by_group.sizes.double() >= size).all())
    assert (
        by_group.sizes[0, 0] == 127.0 + 2.0**-16
    )  # 127 + 127 * 2^-23 has 30 bits: the fp32 above, not the nearest below
    assert by_group.sizes[0, 1:].tolist() == [3.0 + 2.0**-21, 0.0, 2.5]  # what fp32 holds stays as it is
    by_row = int8_dot_weights(codes, scale[:, 0], contract("int8_lm_head"), BF16)
    assert torch.equal(by_row.values, codes.double() * scale[:, :1].double())
    cast = int8_dot_weights(codes, scale[:, 0], contract("grouped"), BF16)
    assert cast.values[0, 0] == 127.0
    truncated = int8_dot_weights(codes, scale[:, 0] * 0 + 1.01, contract("grouped,weight_rounding=rtz"), BF16)
    assert truncated.values[0].tolist() == [128.0, -3.015625, 0.0, 5.03125]


def with_scale(scale):
    problem = Case.of("dequantize_int4", N=2, K=32, G=16).build()
    w = problem.args["w"]
    problem.args["w"] = dataclasses.replace(w, scale=torch.full_like(w.scale, scale))
    return problem, problem.args["w"].dequantize()


def dequantized(scale, rules, change):
    problem, values = with_scale(scale)
    return judge(problem, change(values).to(BF16), rules, explain=False)


def small_ones(scale):
    return int(((values := with_scale(scale)[1]).abs() < 2.0**-127).logical_and(values != 0).sum())


def test_ftz_lets_a_dequantized_subnormal_be_itself_or_zero_and_nothing_else():
    keep, flush = (lambda w: w), (lambda w: torch.where(w.abs() < 2.0**-126, 0.0, w))
    small = lambda factor: lambda w: torch.where(w.abs() < 2.0**-127, factor * w, w)
    for scale in (2.0**-129, -(2.0**-129)):  # weights from -8 to 7 of it: both sides of 2^-126
        assert dequantized(scale, "grouped", keep).status != "illegal"
        assert dequantized(scale, "grouped", flush).status == "illegal"
        assert dequantized(scale, "grouped,ftz=true", keep).status != "illegal"
        assert dequantized(scale, "grouped,ftz=true", flush).status != "illegal"
        assert dequantized(scale, "grouped,ftz=true", lambda w: w * 0).status == "illegal"  # -8 of it is normal
        for factor in (-1, 2):
            verdict = dequantized(scale, "grouped,ftz=true", small(factor))
            assert 10 < verdict.illegal == small_ones(scale)  # every one of them, whatever its sign
    assert dequantized(2.0**-126, "grouped,ftz=true", flush).ok
    assert not dequantized(2.0**-126, "grouped,ftz=true", lambda w: w * 0).ok


@pytest.mark.parametrize(("broken", "illegal"), [("h", "ha"), ("a", "ay"), ("y", "yo")])
def test_each_stage_is_judged_from_the_one_the_kernel_stored_before_it(broken, illegal):
    problem = Case.of("moe_w4a16", T=5, E=3, k=2, H=32, I=48, G=16, seed=1).build()
    outputs = Simulated("moe_w4a16", stages="hay").fn(*problem.args.values())
    outputs[broken][4] *= 2
    verdict = judge(problem, outputs, explain=False)
    assert "".join(stage.stage[0] for stage in verdict.stages if stage.illegal) == illegal


OPS = {
    "int4_linear": LINEAR,
    "silu_and_mul": {"T": 5, "I": 8},
    "moe_unpermute": {"T": 5, "E": 4, "k": 2, "K": 8},
    "grouped_gemm": {"T": 5, "E": 3, "k": 2, "N": 8, "K": 32, "G": 16},
    "padded_gemm": {"T": 5, "E": 3, "k": 2, "N": 8, "K": 32, "G": 16, "B": 4},
    "int8_lm_head": {"T": 3, "V": 10, "K": 32, "G": 16},
}


@pytest.mark.parametrize("op", OPS)
def test_pieces_judge_as_the_whole_does(op, monkeypatch):
    problem = Case.of(op, **OPS[op]).build()
    rules = Contract("c", weight="exact") if op != "int8_lm_head" else contract("int8_lm_head,weight=exact")
    shape = {"silu_and_mul": (5, 8), "moe_unpermute": (5, 8), "int4_linear": (2, 8), "int8_lm_head": (3, 10)}
    out = torch.full(shape.get(op, (10, 8)), 0.25, dtype=BF16)
    whole = judge(problem, out, rules, explain=False)
    monkeypatch.setattr(judge_float, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(lm_head, "WEIGHTS_AT_ONCE", 96)
    pieces = judge(problem, out, rules, explain=False)
    (one,), (many,) = whole.stages, pieces.stages
    assert (one.judged, one.illegal) == (many.judged, many.illegal) == (out.numel(), many.illegal)
    assert whole.summary[0] == pieces.summary[0]
    assert whole.status == "illegal"


def test_padded_rows_are_found_without_being_told_the_block_size():
    problem = Case.of("padded_gemm", T=7, E=5, k=2, N=8, K=32, G=16, B=4, routing="zipf1").build()
    output = Simulated("padded_gemm").fn(*problem.args.values())
    assert problem.truth.pop("block_size") == 4
    assert judge(problem, output).ok


@pytest.mark.parametrize(("weight", "bound_as"), [("post", "post"), ("exact", "hoisted"), ("cast", "cast")])
def test_an_exact_int8_weight_takes_two_roundings_and_no_other_does(weight, bound_as, monkeypatch):
    seen = []
    monkeypatch.setattr(lm_head, "dot_band", lambda a, w, rules, *_, **__: seen.append(rules.weight) or a)
    problem = Case.of("int8_lm_head", T=3, V=16, K=16, G=16).build()
    judge_float.tallied(problem, {"out": problem.args["x"]}, contract(f"int8_lm_head,weight={weight}"), SAMPLE)
    assert seen == [bound_as]
