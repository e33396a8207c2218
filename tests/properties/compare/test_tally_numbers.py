"""A Tally's statistics in numbers: widths, ratios, samples and what an empty stage says."""

import pytest
import torch

from moeracle.properties.compare.tally import Tally
from moeracle.ref.bounds.band import Band, exactly
from moeracle.ref.contracts.contract import Contract

BF16 = torch.bfloat16
RNE, RTZ = Contract("rne"), Contract("rtz", store_rounding="rtz")


def visited(got, lo, hi, rules=RNE, **options):
    tally = Tally("h", got.to(BF16), rules, **options)
    tally.visit(torch.arange(len(got)), Band(lo.double(), hi.double()))
    return tally


@pytest.mark.parametrize(("ulps", "counted"), [(0, 0), (1, 1), (63, 63), (64, 64), (90, 64)])
def test_widths_are_counted_up_to_64_ulp(ulps, counted):
    one = torch.ones(1, 1)
    assert visited(one, one, one + ulps * 2.0**-7).finish().width_ulp == counted


def test_the_median_width_is_the_lower_one_of_an_even_count():
    one = torch.ones(4, 1)
    width = torch.tensor([[0.0], [1.0], [5.0], [9.0]]) * 2.0**-7
    assert visited(one, one, one + width).finish().width_ulp == 1
    assert visited(one[:3], one[:3], one[:3] + width[1:]).finish().width_ulp == 5


def test_where_infinity_is_the_answer_the_width_and_the_error_are_nothing():
    infinite = torch.full((2, 1), torch.inf)
    tally = visited(infinite, infinite, infinite)
    assert (tally.finish().width_ulp, tally.result.illegal, tally.largest_error) == (0, 0, 0)
    half_open = visited(infinite, torch.ones(2, 1), infinite)
    assert half_open.finish().width_ulp == 64


@pytest.mark.parametrize(("rules", "rounding"), [(RNE, 2.0**-8), (RTZ, 2.0**-7)])
def test_the_ratio_is_the_error_over_radius_and_rounding(rules, rounding):
    got, mid = torch.full((1, 2), 1.5), torch.tensor([[1.5, 1.5 - 2.0**-9]])
    known = visited(got, mid, mid, rules)
    assert known.result.max_ratio == pytest.approx(2.0**-9 / rounding)
    wide = visited(got, mid - 2.0**-6, mid + 2.0**-6, rules)
    assert wide.result.max_ratio == pytest.approx(2.0**-9 / (2.0**-6 + rounding))
    assert wide.largest_error == 2.0**-9
    assert wide.largest_expected == 1.5
    assert (known.result.exact, wide.result.exact) == (2, 0)
    far = visited(got + 0.5, mid, mid, rules)  # outside: more than 1, and not its remainder
    assert far.result.max_ratio == pytest.approx((0.5 + 2.0**-9) / rounding)


def test_statistics_come_from_every_nth_row_beyond_the_sample():
    want = torch.ones(6, 4)
    got = want.clone()
    got[1, 2], got[2, 0] = 2, 1.5
    for sample, seen in ((24, 1.0), (23, 0.5), (12, 0.5), (8, 0.0), (1 << 13, 1.0)):
        tally = visited(got, want, want, sample=sample)  # rows 0 1 2 3 4 5, or 0 2 4, or 0 3
        assert tally.largest_error == seen, sample
        assert (tally.result.illegal, tally.result.judged, tally.result.exact) == (2, 24, 24)
        assert tally.worst[1:4] == (1, 2, 2.0)


def test_the_worst_and_the_largest_are_kept_over_visits():
    want = torch.ones(3, 1)
    got = torch.tensor([[1.25], [3.0], [1.5]])
    tally = Tally("h", got.to(BF16), RNE)
    for row in range(3):
        tally.visit(torch.tensor([row]), exactly(want[:1]))
    assert (tally.largest_error, tally.largest_expected, tally.result.illegal) == (2.0, 1.0, 3)
    assert tally.worst[1:6] == (1, 0, 3.0, 1.0, 1.0)
    assert tally.worst.ulp == 2.0 / 2.0**-7
    assert tally.illegal_mask().tolist() == [[True]] * 3


def test_a_stage_that_saw_nothing():
    empty = Tally("h", torch.ones(0, 3, dtype=BF16), RNE)
    empty.visit(torch.arange(0), exactly(torch.ones(0, 3)))
    assert (empty.largest_error, empty.largest_expected, empty.worst, empty.vacuous) == (0, 0, None, "")
    assert empty.finish().width_ulp == 0
    assert empty.result.max_ratio == 0
    assert empty.illegal_mask().shape == (0, 3)


def test_what_would_pass_at_the_edges():
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    assert visited(-one, -one, zero).vacuous == "zeros"  # legal up to zero itself, from either side
    assert visited(one, zero, one).vacuous == "zeros"
    assert visited(one, 0.5 * one, one).vacuous == ""
    column = torch.tensor([[1.0], [1.5]])
    assert visited(column, column - 0.75, column + 0.75).vacuous == "rows in each other's place"
    lowest = torch.zeros(2, 1) + 0.5
    assert visited(column, lowest, column + 0.75).vacuous == "rows in each other's place"  # though only the tops differ
    assert visited(column, lowest, lowest + 2).vacuous == ""  # the same set for both


def test_another_experts_row_is_asked_for_wherever_it_lies():
    got = torch.tensor([[1.0, 2.0], [2.0, 4.0], [1.25, 2.25]])
    lo, hi = got - 0.375, got + 0.375
    for other_experts, passes in (
        ([-1, -1, 0], True),
        ([-1, -1, 1], False),
        ([2, -1, -1], True),
        ([1, 0, -1], False),
        ([-1, -1, -1], False),
    ):
        tally = visited(got, lo, hi, other_experts=torch.tensor(other_experts))
        assert (tally.vacuous == "another expert's row") == passes, other_experts


def test_another_experts_row_passes_at_either_end():
    got = torch.tensor([[1.0], [2.0]])
    for lo, hi in ((2.0, 3.0), (1.5, 2.0)):
        low, high = torch.tensor([[lo], [2.0]]), torch.tensor([[hi], [2.0]])
        assert visited(got, low, high, other_experts=torch.tensor([1, -1])).vacuous == "another expert's row"


def test_a_stage_is_conditioned_unless_told_otherwise():
    one = torch.ones(1, 1)
    assert visited(one, one, one).finish().conditioned
    assert not visited(one, one, one).finish(conditioned=False).conditioned


def test_only_a_conditioned_stage_reports_its_drift():
    one = torch.ones(1, 1)
    for conditioned in (True, False):
        tally = visited(one, one, one)
        tally.drift = tally.drift._replace(tested=7)
        assert tally.finish(conditioned).drift.tested == 7 * conditioned
