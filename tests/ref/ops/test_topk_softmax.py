"""Routing: hand-worked rows, ties, non-finite logits, groups, and independence of rows and threads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from moeracle.ref.ops.grouped_topk import grouped_topk
from moeracle.ref.ops.topk_softmax import topk_sigmoid, topk_softmax, topk_then_softmax

NAN, INF = math.nan, math.inf
LOG2, LOG3 = math.log(2), math.log(3)
BF16 = torch.bfloat16


def test_softmax_by_hand():
    # exp: 1, 3, 2, 2 -> scores 1/8, 3/8, 1/4, 1/4; the tie of experts 2 and 3 goes to 2
    logits = torch.tensor([[0.0, LOG3, LOG2, LOG2]], dtype=torch.float64)
    weights, ids = topk_softmax(logits, 3, renormalize=False)
    assert ids.tolist() == [[1, 2, 3]]
    assert ids.dtype == torch.int32
    assert weights.tolist() == [[0.375, 0.25, 0.25]]
    assert weights.dtype == torch.float32
    weights, ids = topk_softmax(logits, 2, renormalize=True)
    assert ids.tolist() == [[1, 2]]
    assert torch.equal(weights, torch.tensor([[0.6, 0.4]]))  # 3/8 : 1/4, each the nearest fp32


def test_ties_take_the_lowest_ids_in_a_wide_row():
    logits = torch.zeros(2, 128)
    logits[1, 100] = 1.0
    weights, ids = topk_softmax(logits, 4, renormalize=True)
    assert ids.tolist() == [[0, 1, 2, 3], [100, 0, 1, 2]]
    assert weights[0].tolist() == [0.25] * 4


def test_ties_are_ties_of_scores_in_dtype():
    # logits 0 and 2^-40 have one fp32 score and two fp64 scores
    logits = torch.tensor([[0.0, 2.0**-40]], dtype=torch.float64)
    assert topk_softmax(logits, 1, renormalize=False)[1].tolist() == [[0]]
    assert topk_softmax(logits, 1, renormalize=False, dtype=torch.float64)[1].tolist() == [[1]]


@pytest.mark.parametrize(
    ("row", "ids", "weights"),
    [
        ([NAN, NAN, NAN, NAN], [0, 1], [0.0, 0.0]),
        ([0.0, 5.0, NAN, 1.0], [0, 1], [0.0, 0.0]),  # one NaN spoils the row's sum, so every score
        ([0.0, 5.0, INF, 1.0], [0, 1], [0.0, 0.0]),  # inf - inf
        ([-INF, -INF, -INF, -INF], [0, 1], [0.0, 0.0]),
        ([-INF, 0.0, -INF, -INF], [1, 0], [1.0, 0.0]),  # -inf is an ordinary score of 0
        ([-INF, 0.0, 0.0, -INF], [1, 2], [0.5, 0.5]),
    ],
)
@pytest.mark.parametrize("renormalize", [False, True])
def test_softmax_of_rows_that_are_not_finite(row, ids, weights, renormalize):
    got_weights, got_ids = topk_softmax(torch.tensor([row]), 2, renormalize=renormalize)
    assert got_ids.tolist() == [ids]
    assert got_weights.tolist() == [weights]


def test_sigmoid_by_hand():
    logits = torch.tensor([[0.0, LOG3, -LOG3, NAN, INF, -INF]], dtype=torch.float64)
    weights, ids = topk_sigmoid(logits, 6, renormalize=False)
    assert ids.tolist() == [[4, 1, 0, 2, 3, 5]]
    assert weights.tolist() == [[1.0, 0.75, 0.5, 0.25, 0.0, 0.0]]
    assert torch.equal(topk_sigmoid(logits[:, :2], 2, renormalize=True)[0], torch.tensor([[0.6, 0.4]]))
    assert topk_sigmoid(torch.full((1, 3), -200.0), 2, renormalize=True)[0].tolist() == [[0.0, 0.0]]  # fp32 scores 0


def test_then_softmax_by_hand():
    logits = torch.tensor([[1.0, 3.0, -2.0, 3.0]]).to(BF16)
    weights, ids = topk_then_softmax(logits, 2)
    assert ids.tolist() == [[1, 3]]
    assert weights.tolist() == [[0.5, 0.5]]
    weights, ids = topk_then_softmax(logits, 3)
    # softmax(3, 3, 1) = 0.46831, 0.46831, 0.06338; nearest bf16 0.46875 (0x3EF0), 0.0634765625 (0x3D82)
    assert ids.tolist() == [[1, 3, 0]]
    assert weights.tolist() == [[0.46875, 0.46875, 0.0634765625]]
    assert weights.dtype == torch.float32


def test_then_softmax_lets_nan_through_and_ranks_it_with_inf():
    weights, ids = topk_then_softmax(torch.tensor([[0.0, INF, NAN, 1.0], [0.0, 1.0, -INF, -INF]]), 2)
    assert ids.tolist() == [[1, 2], [1, 0]]
    assert weights[0].isnan().all()
    assert not weights[1].isnan().any()


def test_groups_without_bias_are_ranked_by_their_best():
    # groups (0.75, 0.75), (0.9, 0.1): the second has the best expert, the first the better pair
    logits = torch.logit(torch.tensor([[0.75, 0.75, 0.9, 0.1]], dtype=torch.float64))
    weights, ids = grouped_topk(logits, 2, num_expert_group=2, topk_group=1, renormalize=False, scoring="sigmoid")
    assert ids.tolist() == [[2, 3]]
    assert torch.equal(weights, torch.tensor([[0.9, 0.1]]))


def test_groups_with_bias_are_ranked_by_their_best_two_and_weights_are_unbiased():
    logits = torch.logit(torch.tensor([[0.75, 0.75, 0.9, 0.1]], dtype=torch.float64))
    options: dict[str, Any] = {"num_expert_group": 2, "topk_group": 1, "scoring": "sigmoid"}
    weights, ids = grouped_topk(logits, 2, renormalize=False, bias=torch.zeros(4), **options)
    assert ids.tolist() == [[0, 1]]
    assert weights.tolist() == [[0.75, 0.75]]
    # a bias on expert 3 makes its group win (0.9 + 0.85) and puts it behind expert 2; its weight stays 0.1
    bias = torch.tensor([0.0, 0.0, 0.0, 0.75])
    weights, ids = grouped_topk(logits, 2, renormalize=False, bias=bias, **options)
    assert ids.tolist() == [[2, 3]]
    assert torch.equal(weights, torch.tensor([[0.9, 0.1]]))
    # a larger one puts it first: emitted in the order of choice
    weights, ids = grouped_topk(logits, 2, renormalize=False, bias=2 * bias, **options)
    assert ids.tolist() == [[3, 2]]
    assert torch.equal(weights, torch.tensor([[0.1, 0.9]]))


def test_group_scaling_is_applied_once_after_renormalizing():
    logits = torch.tensor([[0.0, LOG3, -INF, -INF]], dtype=torch.float64)
    options: dict[str, Any] = {
        "num_expert_group": 1,
        "topk_group": 1,
        "scoring": "sigmoid",
        "routed_scaling_factor": 2.5,
    }
    weights, ids = grouped_topk(logits, 2, renormalize=True, **options)
    assert ids.tolist() == [[1, 0]]
    assert weights.tolist() == [[1.5, 1.0]]  # 2.5 * (0.6, 0.4)
    assert grouped_topk(logits, 2, renormalize=False, **options)[0].tolist() == [[1.875, 1.25]]  # 2.5 * (0.75, 0.5)


def test_tied_groups_and_experts_take_the_lowest():
    options: dict[str, Any] = {"num_expert_group": 4, "topk_group": 2, "renormalize": True}
    for bias in (None, torch.zeros(8)):
        _, ids = grouped_topk(torch.zeros(1, 8), 3, bias=bias, **options)
        assert ids.tolist() == [[0, 1, 2]]
    _, ids = grouped_topk(torch.full((1, 8), NAN), 4, **options)
    assert ids.tolist() == [[0, 1, 2, 3]]


def test_biases_below_zero_do_not_admit_experts_of_dropped_groups():
    bias = torch.full((4,), -5.0)
    _, ids = grouped_topk(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), 2, num_expert_group=2, topk_group=1, renormalize=True,
                          scoring="sigmoid", bias=bias)  # fmt: skip
    assert ids.tolist() == [[2, 3]]


def test_one_group_is_plain_topk():
    logits = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"num_expert_group": 1, "topk_group": 1}
    for renormalize in (False, True):
        plain = topk_softmax(logits, 5, renormalize=renormalize)
        grouped = grouped_topk(logits, 5, renormalize=renormalize, **options)
        assert all(torch.equal(p, g) for p, g in zip(plain, grouped, strict=True))
        plain = topk_sigmoid(logits, 5, renormalize=renormalize)
        grouped = grouped_topk(logits, 5, renormalize=renormalize, scoring="sigmoid", **options)
        assert all(torch.equal(p, g) for p, g in zip(plain, grouped, strict=True))


def test_group_choice_against_plain_loops():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(-3, 4, (60, 12), generator=generator).to(torch.float32)  # many ties
    bias = torch.randint(-2, 3, (12,), generator=generator) / 8
    _, ids = grouped_topk(logits, 3, num_expert_group=4, topk_group=2, renormalize=True, scoring="sigmoid", bias=bias)
    choice = (torch.sigmoid(logits.double()).float() + bias).tolist()
    for t, row in enumerate(choice):
        score = [sum(sorted(row[3 * g : 3 * g + 3])[-2:]) for g in range(4)]
        kept = sorted(range(4), key=lambda g: (-torch.tensor(score[g]).float().item(), g))[:2]
        experts = [e for e in range(12) if e // 3 in kept]
        assert ids[t].tolist() == sorted(experts, key=lambda e: (-row[e], e))[:3], (t, row, score)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("route", [topk_softmax, topk_sigmoid])
def test_properties(route, dtype):
    logits = (torch.randn(200, 33, generator=torch.Generator().manual_seed(2)) * 3).to(dtype)
    weights, ids = route(logits, 7, renormalize=False)
    assert all(len(set(row)) == 7 for row in ids.tolist())
    assert (weights.diff(dim=1) <= 0).all()
    chosen = logits.gather(1, ids.long())
    rest = logits.scatter(1, ids.long(), -INF)
    assert (rest.max(dim=1).values <= chosen.min(dim=1).values).all()
    wide = torch.softmax(logits.double(), 1) if route is topk_softmax else torch.sigmoid(logits.double())
    torch.testing.assert_close(weights.double(), wide.gather(1, ids.long()), rtol=2**-24, atol=0)
    renormalized, same = route(logits, 7, renormalize=True)
    assert torch.equal(ids, same)
    torch.testing.assert_close(renormalized.sum(1), torch.ones(200), rtol=0, atol=7 * 2**-24)


def test_neither_threads_nor_neighbours_nor_strides_change_a_row():
    logits = torch.randn(3000, 257, generator=torch.Generator().manual_seed(3))
    threads = torch.get_num_threads()
    for route in (topk_softmax, topk_sigmoid):
        try:
            torch.set_num_threads(1)
            one = route(logits, 8, renormalize=True)
            torch.set_num_threads(2)
            two = route(logits, 8, renormalize=True)
        finally:
            torch.set_num_threads(threads)
        alone = [torch.cat(parts) for parts in zip(*(route(logits[t : t + 1], 8, renormalize=True) for t in range(40)),
                                                  strict=True)]  # fmt: skip
        strided = route(logits.T.contiguous().T[::3], 8, renormalize=True)
        for part in range(2):
            assert torch.equal(one[part], two[part])
            assert torch.equal(one[part][:40], alone[part])
            assert torch.equal(one[part][::3], strided[part])


def test_no_tokens():
    for weights, ids in (
        topk_softmax(torch.zeros(0, 8), 2, renormalize=True),
        topk_sigmoid(torch.zeros(0, 8), 2, renormalize=True),
        topk_then_softmax(torch.zeros(0, 8, dtype=BF16), 2),
        grouped_topk(torch.zeros(0, 8), 2, num_expert_group=2, topk_group=1, renormalize=True, bias=torch.zeros(8)),
    ):
        assert weights.shape == ids.shape == (0, 2)
        assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)


def test_refusals():
    x = torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"top_k: got 9, must be 1\.\.8"):
        topk_softmax(x, 9, renormalize=True)
    with pytest.raises(ValueError, match="top_k: got 0"):
        topk_sigmoid(x, 0, renormalize=True)
    with pytest.raises(ValueError, match=r"logits: got shape \(8,\)"):
        topk_softmax(x[0], 1, renormalize=True)
    with pytest.raises(ValueError, match=r"logits: got torch\.int64"):
        topk_softmax(x.long(), 1, renormalize=True)
    with pytest.raises(ValueError, match=r"dtype: got torch\.bfloat16"):
        topk_softmax(x, 1, renormalize=True, dtype=BF16)
    with pytest.raises(ValueError, match=r"logits: got torch\.float64"):
        topk_then_softmax(x.double(), 1)

    def grouped(**changed):
        options: dict[str, Any] = {"num_expert_group": 4, "topk_group": 2, "renormalize": True, "top_k": 2} | changed
        return grouped_topk(x, **options)

    with pytest.raises(ValueError, match="num_expert_group: got 3, must divide E = 8"):
        grouped(num_expert_group=3)
    with pytest.raises(ValueError, match=r"topk_group: got 5, must be 1\.\.4"):
        grouped(topk_group=5)
    with pytest.raises(ValueError, match=r"top_k: got 5, must be 1\.\.4"):
        grouped(top_k=5)
    with pytest.raises(ValueError, match="did you mean 'softmax'"):
        grouped(scoring="softmx")
    with pytest.raises(ValueError, match=r"bias: got shape \(4,\)"):
        grouped(bias=torch.zeros(4))
    with pytest.raises(ValueError, match="bias: got a value that is not finite"):
        grouped(bias=torch.full((8,), NAN))
