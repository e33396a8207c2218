"""The provisional gfx11 adder, by hand: what the words of its source say. Nothing here was seen on hardware."""

import pytest
import torch

from moeracle.ref.bitmodels.rdna import FAMILY, FrameAdder, frame_dot


def dot(acc, a, w, adder=FrameAdder(24)):  # noqa: B008 (a frozen value)
    form = torch.bfloat16
    return frame_dot(torch.tensor([a]).to(form), torch.tensor([w]).to(form), torch.tensor([acc]), adder).item()


def test_terms_of_one_sign_add_exactly():
    assert dot(1.0, [3.0, 8.0], [8.0, 4.0]) == 57
    assert dot(-1.0, [-3.0, 8.0], [8.0, -4.0]) == -57
    assert dot(0.0, [3.0, 8.0], [8.0, 4.0]) == 56


def test_a_term_against_the_accumulator_ends_one_unit_further_from_zero():
    # The largest exponent is 5 (8*4, by its operands); a grid of 22 bits has units of 2^-17.
    coarse = FrameAdder(22)
    assert dot(-1.0, [3.0, 8.0], [8.0, 4.0], coarse) == 55 + 2 * 2.0**-17
    assert dot(-1.0, [3.0, 0.0], [8.0, 4.0], coarse) == 23 + 2.0**-18  # the exponent is 4 now, and 0 opposes nothing
    assert dot(1.0, [-3.0, 8.0], [8.0, 4.0], coarse) == 9 - 2.0**-17


def test_exponents_are_the_operands():
    # 1.5 * 1.5 = 2.25 counts as exponent 0: a unit of 2^-22, not 2^-21.
    assert dot(-1.0, [1.5, 0.0], [1.5, 0.0], FrameAdder(22)) == 1.25 + 2.0**-22


def test_a_result_is_rounded_as_the_member_says():
    up, down = FrameAdder(26, "rne"), FrameAdder(26, "rtz")
    assert dot(2.0**24, [1.5, 0.0], [1.0, 0.0], up) == 2.0**24 + 2
    assert dot(2.0**24, [1.5, 0.0], [1.0, 0.0], down) == 2.0**24


def test_subnormal_bf16_operands_count_as_zero_and_fp16_ones_do_not():
    assert dot(0.0, [2.0**-130, 0.0], [2.0**20, 0.0]) == 0
    a, w = torch.tensor([[2.0**-24, 0.0]]).half(), torch.tensor([[2.0, 0.0]]).half()
    assert frame_dot(a, w, torch.zeros(1), FrameAdder(24)).item() == 2.0**-23


def test_pairs_follow_one_another():
    a, w = torch.ones(1, 4).bfloat16(), torch.tensor([[1.0, 2.0, 3.0, 4.0]]).bfloat16()
    assert frame_dot(a, w, torch.tensor([5.0]), FrameAdder(24)).item() == 15


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="bits: got 40"):
        FrameAdder(40)
    with pytest.raises(ValueError, match="rounding"):
        FrameAdder(24, "up")
    with pytest.raises(ValueError, match="a, w: got"):
        frame_dot(torch.ones(1, 3).bfloat16(), torch.ones(1, 3).bfloat16(), torch.zeros(1), FrameAdder(24))
    assert all("provisional" in adder.name for adder in FAMILY)
