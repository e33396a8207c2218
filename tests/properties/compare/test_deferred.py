"""Judging by Bands whose ends are left open finds the same elements illegal as judging by the Bands themselves."""

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.record import record_of
from moeracle.properties.compare.floats import tallied
from moeracle.properties.compare.tally import Tally
from moeracle.properties.simulate import simulation_of
from moeracle.ref.bounds import deferred, near
from moeracle.ref.bounds.deferred import Deferred
from moeracle.ref.contracts.contract import contract

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
DO_NOT = ("wvsplitk,ftz=true", "grouped,schedule=fma")  # ends that are needed at once, or one legal value


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
