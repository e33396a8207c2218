"""The hunt itself, on made-up judges: what it runs, what it shrinks to, and that it always ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.cost import Allowance
from moeracle.properties.cases.optable import OPS
from moeracle.properties.common.verdict import StageResult, Verdict, failed
from moeracle.properties.hunt import hunt as hunting
from moeracle.properties.hunt import search as searching
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.hunt.hunt import hunt, judge_cases
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.hunt.search import Judge, check_laws, run_fixed, search
from moeracle.properties.hunt.shrink import shrink, smaller
from moeracle.properties.trial.trial import run_trial
from moeracle.target.declaration import Kernel, make_kernel

LARGE = "int4_linear/T40-N96-K320-G32/bf16/exllama-sym+pad32/-/outliers+bias/s9"


def kernel(op: str = "int4_linear", **declared: Any) -> Kernel:
    return make_kernel(lambda *args: None, op, name="made_up", **declared)


def judging(bad: Callable[[Case], bool], tier: str = "bits") -> Any:
    """Return a stand-in for run_trial: illegal where `bad` says so, and it keeps what it was asked."""
    asked: list[str] = []

    def run(k: Any, case: Case, *, device: str, explain: bool) -> Verdict:
        asked.append(str(case))
        verdict = Verdict(case.op, str(case), k.name, stages=[StageResult("out", 10)])
        return failed(verdict, tier, "out", "explained" if explain else "brief") if bad(case) else verdict

    run.asked = asked  # type: ignore[attr-defined]
    return run


def judge(run: Any, cost: int = 400, **declared: Any) -> Judge:
    k = kernel(**declared)
    return Judge(k, run, HuntResult(k.name, k.op, k.layout, k.contract.name, k.device, 0, 0), cost)


def sizes(op: str = "int4_linear") -> Any:
    return st.builds(
        lambda T, N, K, seed: Case.of(op, T=T, N=8 * N, K=32 * K, G=32, seed=seed),
        *(st.integers(0, 60), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6)),
    )


@pytest.mark.parametrize("op", OPS)
def test_fixed_cases_cover_every_recipe_routing_flag_and_border(op: str) -> None:
    fields = OPS[op]
    fn = [lambda *args: None, lambda x, w13, w2, weights, ids, expert_map=None: None][fields.extra is not None]
    cases = must_run(make_kernel(fn, op, dtypes=[d for d in fields.dtypes if d != "-"] or "bf16"))
    assert {c.data for c in cases} == set(fields.data)
    assert {c.routing for c in cases} == set(fields.routings)
    assert {c.dtype for c in cases} == set(fields.dtypes)
    assert {flag for c in cases for flag in c.flags} == set(fields.routing_flags + fields.data_flags)
    if "T" in fields.dims:
        assert {0, 1} <= {c.T for c in cases}
    if fields.weight:
        assert {(c.layout, c.zero) for c in cases} >= {(layout, "sym") for layout in ("exllama", "gptq", "awq")}
        assert any(c.pad for c in cases)
        assert any(c.G == -1 for c in cases)
    assert len(cases) <= 46
    assert cases == must_run(make_kernel(fn, op, dtypes=[d for d in fields.dtypes if d != "-"] or "bf16"))


def test_fixed_cases_take_sizes_that_the_kernel_supports() -> None:
    k = kernel("moe_w4a16", layout="exllama", supports=lambda case: case.K % 256 == 0 or "K")
    assert {c.K for c in must_run(k)} == {256}
    never = kernel("moe_w4a16", supports=lambda case: "never")
    assert len(must_run(never)) > 10


@pytest.mark.parametrize(
    ("bad", "smallest"),
    [
        (
            lambda case: True,
            {"T": 1, "N": 1, "K": 32, "G": 32, "seed": 9, "data": "normal", "flags": frozenset(), "pad": 0},
        ),
        (lambda case: case.T > 7 and case.K >= 64, {"T": 8, "N": 1, "K": 64}),
        (lambda case: case.N % 16 == 0 and "bias" in case.flags, {"N": 16, "flags": frozenset({"bias"})}),
        (lambda case: case.data == "outliers", {"data": "outliers", "T": 1}),
    ],
)
def test_shrinking_keeps_what_matters_and_nothing_else(bad: Any, smallest: dict[str, Any]) -> None:
    case = shrink(Case.parse(LARGE), bad)
    assert bad(case)
    assert {name: getattr(case, name) for name in smallest} == smallest


def test_every_smaller_case_is_legal_and_different() -> None:
    case = Case.parse("moe_w4a16/T9-E8-k2-H64-I96-G32/fp16/gptq-v1/zipf1/wide+strided/s3")
    steps = list(smaller(case))
    assert case not in steps
    assert len(steps) > 10
    assert all(Case.parse(str(step)) == step for step in steps)


def test_search_finds_and_shrinks_and_the_same_seed_finds_the_same() -> None:
    found = [search(judge(judging(lambda c: c.T >= 7 and c.K >= 64)), sizes(), 200, 3) for _ in range(2)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].case == found[1].case
    case = Case.parse(found[0].case)
    assert (case.T, case.K, case.N, case.seed) == (7, 64, 8, 0)
    assert found[0].reason == "explained"


def test_another_seed_draws_other_cases() -> None:
    first, second = judging(lambda c: False), judging(lambda c: False)
    assert search(judge(first), sizes(), 20, 1) is None
    assert search(judge(second), sizes(), 20, 2) is None
    assert first.asked != second.asked
    assert len(first.asked) > 10


def test_a_case_is_judged_once() -> None:
    run = judging(lambda c: False)
    search(judge(run), st.just(Case.parse(LARGE)), 50, 0)
    assert run.asked == [LARGE]


def test_a_kernel_that_fails_only_sometimes_is_still_reported() -> None:
    calls = []

    def flaky(case: Case) -> bool:
        calls.append(case)
        return len(calls) % 3 == 0

    verdict = search(judge(judging(flaky)), sizes(), 50, 0)
    assert verdict is not None
    assert verdict.status == "illegal"


def test_shrinking_does_not_slide_to_another_bug() -> None:
    def run(k: Any, case: Case, *, device: str, explain: bool) -> Verdict:
        verdict = Verdict(case.op, str(case), k.name, stages=[StageResult("out", 1)])
        tier = "interval" if case.T > 20 else "shape" if case.T == 0 else ""
        return failed(verdict, tier, "out", "") if tier else verdict

    hunter = judge(run)
    assert hunter.same_failure(Case.parse(LARGE))
    found = search(hunter, sizes(), 100, 0)
    assert found is not None
    assert found.tier == "interval"
    assert Case.parse(found.case).T == 21


@pytest.mark.parametrize("cost", [0, 1, 5, 400])
def test_shrinking_ends_when_it_has_cost_enough(cost: int) -> None:
    for look in (lambda j: run_fixed(j, [Case.parse(LARGE)]), lambda j: search(j, sizes(), 50, 0)):
        run = judging(lambda case: case.T > 2)
        found = look(judge(run, cost))
        assert found is not None
        assert Case.parse(found.case).T > 2
        failing = next(i for i, text in enumerate(run.asked) if Case.parse(text).T > 2)
        after = set(run.asked[failing + 1 :]) - set(run.asked[: failing + 1])
        assert len(after) == cost if cost <= 5 else 5 < len(after) < cost


def test_a_larger_case_costs_more() -> None:
    small, large = Case.parse(LARGE), Case.of("int4_linear", T=64, N=1024, K=1024, G=32)
    allowance = Allowance(6)
    assert [allowance.covers(case) for case in (small, large, small, small)] == [True, False, True, True]
    assert Allowance(6).covers(large)


def test_a_slow_machine_finds_the_same_smallest_case(
    monkeypatch: pytest.MonkeyPatch, leap_an_hour_a_look: Callable[..., None]
) -> None:
    monkeypatch.setattr(searching, "laws_of", lambda op: [law_of_odd_tokens])

    def smallest() -> list[str]:
        bad = lambda c: c.T >= 7 and c.K >= 64
        judges = [judge(judging(bad)) for _ in range(2)] + [judge(judging(lambda c: False))]
        law = check_laws(judges[2], [Case.parse(LARGE).replace(T=5)])
        found = run_fixed(judges[0], [Case.parse(LARGE)]), search(judges[1], sizes(), 200, 3), law
        return [verdict.case for verdict in found if verdict is not None]

    usual = smallest()
    leap_an_hour_a_look("perf_counter")  # by which Hypothesis ends a search after five minutes
    assert smallest() == usual
    assert [Case.parse(text).T for text in usual] == [7, 7, 1]


def test_what_is_not_supported_is_counted_once_each_and_not_run() -> None:
    run = judging(lambda c: False)
    hunter = judge(run, supports=lambda case: case.T % 2 == 0 or "T must be even")
    assert search(hunter, sizes(), 60, 0) is None
    reason, count = hunter.result.skipped.popitem()
    assert reason == "T must be even"
    assert count + len(run.asked) == len(hunter.memo)
    assert all(Case.parse(text).T % 2 == 0 for text in run.asked)


def test_vacuous_is_neither_right_nor_wrong() -> None:
    def run(k: Any, case: Case, *, device: str, explain: bool) -> Verdict:
        return Verdict(case.op, str(case), k.name, status="vacuous", reason="zeros would pass")

    hunter = judge(run)
    assert run_fixed(hunter, [Case.parse(LARGE)]) is None
    assert hunter.result.status == "unjudged"
    assert hunter.result.skipped == {"zeros would pass": 1}


def law_of_odd_tokens(k: Any, case: Case) -> Verdict | None:
    verdict = Verdict(case.op, str(case), k.name, stages=[StageResult("law", 1)])
    return None if case.T == 0 else failed(verdict, "law", "odd", "broken") if case.T % 2 else verdict


def test_a_law_that_does_not_hold_is_a_failure_and_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "laws_of", lambda op: [law_of_odd_tokens])
    even, odd = (Case.parse(LARGE).replace(T=T) for T in (4, 5))
    hunter = judge(judging(lambda c: False))
    assert check_laws(hunter, [even]) is None
    assert hunter.result.law_checks == {"law_of_odd_tokens": 1}
    broken = check_laws(hunter, [even, odd])
    assert broken is not None
    assert Case.parse(broken.case).T == 1
    assert hunter.result.judged == [broken]
    given = judge_cases(kernel(), [odd], run=judging(lambda c: False))
    assert [v.case for v in given.failures] == [str(odd)]


def test_hunt_stops_at_the_first_failure_and_reports_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "laws_of", lambda op: [law_of_odd_tokens])
    monkeypatch.setattr(hunting, "drawn_cases", lambda k, profile: sizes())
    phases: list[str] = []
    clean = hunt(kernel(), examples=5, run=judging(lambda c: False), progress=lambda phase, *_: phases.append(phase))
    assert list(dict.fromkeys(phases)) == ["fixed cases", "tall cases", "drawn cases"]
    assert (clean.status, clean.failures[0].tier) == ("illegal", "law")
    early = hunt(kernel(), examples=5, run=judging(lambda c: c.data == "wide"))
    assert (early.status, early.failures[0].tier, len(early.failures)) == ("illegal", "bits", 1)
    assert Case.parse(early.failures[0].case).data == "wide"
    quiet = hunt(kernel(), examples=5, run=judging(lambda c: False), laws=False)
    assert (quiet.status, quiet.failures) == ("legal", [])


def test_given_cases_are_judged_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "laws_of", lambda op: [law_of_odd_tokens])
    cases = [Case.parse(LARGE).replace(T=T) for T in (4, 5, 6)]
    result = judge_cases(kernel(), cases, run=judging(lambda c: c.T == 6))
    assert [(v.case, v.tier) for v in result.failures] == [(str(cases[1]), "law"), (str(cases[2]), "bits")]


@pytest.mark.parametrize("wrong", [{"profile": "smok"}, {"examples": -1}])
def test_a_wrong_option_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"profile: got 'smok'|examples: got -1"):
        hunt(kernel(), run=judging(lambda c: False), **wrong)


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (1.01, "looks like: none of the known faults"),  # of 1 element, F58 predicts the same
        (0.0, "looks like: F25b output all zeros (explains 319 of 319) where it was found"),  # of 1 element, F23 does
    ],
)
def test_one_element_names_no_fault_that_the_case_it_was_found_on_refutes(scale: float, said: str) -> None:
    def scaled(x: Any, w: Any, bias: Any) -> Any:
        return (x.float() @ w.dequantize().to(x.dtype).float().T * scale).to(x.dtype)

    k = make_kernel(scaled, "int4_linear", layout="exllama", contract="grouped", name="scaled")
    found = Case.parse("int4_linear/T5-N64-K96-G32/bf16/exllama-sym/-/normal/s1")
    judged = Judge(k, run_trial, HuntResult("scaled", k.op, k.layout, k.contract.name, k.device, 0, 0), 400)
    verdict = run_fixed(judged, [found])
    assert verdict is not None
    assert verdict.illegal == 1
    assert [line for line in verdict.summary if line.startswith("looks like")] == [said]
