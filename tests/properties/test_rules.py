"""The published rules say what their projects' code says: worked by hand, holes included."""

from __future__ import annotations

import pytest
import torch

from moeracle.properties.fault_matrix.published_rules import RULES, rules_that_see

NAN, INF = float("nan"), float("inf")


def refuses(rule: str, got: list[float], want: list[float]) -> bool:
    return rule in rules_that_see(torch.tensor(got), torch.tensor(want))


@pytest.mark.parametrize(
    ("rule", "got", "want", "expected"),
    [
        ("1e-2", [1.0199], [1.0], False),  # atol + rtol * |want| = 0.02
        ("1e-2", [1.0201], [1.0], True),
        ("2e-2", [1.0399], [1.0], False),
        ("2e-2", [1.0401], [1.0], True),
        ("3e-2", [0.0299], [0.0], False),
        ("3e-2", [0.0301], [0.0], True),
        ("abs 0.5", [0.49, 100.0], [0.0, 100.0], False),
        ("abs 0.5", [0.51, 100.0], [0.0, 100.0], True),
        ("NMSE 5e-4", [1.02], [1.0], False),  # 4e-4
        ("NMSE 5e-4", [1.03], [1.0], True),  # 9e-4
        ("cosine 1e-3", [1.04], [1.0], False),  # 1 - 2*1.04 / (1.0816 + 1) = 7.7e-4
        ("cosine 1e-3", [1.05], [1.0], True),  # 1.2e-3
        ("cosine 0.1", [1.0] * 9 + [0.0], [1.0] * 10, False),  # one row of ten destroyed: 1 - 18/19 = 0.053
        ("cosine 0.1", [1.0] * 8 + [0.0] * 2, [1.0] * 10, True),  # two of ten: 1 - 16/18 = 0.11
        ("aiter 5 %", [9.0] + [1.0] * 19, [1.0] * 20, False),  # 5 % of the elements may be anything
        ("aiter 5 %", [9.0] * 2 + [1.0] * 19, [1.0] * 21, True),
        ("aiter atol 100", [0.0] * 4, [99.0, -99.0, 5.0, 1.0], False),  # all zeros pass
        ("aiter atol 100", [0.0] * 4, [200.0] * 4, True),
    ],
)
def test_rules_by_hand(rule: str, got: list[float], want: list[float], expected: bool) -> None:
    assert refuses(rule, got, want) is expected


@pytest.mark.parametrize("rule", RULES)
def test_equal_outputs_pass_every_rule(rule: str) -> None:
    assert not refuses(rule, [1.0, -2.0, 0.0], [1.0, -2.0, 0.0])
    assert not refuses(rule, [0.0, 0.0], [0.0, 0.0])
    assert not refuses(rule, [], [])


@pytest.mark.parametrize("rule", RULES)
def test_nan_alone_is_refused_by_every_rule(rule: str) -> None:
    assert refuses(rule, [NAN], [1.0])


def test_one_nan_in_many_hides_behind_a_share() -> None:
    got, want = [NAN] + [1.0] * 99, [1.0] * 100
    assert not refuses("aiter 5 %", got, want)
    assert refuses("2e-2", got, want)


def test_every_rule_cites_its_source() -> None:
    assert all(rule.name == name and rule.source.startswith("https://") for name, rule in RULES.items())
    assert len(RULES) == 9
