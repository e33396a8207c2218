"""The judges of routing and dispatch in numbers: the spread of a weight, what -1 may not hide, which note is given."""

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.compare.topk import Scores, chosen_weights
from moeracle.properties.judge import judge
from moeracle.ref import moe_align_block_size, topk_softmax

RELATIVE = 2.0**-20


@pytest.mark.parametrize("T", [1, 3])
def test_the_spread_of_a_weight_is_the_formula(T):
    value = torch.tensor([[0.5, 0.25, 2.0**-130, 0.25, 0.0]], dtype=torch.float64).expand(T, 5)
    scores = Scores(value, torch.full((T, 5), RELATIVE, dtype=torch.float64), torch.zeros(T, 1, dtype=torch.bool))
    ids = torch.tensor([[0, 1, 2]]).expand(T, 3)
    expected, spread = chosen_weights(scores, ids, False)
    assert torch.equal(expected, value[:, :3])
    assert spread[0].tolist() == [0.5 * RELATIVE, 0.25 * RELATIVE, 2.0**-130 * (1 + RELATIVE) + 2.0**-149]
    expected, spread = chosen_weights(scores, ids, True)
    share = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    assert expected[0, :2].tolist() == pytest.approx(share.tolist())
    bound = share * (2 * RELATIVE + (3 + 4) * 2.0**-24)  # its own error, the sum's, and k + 4 roundings
    assert spread[0, :2].tolist() == pytest.approx(bound.tolist(), rel=1e-12)
    nothing, _ = chosen_weights(scores, torch.full((T, 2), 4), True)
    assert nothing[0].tolist() == [0.0, 0.0]


def routed(logits, k=2):
    T, E = logits.shape
    problem = Case.of("topk_softmax", T=T, E=E, k=k, dtype="fp32").build()
    problem.args["logits"] = logits
    return problem, topk_softmax(logits, k, renormalize=False)


def test_minus_one_is_wrong_where_expert_0_was_due():
    problem, (weights, ids) = routed(torch.tensor([[3.0, 2.0, 1.0, 0.0]]))
    assert judge(problem, (weights, ids)).ok
    for wrong in (-1, 4, 9):
        other = torch.where(ids == 0, wrong, ids).int()
        assert f"got {wrong}, must be 0..3" in judge(problem, (weights, other)).summary[0]


def test_a_wrong_id_is_told_with_the_one_that_was_due():
    problem, (weights, ids) = routed(torch.tensor([[1.0, 2.0, 5.0, 4.0]]))
    verdict = judge(problem, (weights, ids.clone().fill_(0)))
    assert verdict.summary[0].endswith("ids[token 0, slot 0]: got 0 (logit 1), legal 2 (logit 5)")
    problem, (weights, ids) = routed(torch.tensor([[1.0, torch.nan, 5.0, 4.0]]))
    assert ids.tolist() == [[0, 1]]
    verdict = judge(problem, (weights, torch.tensor([[3, 1]], dtype=torch.int32)))
    assert "got 3 (logit 4), legal 0 (logit 1)" in verdict.summary[0]


def test_only_blocks_past_the_end_are_told_about_f11():
    problem = Case.of("moe_align_block_size", T=5, E=4, k=2, B=4, seed=3).build()
    args = problem.args
    ids, experts, end = moe_align_block_size(args["topk_ids"], args["block_size"], args["num_experts"])
    past = int(end) // args["block_size"]
    assert past < len(experts)
    for place, value, told in ((past, 0, True), (past, -7, True), (0, 3, False)):
        wrong = experts.clone()
        wrong[place] = value
        assert judge(problem, (ids, wrong, end)).tier == "bits"
        assert ("F11" in "".join(judge(problem, (ids, wrong, end)).summary)) == told
