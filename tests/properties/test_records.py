"""Every op has every part of a record, or says why not; and what the parts say fits together."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import PARTS, OpRecord, record_of
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.simulate import simulated_kernel

FLOATS = [op for op in OPS if record_of(op).has("bands")]


def gaps(record: OpRecord) -> list[str]:
    """Return what is wrong with a record's parts: missing without a reason, or there in spite of one."""
    wrong = [f"{part}: missing" for part in PARTS if not record.has(part) and not record.without.get(part)]
    for part, reason in record.without.items():
        if part not in PARTS:
            wrong.append(f"{part}: no part")
        elif record.has(part):
            wrong.append(f"{part}: there, although {reason}")
    return wrong


@pytest.mark.parametrize("op", OPS)
def test_each_op_has_each_part_or_says_why_not(op: str) -> None:
    assert gaps(record_of(op)) == []
    assert record_of(op).has("bands") != record_of(op).has("judge_parts")


def test_a_part_that_is_not_there_is_seen() -> None:
    class Rope(OpRecord):
        name = "rope"
        without: Mapping[str, str] = {"bands": "it has no floats", "scales": "none"}

        def compared(self, output: torch.Tensor) -> torch.Tensor:
            return output

    missing = [f"{part}: missing" for part in PARTS if part not in ("bands", "compared")]
    assert gaps(Rope()) == [*missing, "scales: no part"]
    Rope.without = {"compared": "it has no floats"}
    assert "compared: there, although it has no floats" in gaps(Rope())
    with pytest.raises(NotImplementedError, match="rope has no derive: nobody wrote it"):
        Rope().derive(None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("op", OPS)
def test_shapes_names_and_dtypes_are_those_that_a_kernel_returns(op: str) -> None:
    kernel, record = simulated_kernel(op), record_of(op)
    for case in must_run(kernel)[:3]:
        problem = case.build()
        output = record.by_name(kernel.fn(*problem.args.values()))
        assert output is not None
        shapes = record.shapes(problem)
        assert list(shapes) == [result.name for result in record.results]
        reference = record.reference(problem, torch.float64)
        assert set(output) <= set(reference) == set(shapes)
        for results in (output, reference):
            forms = {name: (tuple(t.shape), t.dtype) for name, t in results.items()}
            assert forms == {name: (shapes[name], record.result_dtype(name, case)) for name in results}
        again = record.by_name(record.as_output(reference))
        assert again is not None
        assert all(torch.equal(again[name], reference[name]) for name in again)


@pytest.mark.parametrize("op", FLOATS)
def test_bands_reach_every_element_of_every_stage_once_at_most(op: str) -> None:
    kernel, record = simulated_kernel(op), record_of(op)
    for case in must_run(kernel)[:3]:
        problem = case.build()
        shapes = record.shapes(problem)
        given = record.by_name(kernel.fn(*problem.args.values()))
        assert given is not None
        seen = {name: torch.zeros(shape).reshape(-1, shape[-1]) for name, shape in shapes.items()}
        rules = record.as_judged(kernel.contract)
        for stage, rows, first, band in record.bands(problem, rules, given, exact=False):
            seen[stage][:, first : first + band.lo.shape[1]][rows] += 1
        assert all(bool((count <= 1).all()) for count in seen.values())
        open_rows = sum(int((count.sum(1) == 0).sum()) for count in seen.values())
        assert open_rows == 0 or "topk_ids" in problem.truth or record.layer  # rows of no expert
