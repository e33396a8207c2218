"""Routing: every fp32 softmax passes, near-ties may fall either way, every planted fault is told with its place."""

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.judge import judge

SOFTMAX = {
    "torch": lambda l: torch.softmax(l, -1),
    "exp": lambda l: (e := torch.exp(l - l.amax(1, keepdim=True))) / e.sum(1, keepdim=True),
    "exp2": lambda l: (e := torch.exp2((l - l.amax(1, keepdim=True)) * 1.44269504)) / e.sum(1, keepdim=True),
    "rcp": lambda l: (e := torch.exp(l - l.amax(1, keepdim=True))) * (1 / e.sum(1, keepdim=True)),
    "flushed": lambda l: torch.where((s := torch.softmax(l, -1)) < 2.0**-126, 0.0, s),
    "one by one": lambda l: (e := torch.exp(l - l.amax(1, keepdim=True))) / e.cumsum(1)[:, -1:],
    "fp64": lambda l: torch.softmax(l.double(), -1).float(),
}


def choose(scores, k, renormalize):
    """k argmax passes over fp32 scores, the lowest id first among equals."""
    scores = torch.where(scores.isfinite().all(1, keepdim=True), scores, 0.0)
    left, ids = scores.clone(), []
    for _ in range(k):
        ids.append((left == left.amax(1, keepdim=True)).int().argmax(1, keepdim=True))
        left.scatter_(1, ids[-1], -1.0)
    ids = torch.cat(ids, 1) if ids else scores[:, :0].int()
    weights = scores.gather(1, ids)
    if renormalize:
        total = weights.sum(1, keepdim=True)
        weights = weights / torch.where(total > 0, total, 1.0)
    return weights, ids.int()


@pytest.mark.parametrize("form", SOFTMAX)
@pytest.mark.parametrize("data", ["normal", "ties", "nonfinite", "outliers", "wide"])
def test_every_fp32_softmax_is_legal(form, data):
    for seed, (E, k) in enumerate([(8, 2), (64, 8), (256, 8), (5, 5), (128, 1), (9, 9)]):
        for dtype in ("bf16", "fp16", "fp32"):
            for flags in ((), ("renorm",)):
                case = Case.of("topk_softmax", T=33, E=E, k=k, dtype=dtype, data=data, seed=seed, flags=flags)
                problem = case.build()
                output = choose(SOFTMAX[form](problem.args["logits"].float()), k, bool(flags))
                verdict = judge(problem, output)
                assert verdict.ok, (form, verdict.text())


def test_a_near_tie_may_fall_either_way_and_a_real_tie_may_not():
    problem = Case.of("topk_softmax", T=2, E=4, k=2, dtype="fp32").build()
    near = 1 + 2.0**-23
    problem.args["logits"] = torch.tensor([[0.0, 1.0, near, -1.0], [0.0, 1.0, 1.0, -1.0]])
    scores = torch.softmax(problem.args["logits"], -1)
    for ids, legal in (([[1, 2], [1, 2]], True), ([[2, 1], [1, 2]], True), ([[1, 2], [2, 1]], False)):
        ids = torch.tensor(ids).int()
        assert judge(problem, (scores.gather(1, ids.long()), ids)).ok == legal


def topk_case(**fields):
    problem = Case.of("topk_softmax", T=16, E=16, k=4, **fields).build()
    return problem, choose(torch.softmax(problem.args["logits"].float(), -1), 4, "renorm" in problem.case.flags)


def test_topk_faults():
    problem, (weights, ids) = topk_case(data="ties", dtype="fp32")
    last_first = 15 - choose(torch.softmax(problem.args["logits"].flip(1), -1), 4, False)[1]
    verdict = judge(problem, (weights, last_first))  # F18
    assert (verdict.tier, verdict.stage) == ("bits", "ids")
    assert "first ids[token 0, slot 0]: got 15 (logit" in verdict.summary[0]
    assert ", legal 0 (logit" in verdict.summary[0]

    problem, (weights, ids) = topk_case()
    second = ids.clone()
    second[3, 1] = second[3, 0]
    verdict = judge(problem, (weights, second))
    assert "ids[token 3, slot 1]: got" in verdict.summary[0]
    assert verdict.summary[0].endswith("chosen already in slot 0")
    for bad, text in ((-1, "got -1, must be 0..15"), (16, "got 16, must be 0..15")):
        wrong = ids.clone()
        wrong[0, 3] = bad
        assert judge(problem, (weights, wrong)).summary[0].endswith(text)
    swapped = ids[:, [1, 0, 2, 3]], weights[:, [1, 0, 2, 3]]
    assert judge(problem, (swapped[1], swapped[0])).stage == "ids"  # not descending
    passed_over = ids.clone()
    passed_over[5, 3] = next(e for e in range(16) if e not in ids[5].tolist())
    scores = torch.softmax(problem.args["logits"].float(), -1)
    assert judge(problem, (scores.gather(1, passed_over.long()), passed_over)).illegal in (0, 1)
    assert judge(problem, (scores.gather(1, ids.flip(1).long()), ids.flip(1))).illegal > 8


def test_topk_weights_faults():
    problem, (weights, ids) = topk_case(flags=("renorm",))
    plain = torch.softmax(problem.args["logits"].float(), -1).gather(1, ids.long())
    verdict = judge(problem, (plain, ids))  # F32: no renormalization
    assert (verdict.tier, verdict.stage) == ("interval", "weights")
    in_dtype = weights.bfloat16().float()
    assert judge(problem, (in_dtype, ids)).stage == "weights"
    nan = weights.clone()
    nan[2, 1] = torch.nan
    verdict = judge(problem, (nan, ids))
    assert verdict.tier == "nonfinite"
    assert "first weights[token 2, slot 1]: got nan, legal" in verdict.summary[0]
    assert verdict.summary[1] == "in 1 of 16 tokens"


def test_f17_nan_logits_must_not_choose_an_expert_twice():
    problem, (weights, ids) = topk_case(data="nonfinite")
    assert judge(problem, (weights, ids)).ok
    clamped = ~problem.args["logits"].float().amax(1).isfinite()
    assert ids[clamped].tolist() == [[0, 1, 2, 3]] * int(clamped.sum())
    twice = ids.clone()
    twice[clamped] = 0
    assert judge(problem, (weights, twice)).illegal == 3 * int(clamped.sum())


def test_wrong_dtypes_and_devices():
    problem, (weights, ids) = topk_case()
    assert judge(problem, (weights, ids.long())).summary == ["ids: got dtype torch.int64, must be torch.int32"]
    assert judge(problem, (weights.to("meta"), ids)).summary == ["weights: got device meta, must be cpu"]
    assert judge(problem, (weights, ids.to_sparse())).tier == "shape"
