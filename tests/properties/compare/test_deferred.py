"""Judging by Bands whose ends are left open finds the same elements illegal as judging by the Bands themselves."""

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.record import record_of
from moeracle.properties.compare.floats import tallied
from moeracle.properties.compare.tally import Tally
from moeracle.properties.simulate import simulation_of
from moeracle.ref.bounds import deferred, near
from moeracle.ref.bounds.band import exactly
from moeracle.ref.bounds.deferred import Deferred, whole
from moeracle.ref.bounds.moe_w4a16 import ExpertWeights, layer_bands
from moeracle.ref.contracts.contract import contract
from moeracle.ref.weights.weight import Int4Weight

CASES = (
    "moe_w4a16/T24-E4-k3-H192-I64-G32/bf16/exllama-sym/zipf1/normal/s1",
    "moe_w4a16/T24-E4-k2-H128-I96-G32/fp16/awq-asym/ignored/outliers/s2",
    "moe_w4a16/T24-E4-k2-H128-I128-G128/bf16/gptq-v1/uniform/subnormal/s3",
)
DEFER = (
    "grouped",
    "gptq_awq",
    "marlin",
    "et_vecmat",
    "grouped,router_weight=input",
    "vllm@0.33:marlin,store_rounding=rtz",
)
FOLLOWED = "grouped,schedule=wgmma.k16.sm90/t64"  # one legal value, worked out where the interval holds two
# Ends that are needed at once, or one legal value, or one of which only what it is stored as would be known.
DO_NOT = ("wvsplitk,ftz=true", "grouped,schedule=fma", f"{FOLLOWED},router_weight=input")


@pytest.mark.parametrize("rules", [*DEFER, FOLLOWED, *DO_NOT])
def test_the_same_elements_are_illegal(rules, monkeypatch):
    monkeypatch.setattr(deferred, "WORTH_IT", 1)
    named, illegal, left_open = contract(rules), 0, []
    for text in CASES:
        case = Case.parse(text)
        problem, record = case.build(), record_of(case.op)
        stages = simulation_of(case.op, named).moe_w4a16(*problem.args.values())
        for damage in (_a_step_up, _much):
            wrong = {name: damage(stage) for name, stage in stages.items() if name in named.stores}
            whole = {name: Tally(name, got, named.of_stage(name, got.dtype), sample=64) for name, got in wrong.items()}
            for stage, rows, first, band in record.bands(problem, named, wrong, exact=False):
                if stage in whole:
                    whole[stage].visit(rows, band, first)
            for stage, _, _, band in record.judged_bands(problem, named, wrong, exact=False):
                left_open += [stage] * isinstance(band, Deferred)
            for tally in tallied(problem, wrong, named, sample=64):
                expected, got = whole[tally.result.stage], tally.result
                assert torch.equal(tally.illegal_mask(), expected.illegal_mask()), (text, got.stage)
                counts = (got.illegal, got.judged, got.exact)
                assert counts == (expected.result.illegal, expected.result.judged, expected.result.exact)
                illegal += got.illegal
    assert illegal
    assert ("h" in left_open) == (rules not in DO_NOT)


@pytest.mark.parametrize("rules", ["vllm@0.33:marlin_w8", "wmma,one_group=after_sum", "grouped"])
def test_open_ends_are_those_of_the_band(rules):
    draw, named = torch.Generator().manual_seed(1), contract(rules)
    codes = torch.randint(0, 16, (2, 64, 1024), generator=draw, dtype=torch.uint8)
    scale = (torch.rand(2, 64, 1, generator=draw) * 0.02 + 0.005).bfloat16()
    w = Int4Weight.from_codes(codes, scale, layout="compressed_tensors")
    x, rows = torch.randn(512, 1024, generator=draw).bfloat16(), [(0, torch.arange(200)), (1, torch.arange(312))]
    band = ExpertWeights(w, named, torch.bfloat16).dots(rows, exactly(x), False)
    found = ExpertWeights(w, named, torch.bfloat16, defer=True).deferred(rows, x, False)
    assert isinstance(found, Deferred)
    for mine, ends in ((found.whole(), (band.lo, band.hi)), (found.rows(torch.arange(9)), (band.lo[:9], band.hi[:9]))):
        share = (mine.hi - mine.lo) / (ends[1] - ends[0])
        assert float(share.min()) > 0.999
        assert float(share.max()) < 1.001


def test_a_sum_that_a_router_weight_multiplies_is_not_known_by_how_it_is_stored():
    """Every sampled row has weight 1; the other's sum was rounded to D before its weight, which no sample shows."""
    draw, rules = torch.Generator().manual_seed(2), contract("grouped,schedule=wgmma.k16.sm90,router_weight=input")
    make = lambda N, K: Int4Weight.from_codes(
        torch.randint(0, 16, (1, N, K), generator=draw, dtype=torch.uint8),
        (torch.rand(1, N, 1, generator=draw) * 0.02 + 0.005).bfloat16(), layout="exllama")  # fmt: skip
    T, w13, w2 = 256, make(128, 64), make(64, 64)
    x, ids = torch.randn(T, 64, generator=draw).bfloat16(), torch.zeros(T, 1, dtype=torch.int32)
    weight = torch.full((T, 1), 1.0)
    weight[1] = 0.7
    given = {"h": torch.zeros(T, 128), "a": torch.zeros(T, 64), "y": torch.zeros(T, 64)}
    given = {name: stage.bfloat16() for name, stage in given.items()}
    illegal = []
    for defer in (None, False, True):  # None: the sums themselves
        one = torch.ones_like(weight) if defer is None else weight
        tally = Tally("h", given["h"], rules)
        for stage, rows, band in layer_bands(x, w13, w2, one, ids, rules, given=given, defer=bool(defer)):
            if stage == "h" and defer is None:
                given["h"] = (whole(band).lo.bfloat16().float() * weight).bfloat16()
            elif stage == "h":
                tally.visit(rows, band)
        illegal += [tally.result.illegal] * (defer is not None)
    assert illegal[0] == illegal[1] > 10


def test_a_unit_that_is_not_as_known_is_not_believed(monkeypatch):
    """Its products are a little too large, and so are the kernel's: the samples show it, and fp64 judges."""
    monkeypatch.setattr(deferred, "WORTH_IT", 1)
    monkeypatch.setattr(near, "_multiply", lambda a, w, out: torch.mm(a.float(), w.T, out=out).mul_(1.01))
    case, rules = Case.parse(CASES[0]), contract("grouped")
    problem = case.build()
    right = simulation_of(case.op, rules).moe_w4a16(*problem.args.values())
    wrong = {**right, "y": (right["y"].float() * 1.01).to(right["y"].dtype)}
    found = {tally.result.stage: tally.result.illegal for tally in tallied(problem, right, rules, sample=64)}
    assert found == {"h": 0, "a": 0, "y": 0, "out": 0}
    found = {tally.result.stage: tally.result.illegal for tally in tallied(problem, wrong, rules, sample=64)}
    assert found["y"] > right["y"].numel() // 3


def _a_step_up(stage):
    """One element a step away, which alone is illegal."""
    wrong = stage.clone()
    at = int(stage.float().abs().argmax())
    wrong.view(-1)[at] *= 1 + 2 * torch.finfo(stage.dtype).eps
    return wrong


def _much(stage):
    """Some elements a step up, which is legal for a few, one doubled, and one NaN."""
    wrong = stage.clone()
    flat, at = wrong.view(-1), torch.randperm(wrong.numel(), generator=torch.Generator().manual_seed(1))
    flat[at[:40]] += flat[at[:40]].abs() * torch.finfo(stage.dtype).eps
    flat[at[40]] *= 2
    flat[at[41]] = torch.nan
    return wrong
