"""Bands over ranks: every order of adding partial sums lies inside, few orders leave few values, text reads back."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
import torch

from moeracle.ref.bounds.band import Band, exactly, join_band
from moeracle.ref.bounds.ranks import join_ranks, kept_band, partial_bands
from moeracle.ref.contracts.contract import contract
from moeracle.ref.contracts.ranks import Ranks
from moeracle.ref.rounding import round_in_fp64

D = torch.bfloat16


def added(terms: list[torch.Tensor], rng: random.Random) -> torch.Tensor:
    """Add in a tree drawn at random, each sum rounded to D."""
    terms = list(terms)
    while len(terms) > 1:
        a, b = terms.pop(rng.randrange(len(terms))), terms.pop(rng.randrange(len(terms)))
        terms.append(round_in_fp64(a + b, D))
    return terms[0]


def partials(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 64, generator=generator).to(D).double() for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3, 4, 6, 8, 16])
def test_any_tree_of_ranks_lies_in_the_band_which_is_no_wider_than_ranks_demand(count: int) -> None:
    terms, rng = partials(count), random.Random(count)
    rules = contract(f"grouped,ranks={count}/dtype/add=dtype")
    band = join_ranks([exactly(t) for t in terms], rules, D)
    for _ in range(60):
        total = added(terms, rng)
        assert bool(((band.lo <= total) & (total <= band.hi)).all())
    if count == 2:
        assert torch.equal(band.lo, band.hi)
    largest = torch.stack(terms).abs().sum(0)
    assert bool((band.hi - band.lo <= 2 * (count - 1) * 2.0**-8 * largest).all())
    assert not bool((band.lo <= 0).logical_and(band.hi >= 0).all())


def test_the_least_of_all_trees_is_the_least_that_brute_force_finds() -> None:
    terms = partials(4, seed=3)
    plus = lambda a, b: round_in_fp64(a + b, D)
    chains = [functools.reduce(plus, order) for order in itertools.permutations(terms)]
    pairs = [plus(plus(a, b), plus(c, d)) for a, b, c, d in itertools.permutations(terms)]
    values = torch.stack(chains + pairs)
    band = join_band([exactly(t) for t in terms], "any", D, trees=True)
    assert torch.equal(band.lo, values.amin(0))
    assert torch.equal(band.hi, values.amax(0))
    narrower = join_band([exactly(t) for t in terms], "any", D)
    assert torch.equal(narrower.lo, torch.stack(chains).amin(0))
    assert bool((narrower.lo > band.lo).any())  # trees reach further than one term after another


def test_a_ring_begins_at_any_rank_and_a_named_order_is_one_value() -> None:
    terms = partials(4, seed=5)
    plus = lambda a, b: round_in_fp64(a + b, D)
    turns = torch.stack([functools.reduce(plus, terms[r:] + terms[:r]) for r in range(4)])
    ring = join_ranks([exactly(t) for t in terms], contract("grouped,ranks=4/dtype/add=dtype/join=ring"), D)
    assert torch.equal(ring.lo, turns.amin(0))
    assert torch.equal(ring.hi, turns.amax(0))
    one = join_ranks([exactly(t) for t in terms], contract("grouped,ranks=4/dtype/add=dtype/join=sequential"), D)
    assert torch.equal(one.lo, turns[0])
    assert torch.equal(one.hi, turns[0])


def test_a_rank_adds_its_own_slots_only() -> None:
    terms = torch.tensor([[[1.0], [2.0**-9], [4.0]]], dtype=torch.float64)
    rules = contract("grouped,ranks=2/dtype")
    rank = torch.tensor([[0, 0, 1]])
    bands = partial_bands(Band(terms, terms), rank, rules, D, multiplied=False)
    assert [float(kept_band(b, rules, D).lo) for b in bands] == [1.0, 4.0]  # 1 + 2^-9 rounds to 1 in bf16
    unkept = contract("grouped,ranks=2/fp32")
    assert float(kept_band(bands[0], unkept, D).hi) == pytest.approx(1 + 2.0**-9, rel=1e-6)
    assert float(bands[1].lo) == float(bands[1].hi) == 4.0  # a row that is added to nothing is not rounded
    nobody = partial_bands(Band(terms, terms), torch.full((1, 3), -1), rules, D, multiplied=True)
    assert [float(b.hi) for b in nobody] == [0.0, 0.0]


def test_experts_and_tokens_have_one_rank_each() -> None:
    block, deal = Ranks(3), Ranks(3, deal=True)
    assert [block.experts_of(r, 8) for r in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [deal.experts_of(r, 8) for r in range(3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    own = Ranks(3, kept="rows", own=True, shared=2)
    assert [own.experts_of(r, 8) for r in range(3)] == [[0, 1, 6, 7], [2, 3, 6, 7], [4, 5, 6, 7]]
    assert [own.tokens_of(r, 4) for r in range(3)] == [slice(0, 2), slice(2, 3), slice(3, 4)]
    ids = torch.tensor([[0, 6], [5, 7], [-1, 3], [2, 6]])
    assert own.rank_of(ids, 8).tolist() == [[0, 0], [2, 0], [-1, 1], [1, 2]]
    assert Ranks(3, shared=2).rank_of(ids, 8).tolist() == [[0, 0], [2, 0], [-1, 1], [1, 0]]


@pytest.mark.parametrize(
    "text", ["4/dtype/add=dtype", "2/rows/own/shared1", "8/deal/fp32/join=pairwise", "4/dtype/join=ring", "16"]
)
def test_the_text_reads_back(text: str) -> None:
    ranks = Ranks.parse(text)
    assert Ranks.parse(str(ranks)) == ranks
    assert contract(f"grouped,ranks={text}").ranks == ranks


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dtype/add=dtype", "must begin with how many ranks there are"),
        ("1/dtype", "ranks: got 1 ranks, must be 2 to 256"),
        ("4/rows/add=dtype", "ranks: got rows with add or join, must be left out"),
        ("4/dtype/fp32", "ranks: got kept twice"),
        ("4/join=rign", "did you mean 'ring'"),
        ("4/dtypes", "did you mean 'dtype'"),
    ],
)
def test_a_text_that_is_none_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="got") as error:
        contract(f"grouped,ranks={text}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
