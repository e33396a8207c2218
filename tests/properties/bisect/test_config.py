"""Delta debugging: the smallest set that fails, and what is refused before it is searched."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest

from moeracle.properties.bisect.config import Answer, Settings, bisect_settings, minimal_set, mixed

NAMES = [f"S{i}" for i in range(8)]


@pytest.mark.parametrize("needed", [*combinations(NAMES, 1), *list(combinations(NAMES, 2))[::3], ("S0", "S3", "S7")])
def test_the_smallest_set_is_found(needed: tuple[str, ...]) -> None:
    tried: list[tuple[str, ...]] = []

    def fails(chosen: Sequence[str]) -> bool:
        tried.append(tuple(chosen))
        return set(needed) <= set(chosen)

    assert set(minimal_set(NAMES, fails)) == set(needed)
    assert len(tried) < 2 ** len(NAMES) // 2


def test_nothing_can_be_left_out_of_what_is_found() -> None:
    fails = lambda chosen: len(chosen) >= 3  # any three do it
    found = minimal_set(NAMES, fails)
    assert len(found) == 3


def ask(settings: Settings) -> Answer:
    wrong = settings.get("SPLIT") == "4" and settings.get("FAST") is None
    return Answer("illegal" if wrong else "legal", "too far off" if wrong else "")


def test_a_setting_that_only_one_side_names_is_not_set_on_the_other() -> None:
    report = bisect_settings({"FAST": "0", "SPLIT": "1", "TILE": "64"}, {"SPLIT": "4", "TILE": "128"}, ask)
    assert sorted(report.minimal) == ["FAST", "SPLIT"]
    assert report.without is not None
    assert report.without.status == "legal"
    assert mixed(report.good, report.bad, ["FAST"]) == {"FAST": None, "SPLIT": "1", "TILE": "64"}


def test_two_sets_that_each_do_it_are_told() -> None:
    either = lambda s: Answer("illegal" if "1" in (s["A"], s["B"]) else "legal")
    report = bisect_settings({"A": "0", "B": "0"}, {"A": "1", "B": "1"}, either)
    assert report.minimal == ["A"]
    assert report.without is not None
    assert report.without.status == "illegal"


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ({"A": "1"}, {"A": "1"}, "--bad: got the same settings as --good"),
        ({"SPLIT": "4"}, {"SPLIT": "1"}, "--good: these settings are illegal"),
        ({"SPLIT": "1"}, {"SPLIT": "2"}, "--bad: these settings are legal"),
    ],
)
def test_ends_that_are_none_are_refused(good: Settings, bad: Settings, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        bisect_settings(good, bad, ask)
    assert "\n" not in str(error.value)
