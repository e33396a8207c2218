"""The quick acceptance test equals the rounding of both ends, everywhere on the grids; counts are true."""

import pytest
import torch

from moeracle.properties.compare.tally import Tally
from moeracle.ref.bounds.band import Band, exactly, store
from moeracle.ref.contracts.contract import Contract

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
RNE, RTZ = Contract("rne"), Contract("rtz", store_rounding="rtz")


def every_value(dtype):
    """All finite values and infinities of a 16-bit format, ascending, as float64."""
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).double()
    return torch.unique(x[~x.isnan()])


def exact_answer(got, lo, hi, rules, dtype):
    legal = store(Band(lo, hi), rules, dtype)
    return (legal.lo <= got) & (got <= legal.hi)


def tallied(got, lo, hi, rules, dtype):
    """Whether each element is legal to a Tally, which rounds only those that are not surely legal."""
    tally = Tally("out", got.to(dtype)[:, None], rules)
    tally.visit(torch.arange(len(got)), Band(lo[:, None], hi[:, None]))
    return ~tally.illegal_mask()[:, 0], tally


@pytest.mark.parametrize("rules", [RNE, RTZ], ids=["rne", "rtz"])
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_acceptance_is_exactly_rounding_on_the_whole_grid(dtype, rules):
    grid = every_value(dtype)
    finite = grid[grid.isfinite()]
    below, above = finite[:-1], finite[1:]
    middle = (below + above) / 2
    points = [finite, middle, torch.nextafter(middle, below), torch.nextafter(middle, above)]
    points += [torch.nextafter(finite, torch.full_like(finite, side)) for side in (torch.inf, -torch.inf)]
    largest = float(finite[-1])
    beyond = largest + (largest - float(finite[-2])) * torch.tensor([0.25, 0.5, 0.75, 1.0, 8.0]).double()
    values = torch.cat([*points, beyond, -beyond, torch.tensor([torch.inf, -torch.inf]).double()])
    place = torch.searchsorted(grid, values).clamp(0, len(grid) - 1)
    for shift in (-2, -1, 0, 1, 2):  # the stored value is each of the neighbours
        got = grid[(place + shift).clamp(0, len(grid) - 1)]
        legal, tally = tallied(got, values, values, rules, dtype)
        assert torch.equal(legal, exact_answer(got, values, values, rules, dtype))
        assert 0 < int(legal.sum()) < len(legal) or abs(shift) > 1
        assert tally.result.illegal == int((~legal).sum())
        assert tally.result.judged == len(got)


@pytest.mark.parametrize("rules", [RNE, RTZ], ids=["rne", "rtz"])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_acceptance_of_bands_with_a_width(dtype, rules):
    g = torch.Generator().manual_seed(0)
    n = 100_000
    scale = 2.0 ** torch.randint(-40, 12, (n,), generator=g).double()
    mid = torch.randn(n, generator=g).double() * scale
    width = mid.abs() * torch.rand(n, generator=g) * 2.0**-7
    lo, hi = mid - width, mid + width
    got = (mid + (torch.rand(n, generator=g) * 4 - 2) * width).to(dtype).double()
    legal, _ = tallied(got, lo, hi, rules, dtype)
    assert torch.equal(legal, exact_answer(got, lo, hi, rules, dtype))
    assert 0.2 < float(legal.double().mean()) < 0.9


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_just_beyond_the_halfway_point_is_illegal_and_just_before_it_is_legal(dtype):
    step = torch.finfo(dtype).eps
    for want, got in ((1 + 0.51 * step, 1.0), (1 - 0.26 * step, 1.0), (2 + 1.02 * step, 2.0), (-1 - 0.51 * step, -1.0)):
        legal, _ = tallied(*(torch.tensor([v]).double() for v in (got, want, want)), RNE, dtype)
        assert not legal, (want, got)
    for want, got in ((1 + 0.49 * step, 1.0), (1 - 0.24 * step, 1.0), (2 + 0.99 * step, 2.0), (1 + 0.5 * step, 1.0)):
        legal, _ = tallied(*(torch.tensor([v]).double() for v in (got, want, want)), RNE, dtype)
        assert legal, (want, got)


def test_nan_and_infinities():
    inf, nan = float("inf"), float("nan")
    got = torch.tensor([nan, inf, inf, -inf, 1.0, inf, 65504.0]).double()
    lo = torch.tensor([0.0, inf, -inf, inf, inf, 1e9, 1e9]).double()
    hi = torch.tensor([1.0, inf, -inf, inf, inf, 1e9, 1e9]).double()
    legal, tally = tallied(got, lo, hi, RNE, FP16)
    assert legal.tolist() == [False, True, False, False, False, True, False]
    assert tally.worst.ulp == inf
    legal, _ = tallied(got[5:], lo[5:], hi[5:], RTZ, FP16)
    assert legal.tolist() == [False, True]  # rounded toward zero, 1e9 stays finite
    assert not tallied(torch.ones(1).double(), torch.full((1,), nan).double(), torch.ones(1).double(), RNE, BF16)[0]


def test_counts_places_and_the_worst_element_over_pieces():
    want = torch.arange(1.0, 13.0).reshape(3, 4)
    got = want.clone()
    got[2, 1] += 0.125
    got[0, 3] += 0.0625
    tally = Tally("h", got.to(BF16), RNE)
    tally.visit(torch.tensor([2, 0]), exactly(want[[2, 0], :2]), first_column=0)
    tally.visit(torch.tensor([0, 2]), exactly(want[[0, 2], 2:]), first_column=2)
    tally.visit(torch.tensor([1]), exactly(want[[1]]))
    tally.visit(torch.tensor([], dtype=torch.int64), exactly(want[:0]))
    result = tally.finish(conditioned=False)
    assert (result.judged, result.illegal, result.exact, result.conditioned) == (12, 2, 12, False)
    assert tally.illegal_mask().nonzero().tolist() == [[0, 3], [2, 1]]
    assert tally.worst[:4] == (2.0, 2, 1, 10.125)
    assert tally.worst.exact
    assert tally.largest_error == 0.125
    assert tally.largest_expected == 12


def test_widths_and_ratios():
    want = torch.ones(4, 4, dtype=torch.float64)
    tally = Tally("h", want.to(BF16), RNE)
    tally.visit(torch.arange(4), Band(want - 2.0**-7, want + 2.0**-7))
    assert tally.finish().width_ulp == 2  # in the larger spacing, above 1
    legal = Tally("h", torch.full((1, 1), 2.0, dtype=BF16), RNE)
    legal.visit(torch.tensor([0]), exactly(torch.tensor([[2 - 2.0**-8]])))
    assert legal.result.illegal == 0
    assert legal.result.max_ratio <= 1  # the spacing above a power of two counts


def vacuous(got, lo, hi):
    tally = Tally("out", got.to(BF16), RNE)
    tally.visit(torch.arange(got.shape[0]), Band(lo.double(), hi.double()))
    return tally.vacuous


def test_what_would_pass_although_it_is_wrong():
    one = torch.ones(2, 3)
    assert vacuous(one, -one, one) == "zeros"
    assert vacuous(one, one, one) == ""
    assert vacuous(0 * one, 0 * one, 0 * one) == ""  # zero is the answer
    assert vacuous(0 * one, 0 * one, one * 2.0**-140) == ""  # and here too, once rounded
    assert vacuous(0 * one, 0 * one, one * 2.0**-133) == "zeros"
    rows = torch.tensor([[1.0, 2.0], [1.5, 2.5]])
    assert vacuous(rows, rows - 0.1, rows + 0.1) == ""
    assert vacuous(rows, rows - 0.6, rows + 0.6) == "rows in each other's place"
    assert vacuous(rows[:1], rows[:1] - 0.6, rows[:1] + 0.6) == ""  # one row has nobody to swap with
    same = rows[:1].expand(2, 2)
    assert vacuous(same, same - 0.6, same + 0.6) == ""


def test_statistics_of_large_pieces_are_sampled_and_judging_is_not():
    want = torch.ones(300, 64, dtype=torch.float64)
    got = want.clone()
    got[7, 3] = 5  # not in a sampled row
    for sample, error in ((1024, 4.0), (1 << 40, 4.0)):
        tally = Tally("out", got.to(BF16), RNE, sample)
        tally.visit(torch.arange(300), exactly(want))
        assert tally.result.illegal == 1
        assert tally.worst[1:3] == (7, 3)
        assert tally.worst.got - tally.worst.hi == error
