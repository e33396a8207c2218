"""Dispatch and the quantizer: every legal way passes, every planted fault is told with its place."""

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.routings import draw_topk
from moeracle.properties.judge import judge
from moeracle.ref.ops.moe_permute import moe_align_block_size, moe_permute


def aligned(case):
    problem = case.build()
    return problem, list(moe_align_block_size(*problem.args.values()))


ROUTINGS = ["uniform", "repeat", "ignored", "empty", "onehot", "uniform+ep2", "ignored+ep2", "repeat+ep2"]


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("B", [1, 4, 16])
def test_any_order_inside_an_expert_is_legal(routing, B):
    for T in (0, 1, 13):
        case = Case.parse(f"moe_align_block_size/T{T}-E5-k3-B{B}/-/-/{routing}/-/s4")
        problem, (ids, experts, end) = aligned(case)
        assert judge(problem, (ids, experts, end)).ok
        flat = problem.args["topk_ids"].flatten()
        shuffled = ids.clone()
        real = shuffled < len(flat)
        for e in range(5):
            at = (
                (real & (flat[shuffled.clamp(max=max(0, len(flat) - 1)).long()] == e)).nonzero()
                if T
                else real.nonzero()
            )
            shuffled[at.flatten()] = shuffled[at.flatten()].flip(0)
        assert judge(problem, (shuffled, experts, end)).ok, case


def test_align_faults():
    case = Case.parse("moe_align_block_size/T13-E5-k3-B4/-/-/uniform/-/s4")
    problem, (ids, experts, end) = aligned(case)
    stop = int(end) // 4
    assert len(experts) > stop
    older = experts.clone()
    older[stop:] = 0
    verdict = judge(problem, (ids, older, end))  # F11
    assert (verdict.tier, verdict.stage) == ("bits", "expert_ids")
    assert f"first expert_ids[{stop}]: got 0, legal -1" in verdict.summary[0]
    assert "F11" in verdict.summary[1]
    wrong = experts.clone()
    wrong[0] += 1
    assert judge(problem, (ids, wrong, end)).stage == "expert_ids"
    assert judge(problem, (ids, experts, end + 4)).stage == "num_tokens_post_padded"
    lost, twice, moved = ids.clone(), ids.clone(), ids.clone()
    lost[0] = 39  # padding in place of a slot
    twice[1] = twice[0]
    other = int((experts == 1).nonzero()[0]) * 4
    moved[[0, other]] = moved[[other, 0]]  # a slot of another expert
    for broken in (lost, twice, moved):
        assert judge(problem, (broken, experts, end)).stage == "sorted_token_ids"
    assert judge(problem, (ids.roll(1), experts, end)).stage == "sorted_token_ids"


@pytest.mark.parametrize("routing", ROUTINGS)
def test_permute_is_exact_but_for_ignored_rows(routing):
    for T in (0, 1, 9):
        problem = Case.parse(f"moe_permute/T{T}-E5-k3-K7/bf16/-/{routing}/normal/s4").build()
        x, offsets, inv = moe_permute(*problem.args.values())
        used = int(offsets[-1])
        x[used:] = torch.nan
        ignored = inv >= used
        inv[ignored] = inv[ignored].flip(0)  # their order means nothing
        verdict = judge(problem, (x, offsets, inv))
        assert verdict.ok, verdict.text()


def test_permute_faults():
    problem = Case.parse("moe_permute/T9-E4-k3-K7/bf16/-/ignored/normal/s4").build()
    x, offsets, inv = moe_permute(*problem.args.values())
    first = int(offsets[0])
    a, b = (int((inv == row).nonzero()) for row in (first, first + 1))
    unstable, swapped = inv.clone(), x.clone()
    unstable[[a, b]] = unstable[[b, a]]
    swapped[[first, first + 1]] = swapped[[first + 1, first]]
    verdict = judge(problem, (swapped, offsets, unstable))  # F48
    assert (verdict.tier, verdict.stage, verdict.illegal) == ("bits", "inv", 2)
    assert "F48" in verdict.summary[1]
    assert judge(problem, (swapped, offsets, inv)).stage == "x_permuted"
    assert judge(problem, (x, offsets + 1, inv)).stage == "expert_offsets"
    repeated = inv.clone()
    repeated[inv >= int(offsets[-1])] = int(offsets[-1])
    assert "permutation" in judge(problem, (x, offsets, repeated)).summary[1]
    negative = x.clone()
    negative[0, 0] = -negative[0, 0]
    verdict = judge(problem, (negative, offsets, inv))
    assert (verdict.stage, verdict.illegal) == ("x_permuted", 1)


def quantized(w, G, divide=torch.div, scale_of=lambda amax: amax.clamp(min=1e-10) / 127):
    V, K = w.shape
    groups = w.float().reshape(V, -1, K if G == -1 else G)
    scale = scale_of(groups.abs().amax(-1))
    codes = torch.round(divide(groups, scale[..., None])).clamp(-128, 127).to(torch.int8).reshape(V, K)
    return codes, scale[:, 0].contiguous() if G == -1 else scale


QUANTIZERS = {
    "division": {},
    "reciprocal": {"divide": lambda a, b: a * (1 / b)},
    "times 1/127": {"scale_of": lambda amax: amax.clamp(min=1e-10) * (1 / torch.tensor(127.0))},
    "fp64": {"divide": lambda a, b: (a.double() / b.double()).float()},
}


@pytest.mark.parametrize("form", QUANTIZERS)
@pytest.mark.parametrize("data", ["normal", "outliers", "wide", "subnormal", "integers"])
def test_every_fp32_quantizer_is_legal(form, data):
    for seed, G in enumerate((-1, 16, 64)):
        for dtype in ("bf16", "fp16", "fp32"):
            problem = Case.of("quantize_int8", V=9, K=64, G=G, dtype=dtype, data=data, seed=seed).build()
            verdict = judge(problem, quantized(problem.args["w"], G, **QUANTIZERS[form]))
            assert verdict.ok, verdict.text()


def test_quantizer_faults():
    problem = Case.of("quantize_int8", V=9, K=64, G=16, dtype="bf16", data="normal").build()
    w = problem.args["w"]
    codes, scale = quantized(w, 16)
    off = codes.clone()
    off[4, 5] += 1
    verdict = judge(problem, (off, scale))
    assert (verdict.tier, verdict.stage, verdict.illegal) == ("bits", "codes", 1)
    assert f"codes[row 4, column 5]: got {int(off[4, 5])}, legal {int(codes[4, 5])}" in verdict.summary[0]
    lowest = codes.clone()
    lowest[codes == -127] = -128
    assert judge(problem, (lowest, scale)).illegal == int((codes == -127).sum()) > 0
    in_dtype = (w.reshape(9, 4, 16).abs().amax(-1) / 127).float()
    assert judge(problem, (codes, in_dtype)).stage == "scale"
    assert judge(problem, (codes, scale.roll(1, 1))).stage == "scale"
    assert judge(problem, (codes, scale * torch.nan)).tier == "nonfinite"


def test_ties_go_to_even_where_the_scale_is_a_power_of_two():
    problem = Case.of("quantize_int8", V=6, K=32, G=-1, dtype="fp32", data="integers").build()
    codes, scale = quantized(problem.args["w"], -1)
    assert bool((torch.frexp(scale).mantissa == 0.5).all())
    half_up = torch.floor(problem.args["w"] / scale[:, None] + 0.5).to(torch.int8)
    assert judge(problem, (codes, scale)).ok
    assert judge(problem, (half_up, scale)).stage == "codes"


FORMS = {
    "topk_softmax": Case.of("topk_softmax", T=4, E=4, k=2),
    "moe_align_block_size": Case.of("moe_align_block_size", T=4, E=4, k=2, B=4),
    "moe_permute": Case.of("moe_permute", T=4, E=4, k=2, K=4),
    "quantize_int8": Case.of("quantize_int8", V=4, K=4, G=-1),
}


@pytest.mark.parametrize("op", FORMS)
def test_results_of_the_wrong_form(op):
    problem = FORMS[op].build()
    for output, text in (
        (None, "returned None, must return ("),
        (torch.zeros(3), "returned Tensor, must return ("),
        ((torch.zeros(1),), "returned 1 values, must return ("),
        ([None] * (2 if op in ("topk_softmax", "quantize_int8") else 3), ": got None, must be a tensor"),
        ([torch.zeros(99)] * (2 if op in ("topk_softmax", "quantize_int8") else 3), ": got shape [99], must be ["),
    ):
        verdict = judge(problem, output)
        assert (verdict.status, verdict.tier) == ("illegal", "shape")
        assert text in verdict.summary[0]


def test_draws_used_here_do_repeat_and_ignore():
    ids, _ = draw_topk("repeat", 13, 5, 3, 4)
    assert any(len(set(row)) < 3 for row in ids.tolist())
    ids, _ = draw_topk("ignored", 13, 5, 3, 4)
    assert bool((ids < 0).any())
