"""Strategies: everything drawn is legal and survives its text, nothing important is missing, failures shrink small."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, find, settings

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS, ROUTINGS, ZERO_LAYOUT
from moeracle.properties.hunt.strategies import PROFILES, cases, each_drawn, neighbours

ALL_ZEROS = sorted({zero for zeros in ZERO_LAYOUT.values() for zero in zeros})


def drawn(count: int, op: str, seed: int = 6, **options: object) -> list[Case]:
    seen: list[Case] = []
    each_drawn(cases(op, **options), count, seed, seen.append)  # type: ignore[arg-type]
    return seen


def test_a_seed_draws_the_same_whatever_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis takes constants from the source of local modules: one is planted that is full of them."""
    before = [str(case) for case in drawn(200, "moe_w4a16")]
    (tmp_path / "full_of_constants.py").write_text(f"SIZES = {list(range(2, 600))}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "full_of_constants", importlib.import_module("full_of_constants"))
    assert [str(case) for case in drawn(200, "moe_w4a16")] == before


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("profile", PROFILES)
def test_drawn_cases_are_legal_and_within_the_profile(op: str, profile: str) -> None:
    top = PROFILES[profile]
    limits = {"T": top.T, "E": top.E, "k": top.k, "N": top.N, "K": top.K, "H": top.K, "I": top.I, "V": top.V}
    for case in drawn(30, op, zeros=ALL_ZEROS, dtypes=("bf16", "fp16", "fp32"), profile=profile):
        assert Case.parse(str(case)) == case
        for letter, size in case.dims:
            assert size <= limits.get(letter, max(top.K, 128)), f"{letter} in {case}"


def test_nothing_important_is_missing() -> None:
    seen, forms = list[Case](), {(layout, zero) for layout, zeros in ZERO_LAYOUT.items() for zero in zeros}
    for seed in range(6, 12):  # a form is one of 26, and Hypothesis likes to repeat itself
        if not forms <= {(case.layout, case.zero) for case in seen}:
            seen += drawn(400, "moe_w4a16", seed, zeros=ALL_ZEROS)
    assert {case.routing for case in seen} == set(ROUTINGS)
    assert {case.data for case in seen} == set(OPS["moe_w4a16"].data)
    assert {(case.layout, case.zero) for case in seen} == forms
    assert {case.dtype for case in seen} == {"bf16", "fp16"}
    assert {-1, 32, 64, 128} < {case.G for case in seen}
    assert any(case.G not in (-1, 32, 64, 128) for case in seen)
    assert all(case.T > 0 for case in seen)  # T = 0 is a fixed case
    assert any(case.pad for case in seen)
    assert any(case.flags for case in seen)
    assert any(case.H % 64 for case in seen)
    assert any(case.I % 64 for case in seen)
    assert any(case.k > case.E for case in seen)


def test_nightly_draws_the_sizes_of_real_models() -> None:
    sizes = {case.I for case in drawn(300, "moe_w4a16", profile="nightly")}
    assert {704, 1408} <= sizes


def test_matrices_without_experts_are_drawn_too() -> None:
    assert {("E" in case.sizes) for case in drawn(100, "unpack_int4")} == {True, False}


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (lambda case: True, "moe_w4a16/T1-E1-k1-H8-I8-G-1/bf16/exllama-sym/uniform/normal/s0"),
        (lambda case: case.T > 6, "moe_w4a16/T7-E1-k1-H8-I8-G-1/bf16/exllama-sym/uniform/normal/s0"),
        (lambda case: case.k == 2, "moe_w4a16/T1-E2-k2-H8-I8-G-1/bf16/exllama-sym/uniform/normal/s0"),
        (lambda case: case.I > 40, "moe_w4a16/T1-E1-k1-H8-I48-G-1/bf16/exllama-sym/uniform/normal/s0"),
    ],
)
def test_failures_shrink_to_the_smallest_case(broken: Callable[[Case], bool], expected: str) -> None:
    strategy = cases("moe_w4a16", layouts=("exllama", "awq"), zeros=("sym", "asym"))
    options = settings(max_examples=2000, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    assert str(find(strategy, broken, settings=options, random=Random(1))) == expected


def test_narrow_kernels_still_get_cases() -> None:
    """One N in 256 would fit by chance: the others are rounded up, and flags dropped, instead of thrown away."""

    def supports(case: Case) -> bool | str:
        if case.pad or case.flags:
            return "no strides"
        fits = case.N % 256 == 0 and case.K % 128 == 0 and case.G in (32, 64, 128)
        return fits or "N must be a multiple of 256, K of 128"

    seen = drawn(200, "int4_linear", supports=supports)
    assert len(seen) == 200
    assert all(supports(case) is True for case in seen)
    assert {case.G for case in seen} == {32, 64, 128}
    assert {case.K for case in seen} >= {128, 256, 512}


def test_decode_kernels_get_few_tokens_and_small_blocks() -> None:
    def supports(case: Case) -> bool | str:
        return (case.T <= 5 and case.B in (1, 2, 4) and case.G % 16 == 0) or "decode"

    seen = drawn(60, "padded_gemm", supports=supports)
    assert len(seen) == 60
    assert all(supports(case) is True for case in seen)
    assert len({case.T for case in seen}) >= 4
    assert {case.B for case in seen} == {1, 2, 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"op": "moe_w4a6"}, "op: got 'moe_w4a6', must be one of .* did you mean 'moe_w4a16'"),
        ({"profile": "weekly"}, "profile: got 'weekly', must be one of smoke, ci, nightly"),
        ({"layouts": ("exlama",)}, "layout: got 'exlama', .* did you mean 'exllama'"),
        ({"layouts": ("exllama",), "zeros": ("asym",)}, "zeros: got asym, exllama must have one of sym, rdna, v1, v2"),
        ({"dtypes": ("fp32",)}, "dtypes: got fp32, moe_w4a16 must have one of bf16, fp16"),
        ({"dtypes": ()}, "dtypes: got none"),
    ],
)
def test_mistakes_get_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cases(**{"op": "moe_w4a16", **options})  # type: ignore[arg-type]


def test_a_case_with_a_short_group_has_neighbours() -> None:
    """A kernel that declines it is asked others, not met with an error."""
    case = Case.parse("int4_linear/T3-N8-K96-G64/bf16/exllama-sym+short/-/normal/s1")
    near = list(neighbours(case))
    assert near[0] == case
    assert any("short" not in other.flags or other.K % other.G == 0 for other in near)
