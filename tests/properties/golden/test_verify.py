"""Every kind of drift, planted: each is seen and called by its name, and none of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moeracle.properties.common.verdict import failed
from moeracle.properties.golden import verify
from moeracle.properties.golden.compare import compare, ulp_distance
from moeracle.properties.golden.replay import replay
from moeracle.properties.golden.store import GoldenSet
from moeracle.properties.golden.verify import verify_set
from moeracle.properties.simulate import simulated_kernel
from moeracle.ref.weights.weight import Int4Weight


def kinds(golden: GoldenSet) -> set[str]:
    return {finding.kind for finding in verify_set(golden).findings}


def test_nothing_drifts_by_itself(small: GoldenSet) -> None:
    done = verify_set(small)
    assert done.findings == []
    assert done.entries == len(small.entries)
    assert done.elements == sum(t.numel() for e in small.entries for t in small.results_of(e).values())
    assert verify_set(small, "silu_and_mul").entries == 2


def test_a_reference_that_unpacks_otherwise(small: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Int4Weight.codes
    monkeypatch.setattr(Int4Weight, "codes", lambda self: right(self) ^ 8)  # two's complement for offset binary
    found = verify_set(small).findings
    assert {f.kind for f in found} >= {"reference"}
    assert "inputs" not in {f.kind for f in found}
    assert any("unpack_int4" in f.case for f in found)
    assert any(f.text.startswith("literal") is False and "ulp" in f.text for f in found)


def test_a_reference_op_that_changed_alone(small: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    right = verify.run_reference
    one_more = lambda problem: {name: t + 1 for name, t in right(problem).items()}
    monkeypatch.setattr(verify, "run_reference", one_more)
    found = verify_set(small).findings
    assert {f.kind for f in found} == {"reference"}
    assert all("the op's own" in f.text for f in found)


def test_a_generator_that_draws_otherwise(small: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from moeracle.properties.common.generator import Stream

    right = Stream.raw
    monkeypatch.setattr(Stream, "raw", lambda self, count: right(self, count) ^ 1)
    assert kinds(small) == {"inputs"}  # the stored inputs are still derived from, and as they were


def test_an_oracle_that_refuses_what_it_accepted(small: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    right = verify.judge

    def stricter(problem, output, rules, **options):  # type: ignore[no-untyped-def]
        verdict = right(problem, output, rules, **options)
        return failed(verdict, "interval", "out", "too strict") if problem.case.op == "silu_and_mul" else verdict

    monkeypatch.setattr(verify, "judge", stricter)
    found = verify_set(small).findings
    assert {(f.kind, f.case.partition("/")[0]) for f in found} == {("oracle", "silu_and_mul")}


def test_a_literal_that_was_changed(small: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(verify.LITERALS["int4_linear.ties"], expected=lambda: {"out": torch.zeros(2, 2).bfloat16()})
    monkeypatch.setitem(verify.LITERALS, "int4_linear.ties", wrong)
    assert kinds(small) == {"reference"}


def test_a_case_that_this_version_does_not_know(small: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(verify.LITERALS, "int4_linear.ties")
    (found,) = verify_set(small).findings
    assert (found.kind, found.case) == ("inputs", "int4_linear.ties")
    assert "no literal case" in found.text


def test_a_contract_that_this_version_does_not_know(small: GoldenSet) -> None:
    (first, *others) = small.entries
    small.results[first.file]["of another time"] = small.results_of(first)
    small.entries = [replace(first, contract="of another time"), *others]
    (found,) = verify_set(small).findings
    assert (found.kind, found.source) == ("reference", "of another time")
    assert "does not know its contract" in found.text
    kernel = simulated_kernel(first.op, "grouped,accumulator=fp32", "sequential")
    assert replay(small, kernel, "cpu").findings == []


def test_replay_tells_a_drifted_kernel(small: GoldenSet) -> None:
    good = simulated_kernel("moe_w4a16", "grouped,accumulator=fp32", "sequential")
    seen = replay(small, good, "cpu")
    assert (seen.findings, seen.cases, seen.skipped) == ([], 2, 0)
    assert 0.98 < seen.equal / seen.elements <= 1

    def doubled(*args):  # type: ignore[no-untyped-def]
        stages = good.fn(*args)
        return {**stages, "y": stages["y"] * 2}

    bad = replace(good, fn=doubled)
    found = replay(small, bad, "cpu").findings
    assert {f.kind for f in found} == {"kernel"}
    assert len(found) == 2
    assert "illegal at stage y" in str(found[0])


def test_replay_says_what_a_kernel_does_instead_of_returning(small: GoldenSet) -> None:
    good = simulated_kernel("silu_and_mul", "grouped")

    def raises(h):  # type: ignore[no-untyped-def]
        raise RuntimeError("out of registers")

    def writes(h):  # type: ignore[no-untyped-def]
        h.zero_()
        return good.fn(h)

    for fn, said in ((raises, "raised RuntimeError: out of registers"), (writes, "wrote into its input h")):
        found = replay(small, replace(good, fn=fn), "cpu").findings
        assert found
        assert all(said in f.text for f in found)
    (found, *_) = replay(small, replace(good, fn=lambda h: None), "cpu").findings
    assert "returned NoneType" in found.text


def test_distances_in_ulp() -> None:
    a = torch.tensor([1.0, -1.0, 0.0, -0.0, float("inf"), float("nan"), float("nan"), 2.0**-133]).bfloat16()
    b = torch.tensor([1.0078125, 1.0, -0.0, -0.0, 3.3895e38, 1.0, float("nan"), -(2.0**-133)]).bfloat16()
    far = ulp_distance(a, b).tolist()
    assert far == [1, 2 * 0x3F80 + 1, 1, 0, 1, float("inf"), 0, 3]
    change = compare("out", a, b)
    assert (change.differing, change.ulp) == (6, float("inf"))
    assert compare("out", a, a.float()).form == "was bfloat16 [8], is float32 [8]"
    assert not compare("ids", torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert compare("ids", torch.tensor([1, 2]), torch.tensor([1, 3])).text() == (
        "ids: 1 of 2 elements, first [1] was 2, is 3"
    )
