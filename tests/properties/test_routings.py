"""Routing archetypes: who is chosen how often, what each archetype promises, and the statistics by hand."""

import itertools

import numpy as np
import pytest
import torch

from moeracle.properties.cases.optable import ROUTINGS
from moeracle.properties.cases.routings import draw_topk, popularity, routing_statistics

T, E, K = 200, 12, 4


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_ids_are_legal_and_weights_sum_to_one(routing: str, seed: int) -> None:
    ids, weights = draw_topk(routing, T, E, K, seed)
    assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
    assert ids.shape == weights.shape == (T, K)
    assert ids.max() < E
    assert ids.min() >= (-1 if routing == "ignored" else 0)
    assert (weights > 0.04).all()
    assert (weights.double().sum(1) - 1).abs().max() < 1e-6
    rows = [[e for e in row if e >= 0] for row in ids.tolist()]
    distinct = all(len(set(row)) == len(row) for row in rows)
    assert distinct == (routing != "repeat")


def test_same_seed_same_choice_and_other_seed_another() -> None:
    one, two, other = (draw_topk("zipf1", T, E, K, seed) for seed in (3, 3, 4))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


def test_balanced_is_consecutive() -> None:
    ids, _ = draw_topk("balanced", 3, 5, 3, 9)
    assert ids.tolist() == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


def test_onehot_has_one_expert_in_every_first_slot() -> None:
    ids, _ = draw_topk("onehot", T, E, K, 2)
    assert ids[:, 0].unique().numel() == 1
    assert not (ids[:, 1:] == ids[0, 0]).any()
    assert ids[:, 1:].unique().numel() == E - 1


def test_empty_leaves_half_of_the_experts_unused() -> None:
    ids, _ = draw_topk("empty", T, E, K, 2)
    assert ids.unique().numel() == E - E // 2
    assert draw_topk("empty", T, 4, 4, 2)[0].unique().numel() == 4  # k needs them all


def test_ignored_drops_slots_and_one_whole_token() -> None:
    ids, _ = draw_topk("ignored", T, E, K, 2)
    assert ids[0, 0] == -1
    assert (ids[-1] == -1).all()
    assert 0.2 < (ids == -1).float().mean() < 0.3


def test_repeat_repeats() -> None:
    ids, _ = draw_topk("repeat", T, E, K, 2)
    assert (ids[::2, 0] == ids[::2, 1]).all()
    assert draw_topk("repeat", 5, 1, 3, 2)[0].tolist() == [[0, 0, 0]] * 5


def test_hot16_lives_on_sixteen_experts() -> None:
    ids, _ = draw_topk("hot16", 500, 64, 8, 3)
    counts = torch.bincount(ids.flatten().long(), minlength=64).sort(descending=True).values
    assert counts[:16].min() > 100
    assert counts[16:].sum() < 10


@pytest.mark.parametrize("routing", ["uniform", "zipf1", "zipf2"])
def test_choices_follow_sampling_without_replacement(routing: str) -> None:
    """Each ordered pair's share against its probability p_i/S * p_j/(S - p_i), by a chi-square over 20 pairs."""
    tokens, experts = 40_000, 5
    ids, _ = draw_topk(routing, tokens, experts, 2, 17)
    order = torch.bincount(ids[:, 0].long(), minlength=experts).argsort(descending=True).tolist()
    p = 1.0 / np.arange(1, experts + 1) ** {"uniform": 0, "zipf1": 1, "zipf2": 2}[routing]
    p /= p.sum()
    chi = 0.0
    for i, j in itertools.permutations(range(experts), 2):
        expected = tokens * p[i] * p[j] / (1 - p[i])
        seen = int(((ids[:, 0] == order[i]) & (ids[:, 1] == order[j])).sum())
        chi += (seen - expected) ** 2 / expected
    assert chi < 50  # 19 degrees of freedom: beyond 50 in 1 of 7,500 draws


def test_popularity_by_hand() -> None:
    assert (popularity("zipf1", 4) / popularity("zipf1", 4)[0]).round(6).tolist() == [1, 0.5, 0.333333, 0.25]
    assert (popularity("zipf2", 3) / popularity("zipf2", 3)[0]).round(6).tolist() == [1, 0.25, 0.111111]
    assert popularity("hot16", 18).tolist() == [1_000_000] * 16 + [1, 1]


def test_dyadic_weights_are_powers_and_differ_between_neighbours() -> None:
    _, weights = draw_topk("uniform", T, E, K, 5, dyadic_steps=3)
    assert set(weights.flatten().tolist()) == {0.5, 0.25, 0.125}
    assert (weights[:, 1:] != weights[:, :-1]).all()


def test_single_choice_is_not_weighted_one() -> None:
    assert draw_topk("uniform", T, E, 1, 5)[1].max() < 0.7


def test_no_tokens() -> None:
    for routing in ROUTINGS:
        ids, weights = draw_topk(routing, 0, E, K, 5)
        assert ids.shape == weights.shape == (0, K)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"routing: got 'zipf', must be one of .*; did you mean 'zipf[12]'"):
        draw_topk("zipf", 1, 2, 1, 0)
    with pytest.raises(ValueError, match=r"k: got 3, must be 1\.\.E = 2"):
        draw_topk("uniform", 1, 2, 3, 0)
    with pytest.raises(ValueError, match="block_m: got 0"):
        routing_statistics(torch.zeros(1, 1), 1, 0)
    with pytest.raises(ValueError, match=r"ids: got 0\.\.2, must be within -1\.\.1"):
        routing_statistics(torch.tensor([[0, 2]]), 2, 16)


def test_statistics_by_hand() -> None:
    """Experts hold 20, 0, 3, 16, 1 rows: blocks 2, 0, 1, 1, 1 of 16; three of the five are skinny (4, 3 and 1 rows)."""
    ids = torch.tensor([[0] * 20 + [2] * 3 + [3] * 16 + [4] + [-1] * 2], dtype=torch.int32)
    assert routing_statistics(ids, 5, 16) == {
        "dead": 1,
        "mean": 10.0,
        "median": 9.5,
        "max": 20,
        "blocks": 5,
        "useful": 100 * 40 / 80,
        "skinny": 100 * 3 / 5,
    }
    assert routing_statistics(ids, 5, 8)["skinny"] == 100.0


def test_statistics_of_nothing() -> None:
    stats = routing_statistics(torch.zeros(0, 2, dtype=torch.int32), 3, 16)
    assert (stats["dead"], stats["blocks"], stats["useful"], stats["skinny"]) == (3, 0, 100.0, 0.0)
