"""The location text is true: each phrase against a planted pattern, and "every element" only where it is every one."""

import itertools

import pytest
import torch

from moeracle.properties.compare.locate import describe, spans


def planted(shape, *places):
    bad = torch.zeros(shape, dtype=torch.bool)
    for rows, columns in places:
        bad[rows, columns] = True
    return bad


ALL = slice(None)


@pytest.mark.parametrize(
    ("places", "text"),
    [
        ([(ALL, ALL)], "first bad column 0, all 512 elements"),
        ([(ALL, slice(8, None))], "first bad column 8, every element of columns from 8 on"),
        ([(ALL, slice(None, 8))], "first bad column 0, every element of columns 0-7"),
        ([(slice(8, None), ALL)], "first bad column 0, every element of rows from 8 on"),
        ([(slice(1, None, 2), ALL)], "first bad column 0, every element of rows = 1 mod 2"),
        ([(ALL, slice(3, None, 4))], "first bad column 3, every element of columns = 3 mod 4"),
        ([(3, 7)], "first bad column 7, every element of column 7 of row 3"),
        ([(slice(2, 5), 7), (9, 7)], "first bad column 7, every element of column 7 of rows 2-4, 9"),
        ([(15, ALL)], "first bad column 0, every element of row 15"),
        ([(slice(0, 4), slice(4, 8))], "first bad column 4, every element of columns 4-7 of rows 0-3"),
        ([(0, 0), (1, 1)], "first bad column 0, 50% of the elements of columns 0-1 of rows 0-1"),
        ([(ALL, 0), (0, ALL)], "first bad column 0, 9% of the 512 elements"),
    ],
)
def test_patterns(places, text):
    assert describe(planted((16, 32), *places)) == text


def test_shares_are_never_rounded_to_none_or_all():
    bad = torch.ones(40, 40, dtype=torch.bool)
    bad[3, 4] = False
    assert describe(bad) == "first bad column 0, over 99% of the 1,600 elements"
    sparse = torch.eye(200, dtype=torch.bool)
    assert describe(sparse) == "first bad column 0, under 1% of the 40,000 elements"


def test_rows_have_a_name_and_whole_experts_are_named():
    experts = torch.tensor([0, 0, 1, 1, 2, 2, -1, -1])
    bad = planted((8, 4), (slice(2, 4), ALL))
    assert describe(bad, "token") == "first bad column 0, every element of tokens 2-3"
    assert describe(bad, "row", experts) == "first bad column 0, every element of expert 1"
    assert describe(planted((8, 4), (slice(2, 6), 1)), "row", experts).endswith("of column 1 of experts 1-2")
    assert describe(planted((8, 4), (2, ALL)), "row", experts).endswith("every element of row 2")  # half an expert
    assert describe(planted((8, 4), (slice(2, 7), ALL)), "row", experts).endswith("of rows 2-6")  # and rows of none
    assert describe(planted((8, 4), (slice(0, 6), ALL)), "row", experts).endswith("of rows 0-5")  # everyone


def test_whole_groups_are_named():
    bad = planted((4, 32), (slice(0, 2), slice(16, 32)))
    assert describe(bad, group=8) == "first bad column 16, every element of groups 2-3 of rows 0-1"
    assert describe(planted((4, 32), (ALL, slice(8, 16))), group=8).endswith("every element of group 1")
    assert describe(planted((4, 32), (ALL, slice(8, 12))), group=8).endswith("every element of columns 8-11")
    assert describe(planted((4, 32), (ALL, ALL)), group=8) == "first bad column 0, all 128 elements"


def test_spans():
    assert spans([0, 1, 2, 3, 7, 9, 10]) == "0-3, 7, 9-10"
    assert spans(list(range(0, 40, 2))) == "0, 2, 4, 6, 8, 10 and 14 more"
    assert spans([5]) == "5"


def test_every_element_is_said_exactly_where_it_is_true():
    for bits in itertools.product([False, True], repeat=9):
        bad = torch.tensor(bits).reshape(3, 3)
        if not bad.any():
            continue
        whole = bool(bad[bad.any(1)][:, bad.any(0)].all())
        text = describe(bad)
        assert ("every element" in text or "all 9 elements" in text) == whole, bad
        assert ("%" in text) != whole


def test_tiles_are_named_when_rows_and_columns_do_not_tell():
    bad = torch.zeros(40, 64, dtype=torch.bool)
    bad[:16, 16:32] = True
    bad[32:, 48:] = True
    assert describe(bad).endswith("every element of 16x16 tiles (0, 1), (2, 3)")
    bad[3, 20] = False  # legal by chance
    assert describe(bad).endswith("over 99% of the elements of 16x16 tiles (0, 1), (2, 3)")
    bad[20, 0] = True  # and one that no tile explains
    assert "tile" not in describe(bad)


def test_an_experts_own_rows_are_counted_in_its_own_order():
    experts = torch.tensor([0, 1] * 40)
    bad = torch.zeros(80, 8, dtype=torch.bool)
    bad[65::2] = True  # rows 32 to 39 of expert 1
    assert describe(bad, experts=experts).endswith("rows from 32 on, counted in its own order, of expert 1")
    bad[:] = False
    bad[33:65:2] = True
    assert describe(bad, experts=experts).endswith("rows 16-31, counted in its own order, of expert 1")
