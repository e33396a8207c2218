"""When judge() asks for a diagnosis, and that torch's own refusals do not stop it."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.ref import topk_softmax

judging = importlib.import_module("moeracle.properties.judge")  # the package gives the function that name
ROUTING = Case.of("topk_softmax", T=3, E=4, k=2, dtype="fp32", seed=2)


@pytest.fixture
def diagnosed(monkeypatch):
    """Return the list of verdicts that were sent to be diagnosed."""
    sent = []
    monkeypatch.setattr(judging, "_diagnosed", lambda verdict, *_: sent.append(verdict) or verdict)
    return sent


def test_wrong_integers_are_diagnosed_unless_told_not_to(diagnosed):
    problem = ROUTING.build()
    weights, ids = topk_softmax(problem.args["logits"], 2, renormalize=problem.args["renormalize"])
    assert judging.judge(problem, (weights, ids)).ok
    assert judging.judge(problem, (weights, ids.long())).tier == "shape"
    assert judging.judge(problem, (weights, ids.flip(1)), explain=False).status == "illegal"
    assert not diagnosed
    verdict = judging.judge(problem, (weights, ids.flip(1)))
    assert diagnosed == [verdict]


def test_a_drift_is_diagnosed_unless_told_not_to(diagnosed, monkeypatch):
    stage = SimpleNamespace(stage="out", illegal=0, drift=SimpleNamespace(complaint=["biased"]))
    tally = SimpleNamespace(result=stage, vacuous="", finish=lambda conditioned: stage)
    monkeypatch.setattr(judging, "tallied", lambda *_: [tally])
    monkeypatch.setattr(judging, "failed", lambda verdict, tier, *_: setattr(verdict, "tier", tier) or verdict)
    problem = Case.of("silu_and_mul", T=2, I=8).build()
    out = torch.zeros(2, 8, dtype=torch.bfloat16)
    assert judging.judge(problem, out, explain=False).tier == "statistics"
    assert not diagnosed
    assert judging.judge(problem, out).tier == "statistics"
    assert len(diagnosed) == 1


def test_torch_may_refuse_to_say_which_precision_it_uses(monkeypatch):
    def refuse():
        raise RuntimeError("mixed switches")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    problem = ROUTING.build()
    assert judging.judge(problem, topk_softmax(problem.args["logits"], 2, renormalize=False)).status
