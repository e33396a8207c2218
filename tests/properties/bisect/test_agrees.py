"""`bisect stages` says of every kind of failure what a hunt of the same case says: tier, stage and reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch

from moeracle.properties.bisect import stages as module
from moeracle.properties.bisect.stages import bisect_stages
from moeracle.properties.bisect.suspects import ACTIVATION, INPUTS
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.common.endings import ENDINGS, Ended
from moeracle.properties.common.verdict import TIERS, StageResult, Verdict, failed
from moeracle.properties.faults import FAULTS
from moeracle.properties.hunt.hunt import judge_cases
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.simulate import simulated_kernel
from moeracle.target.declaration import make_kernel

CASE = Case.parse("silu_and_mul/T5-I48/bf16/-/-/normal/s1")
ABSURD = "grouped,depth=100000000,weight=hoisted,accumulator=dtype,zero_offset=128"
TURNS = count()


def right(h: torch.Tensor) -> torch.Tensor:
    gate, up = h.float().chunk(2, 1)
    return (torch.nn.functional.silu(gate).to(h.dtype).float() * up).to(h.dtype)


def raises(h: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no such grid")


def zeroed(h: torch.Tensor) -> torch.Tensor:
    y = right(h)
    h.zero_()
    return y


def past_the_end(h: torch.Tensor) -> torch.Tensor:
    h.as_strided((4,), (1,), h.storage_offset() + h.numel()).zero_()
    return right(h)


def of_the_batch(h: torch.Tensor) -> torch.Tensor:
    """Return twice the right values for any number of rows but the case's."""
    y = right(h)
    return y if len(h) == 5 else y * 2


KINDS: dict[str, tuple[Callable[[torch.Tensor], Any], str, str]] = {
    "raises": (raises, "call", ""),
    "shape": (lambda h: right(h)[:, 1:], "shape", ""),
    "dtype": (lambda h: right(h).float(), "shape", ""),
    "nonfinite": (lambda h: right(h).fill_(torch.nan), "nonfinite", ACTIVATION),
    "an input": (zeroed, "inputs", INPUTS),
    "beside an input": (past_the_end, "inputs", INPUTS),
    "determinism": (lambda h: right(h) * (1 + next(TURNS) % 2), "determinism", ACTIVATION),
    "values": (lambda h: right(h) * 1.5, "bits", ACTIVATION),
    "law": (of_the_batch, "law", ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_failure(kind: str) -> None:
    fn, tier, stage = KINDS[kind]
    kernel = make_kernel(fn, "silu_and_mul", name="mine", contract="grouped")
    found, asked = bisect_stages(kernel, CASE), judge_cases(kernel, [CASE]).failures[0]
    assert (found.verdict.tier, found.stage) == (tier, stage)
    same = ("status", "tier", "stage", "case")
    assert [getattr(found.verdict, name) for name in same] == [getattr(asked, name) for name in same]
    assert (found.verdict.reason == asked.reason) or tier == "determinism"
    assert found.notes or stage == ACTIVATION


def test_a_contract_that_judges_nothing() -> None:
    case = Case.parse("int4_linear/T9-N40-K128-G32/bf16/exllama-sym/-/normal/s0")
    kernel = replace(simulated_kernel("int4_linear"), contract=simulated_kernel("int4_linear", ABSURD).contract)
    found = bisect_stages(kernel, case)
    assert (found.verdict.tier, found.stage, found.probes) == ("contract", "", [])
    assert judge_cases(kernel, [case]).failures[0].tier == "contract"
    assert "it is the contract that is wrong" in found.notes[0]


@pytest.mark.parametrize("tier", ENDINGS)
def test_what_ends_the_kernels_process_is_not_asked_again(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def run(kernel: Any, case: Case, **options: Any) -> Verdict:
        calls.append(str(case))
        return failed(Verdict(case.op, str(case), kernel.name, "grouped"), tier, "", *Ended(tier, "ended").lines)

    monkeypatch.setattr(module, "run_trial", run)
    found = bisect_stages(make_kernel(right, "silu_and_mul", name="mine", contract="grouped"), CASE)
    assert (found.verdict.tier, found.stage, calls) == (tier, "", [str(CASE)])
    assert "does not get as far as a result" in found.notes[0]


@pytest.mark.parametrize("op", OPS)
def test_each_law_of_an_op(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, record = simulated_kernel(op), record_of(op)
    case = must_run(kernel)[0]
    monkeypatch.setattr(module, "run_trial", lambda kernel, case, **_: Verdict(op, str(case), kernel.name, "grouped"))
    assert record.laws
    for law in record.laws:

        def broken(kernel: Any, case: Case, name: str = law.__name__) -> Verdict:
            verdict = Verdict(case.op, str(case), kernel.name, "grouped", stages=[StageResult(name, 1)])
            return failed(verdict, "law", name, "planted")

        broken.__name__ = law.__name__
        monkeypatch.setattr(record, "laws", (broken,))
        found = bisect_stages(kernel, case)
        assert (found.verdict.tier, found.verdict.stage, found.stage) == ("law", law.__name__, "")
        assert "every element of this case is legal by itself" in found.notes[0]


def test_every_tier_is_among_these() -> None:
    assert {tier for _, tier, _ in KINDS.values()} | {"contract", *ENDINGS} == {*TIERS} - {"interval", "statistics"}
    assert FAULTS["F123"].kernel("moe_w4a16")  # inputs, of a layer: test_stages.py asks it
