"""The grouped router against the rule written out in fp64, over groups that fill no tile, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.triton.grouped_topk import grouped_topk


def by_rule(logits, bias, groups, kept, k, scoring, renormalize, factor):
    """Weights and ids of one row at a time, in fp64."""
    weights, ids = [], []
    for row in logits.double():
        s = torch.softmax(row, 0) if scoring == "softmax" else torch.sigmoid(row)
        c = s if bias is None else s + bias.double()
        parts = c.reshape(groups, -1).tolist()
        of_group = [sum(sorted(part)[-2:]) if bias is not None else max(part) for part in parts]
        best = sorted(range(groups), key=lambda g: (-of_group[g], g))[:kept]
        able = [e for e in range(len(row)) if e // len(parts[0]) in best]
        chosen = sorted(able, key=lambda e: (-float(c[e]), e))[:k]
        w = s[chosen]
        weights.append((w / w.sum() if renormalize else w) * factor)
        ids.append(chosen)
    return torch.stack(weights), torch.tensor(ids)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("E", "groups", "kept", "k"), [(12, 4, 2, 5), (15, 5, 3, 4), (6, 6, 2, 2), (7, 1, 1, 7)])
def test_follows_the_rule(device, E, groups, kept, k, biased, scoring):
    g = torch.Generator().manual_seed(E)
    logits = torch.randn(6, 2 * E, generator=g)[:, ::2]
    bias = torch.randn(E, generator=g) / 4 if biased else None
    moved = None if bias is None else bias.to(device)
    for renormalize, factor in ((False, 1.0), (True, 2.5)):
        want = by_rule(logits, bias, groups, kept, k, scoring, renormalize, factor)
        got = grouped_topk(logits.to(device), moved, groups, kept, k, scoring, renormalize, factor)
        assert torch.equal(got[1].cpu().long(), want[1])
        assert torch.allclose(got[0].cpu().double(), want[0], rtol=1e-5, atol=0)


def test_rows_without_scores_choose_the_first_ids_and_weigh_nothing(device):
    logits = torch.tensor([[torch.nan] * 8, [-torch.inf] * 8, [0.0] * 7 + [torch.inf]], device=device)
    weights, ids = grouped_topk(logits, None, 4, 2, 3, "softmax", True, 2.5)
    assert ids.tolist() == [[0, 1, 2]] * 3
    assert weights.tolist() == [[0.0] * 3] * 3


@pytest.mark.parametrize(("change", "message"), [
    ({"num_groups": 3}, "num_groups: got 3, must divide E = 8"),
    ({"topk_group": 5}, "topk_group: got 5, must be in 1..4"),
    ({"top_k": 5}, "top_k: got 5, must be in 1..4, the experts that are kept"),
    ({"scoring": "relu"}, "scoring: got 'relu', must be softmax or sigmoid"),
    ({"correction_bias": torch.zeros(7)}, "correction_bias: got shape (7,), must be (8,)"),
])  # fmt: skip
def test_mistakes(device, change, message):
    arguments = dict(correction_bias=None, num_groups=4, topk_group=2, top_k=2, scoring="softmax")
    arguments |= {"renormalize": True, "routed_scaling_factor": 1.0, **change}
    with pytest.raises(ValueError, match=r"^\w+: got") as error:
        grouped_topk(torch.zeros(2, 8, device=device), **arguments)
    assert str(error.value) == message
