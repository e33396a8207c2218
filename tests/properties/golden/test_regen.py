"""New bits: only with a reason, only over a set that is whole, only legal ones; and what changes is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.golden import regen
from moeracle.properties.golden.catalogue import Item
from moeracle.properties.golden.regen import check_reason, plan_derived, plan_recorded, read_clean, today
from moeracle.properties.golden.store import GoldenSet, read_set, write_set
from moeracle.properties.simulate import simulated_kernel

LINEAR = "int4_linear/T3-N16-K64-G32/bf16/exllama-sym/-/normal/s0"


def test_nothing_changes_by_itself(small: GoldenSet, few: list[Item]) -> None:
    plan = plan_derived(small, "another reason", "9", catalogue=few)
    assert not plan.differs
    assert plan.golden.entries == small.entries  # reason, date and version of those that stay are kept
    assert plan.kept == len(small.entries)


def off(golden: GoldenSet, stage: str, by: int, file: str) -> None:
    """Move the first element of a stored stage by some representable values, as an older derivation might have it."""
    for i, entry in enumerate(golden.entries):
        if file in entry.file and entry.contract == "grouped":
            results = {name: t.clone() for name, t in golden.results_of(entry).items()}
            results[stage].view(torch.int16).flatten()[0] += by
            golden.results[entry.file][entry.source] = results
            sums = regen.make_entry(entry.item(), "grouped", {}, results, results, reason="", date="", version="")
            golden.entries[i] = replace(entry, outputs=sums.outputs, derived=sums.derived)


def test_a_change_is_told_with_stage_elements_ulp_and_legality(small: GoldenSet, few: list[Item]) -> None:
    off(small, "out", 40, "T3-N16-K64-G32.bf16")
    off(small, "h", 1, "T5-E4-k2-H32-I32-G16")
    plan = plan_derived(small, "better", "9", catalogue=few)
    told = {line.partition(" ")[0].partition("/")[0]: line for line in plan.changes}
    assert len(plan.changes) == 2
    assert " [grouped] out: 1 of 48 elements, up to 40 ulp, first [0, 0] was " in told["int4_linear"]
    assert told["int4_linear"].endswith("; illegal: the old bits are not legal under 'grouped'")
    assert " [grouped] h: 1 of 640 elements, up to 1 ulp" in told["moe_w4a16"]
    assert plan.refused == []
    changed = [e for e in plan.golden.entries if e.reason == "better"]
    assert len(changed) == 2
    assert all(e.version == "9" and e.date == today() for e in changed)


def test_a_legal_change_is_called_so() -> None:
    """Where partial sums are rounded to bf16 there is room for an ulp."""
    loose = "grouped,accumulator=dtype"
    item = Item(LINEAR, (loose,), "room")
    old = plan_derived(GoldenSet(), "first", "0", catalogue=[item]).golden
    (entry,) = old.entries
    results = {"out": old.results_of(entry)["out"].clone()}
    results["out"].view(torch.int16).flatten()[3] += 1
    old.results[entry.file][entry.source] = results
    about = {"reason": "first", "date": "2026-01-01", "version": "0"}
    old.entries = [regen.make_entry(item, loose, old.inputs[entry.file], results, results, **about)]
    plan = plan_derived(old, "second", "0", catalogue=[item])
    assert [line.partition("; ")[2] for line in plan.changes] == [f"legal: both old and new are under {loose!r}"]


def test_what_no_legal_kernel_could_store_is_refused(few: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    right = regen.derive

    def zeros(problem, rules):  # type: ignore[no-untyped-def]
        return {name: torch.zeros_like(t) for name, t in right(problem, rules).items()}

    monkeypatch.setattr(regen, "derive", zeros)
    plan = plan_derived(GoldenSet(), "zeros are fine", "9", catalogue=few)
    assert any("int4_linear" in line and "illegal" in line for line in plan.refused)


def test_entries_that_the_catalogue_lost_go_and_kernels_stay(small: GoldenSet, few: list[Item]) -> None:
    kernel = simulated_kernel("int4_linear", "grouped,accumulator=fp32", "sequential")
    both = plan_recorded(small, [kernel], None, "mine", "0", cases=[Case.parse(LINEAR)]).golden
    assert len(both.entries) == len(small.entries) + 1
    plan = plan_derived(both, "fewer", "9", catalogue=[i for i in few if i.op != "silu_and_mul"])
    assert {entry.op for entry in plan.gone} == {"silu_and_mul"}
    assert [e.kernel for e in plan.golden.entries if e.kernel] == [kernel.name]
    only = plan_derived(both, "one op", "9", "silu_and_mul", catalogue=few)
    assert not only.gone
    assert len(only.golden.entries) == len(both.entries)


def test_kernels_bits_on_other_inputs_do_not_stay(
    small: GoldenSet, monkeypatch: pytest.MonkeyPatch, few: list[Item]
) -> None:
    from moeracle.properties.common.generator import Stream

    kernel = simulated_kernel("int4_linear", "grouped,accumulator=fp32", "sequential")
    both = plan_recorded(small, [kernel], None, "mine", "0", cases=[Case.parse(LINEAR)]).golden
    right = Stream.raw
    monkeypatch.setattr(Stream, "raw", lambda self, count: right(self, count) ^ 1)
    plan = plan_derived(both, "new generator", "9", catalogue=few)
    assert [entry.kernel for entry in plan.gone] == [kernel.name]
    assert any("other inputs: x: " in line for line in plan.changes)


def test_a_kernel_is_recorded_only_where_legal_and_the_same_twice() -> None:
    good = simulated_kernel("int4_linear", "grouped,accumulator=fp32", "sequential")
    cases = [Case.parse(LINEAR), Case.parse(LINEAR.replace("exllama", "gptq"))]
    plan = plan_recorded(GoldenSet(), [replace(good, layout="exllama")], None, "mine", "0", cases=cases)
    assert (len(plan.new), plan.refused, list(plan.skipped.values())) == (1, [], ["layout is exllama, not gptq"])

    bad = replace(good, fn=lambda x, w, bias: good.fn(x, w, bias) * 2)
    assert "illegal" in plan_recorded(GoldenSet(), [bad], None, "mine", "0", cases=cases).refused[0]
    state = [0]

    def flaky(x, w, bias):  # type: ignore[no-untyped-def]
        state[0] += 1
        return good.fn(x, w, bias) + state[0] % 2

    refused = plan_recorded(GoldenSet(), [replace(good, fn=flaky)], None, "mine", "0", cases=cases[:1]).refused
    assert refused == [f"{LINEAR} [{good.name}] a second run stored other bits"]


def test_a_set_that_is_not_as_its_manifest_says_is_not_overwritten(folder: Path) -> None:
    (entry, *_) = read_set(folder).entries
    (folder / entry.file).write_bytes(b"mine, do not lose")
    with pytest.raises(ValueError, match=r"will not overwrite .* is damaged"):
        read_clean(folder)
    assert (folder / entry.file).read_bytes() == b"mine, do not lose"


def test_reasons_and_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_reason("  a\n reason ") == "a reason"
    with pytest.raises(ValueError, match="--accept: got no reason"):
        check_reason(" \n ")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert today() == "1970-01-02"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ValueError, match="SOURCE_DATE_EPOCH"):
        today()


def test_a_recorded_set_is_read_back(tmp_path: Path) -> None:
    kernel = simulated_kernel("topk_softmax", "grouped")
    plan = plan_recorded(GoldenSet(), [kernel], None, "mine", "0")
    assert plan.refused == []
    write_set(tmp_path / "mine", plan.golden)
    again = read_set(tmp_path / "mine")
    assert {entry.kernel for entry in again.entries} == {kernel.name}
    assert all(entry.derived for entry in again.entries)
