"""No law accuses a legal kernel: a slice, by name, of what `moeracle laws` asks; the whole stands in docs/laws.md."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeracle.cli import main
from moeracle.exit_codes import ILLEGAL, USAGE
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.fault_matrix import legal_laws
from moeracle.properties.fault_matrix.legal_laws import ask_laws, contracts_of, free_kernel
from moeracle.properties.hunt.shard import Shard
from moeracle.properties.laws.bench import Bench
from moeracle.properties.laws.experts import law_relabelling_experts
from moeracle.properties.simulate import ALL_ZEROS, simulated_kernel
from support.schemas import fits

SLICES = 8  # a contract in so many, on one case each
ALWAYS = ("grouped,accumulator=fp32,batch_invariant=true", "grouped,accumulator=fp32,activation=swigluoai")
FALSE_ALARMS = [  # that laws have raised: op, contract, how many cases show it
    ("moe_w4a16", "grouped,router_weight=input,accumulator=fp32", 6),
    ("moe_w4a16", "vllm@0.33:marlin", 6),
    ("moe_unpermute", "gptq_awq,topk_sum=dtype,slot_order=any,deterministic=false", None),
    ("grouped_gemm", "grouped,accumulator=fp32,v1_zeros=word_carry", 8),
]


@pytest.mark.parametrize("op", OPS)
def test_no_law_accuses_a_legal_kernel(op: str) -> None:
    """Laws say nothing where the contract is out of their reach; each of them speaks somewhere in the slice."""
    spoke, contracts = Counter[str](), contracts_of(op, Shard(1, 500))
    chosen = [text for text in contracts if text in ALWAYS or Shard(1, SLICES).has(f"{op} {text}")]
    for text in chosen or contracts:
        asked = ask_laws(op, text, most=1 if chosen else None)
        assert not asked.alarms
        spoke += asked.spoke
    assert set(spoke) == {law.__name__ for law in record_of(op).laws}, chosen


@pytest.mark.parametrize(("op", "contract", "most"), FALSE_ALARMS)
def test_what_was_accused_once_is_left_alone(op: str, contract: str, most: int | None) -> None:
    asked = ask_laws(op, contract, 1, most)
    assert not asked.alarms
    assert asked.judged > 1000


@pytest.mark.parametrize(
    ("contract", "text"),
    [
        ("vllm@0.33:marlin", "shared_expert/T7-H96-I64-G-1/fp16/gptq-unpacked+act/-/onehot+gate+strided/s1695308799"),
        ("grouped,accumulator=fp32,one_group=after_store",
         "moe_w4a16/T1-E8-k3-H64-I64-G-1/fp16/sequential_n-v2/empty/sweep+negscale/s805159448"),
        ("wvsplitk,accumulator=fp32",
         "padded_gemm/T2-E8-k3-N16-K64-G16-B4/bf16/exllama_k-sym+short+scale16/uniform+weight/subnormal+strided/s3298384548"),
    ],
)  # fmt: skip
def test_sums_that_overflow_in_every_legal_kernel_break_no_law(contract: str, text: str) -> None:
    case = Case.parse(text)
    words = tuple({"act", "short", "scale16"} & {*OPS[case.op].weight_flags})
    kernel, judged = replace(free_kernel(case.op, contract, 0), weights=words, zeros=ALL_ZEROS), 0
    for law in record_of(case.op).laws:
        verdict = law(kernel, case)
        assert verdict is None or verdict.ok, verdict.text()
        judged += verdict.judged if verdict else 0
    assert judged


def test_experts_that_are_added_by_their_number_in_d_may_not_be_renumbered() -> None:
    case = Case.parse("moe_w4a16/T1-E3-k3-H32-I32-G32/bf16/compressed_tensors-sym/uniform/normal/s18")
    by_number, by_slot = (
        simulated_kernel("moe_w4a16", f"transformers@5.24:eager{more}", "matmul") for more in ("", ",slot_order=slots")
    )
    assert law_relabelling_experts(by_number, case) is None
    verdict = law_relabelling_experts(by_slot, case)
    assert verdict is not None
    assert verdict.ok
    assert not law_relabelling_experts(replace(by_number, contract=by_slot.contract), case).ok  # what it would say


def test_a_law_without_its_precondition_is_a_false_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep must see it: here exact data are demanded of sums in D, whose order is free."""
    monkeypatch.setattr(Bench, "_exact_case", lambda self: self.case.replace(data="integers"))
    asked = ask_laws("moe_unpermute", "gptq_awq,topk_sum=dtype,slot_order=any,deterministic=false")
    assert {alarm.split(": ")[1] for alarm in asked.alarms} >= {"law_permuting_tokens", "law_splitting_batches"}


def test_a_case_is_the_same_in_whatever_order_it_is_asked() -> None:
    kernel = free_kernel("padded_gemm", "grouped", 7)
    cases = [str(case) for case in legal_laws.law_cases(kernel, 7)]
    assert cases == [str(case) for case in legal_laws.law_cases(free_kernel("padded_gemm", "grouped", 7), 7)]
    assert {Case.parse(text).data for text in cases} == set(OPS["padded_gemm"].data)
    assert {Case.parse(text).dtype for text in cases} == set(OPS["padded_gemm"].dtypes)
    assert len({Case.parse(text).routing for text in cases}) > 3


def test_the_parts_of_two_fields_are_all_there_is() -> None:
    whole, base = set(contracts_of("moe_w4a16")), set(contracts_of("moe_w4a16", Shard(1, 10**6)))
    parts = [set(contracts_of("moe_w4a16", Shard(i, 3))) for i in (1, 2, 3)]
    assert set.union(*parts) == whole
    assert set.intersection(*parts) == base
    assert len(whole) > 10 * len(base) > 800


def test_the_command_goes_on_where_it_was_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its JSON is as its schema says; what it finds is exit 1."""
    file, words = tmp_path / "laws.json", ["laws", "--op", "silu_and_mul", "--shard", "1/500", "--seed", "5"]
    asked, real = list[str](), legal_laws.ask_laws

    def ask(op: str, text: str, *more: Any) -> Any:
        if len(asked) == 10:
            raise KeyboardInterrupt
        asked.append(text)
        return real(op, text, *more, most=1)

    monkeypatch.setattr(legal_laws, "ask_laws", ask)
    assert main([*words, "--json", str(file)]) == 130
    first = fits("laws", file)
    assert len(first["asked"]) == 10
    assert first["left"] > 10
    asked.clear()
    monkeypatch.setattr(legal_laws, "ask_laws", lambda op, text, *more: asked.append(text) or real(op, text, *more, 1))
    assert main([*words, "--resume", str(file)]) == 0
    whole = fits("laws", file)
    assert len(asked) == first["left"]
    assert whole["left"] == 0
    assert not set(asked) & {one["contract"] for one in first["asked"]}
    assert "0 false alarms in " in capsys.readouterr().out
    assert main([*words[:-1], "6", "--resume", str(file)]) == USAGE
    plain = json.loads(file.read_text())
    plain["asked"][0]["alarms"] = ["a case: a law: a reason"]
    file.write_text(json.dumps(plain))
    assert main([*words, "--resume", str(file)]) == ILLEGAL
