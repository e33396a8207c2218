"""Every fault is registered once, planted where it belongs, and seen at once; a missing sight fails these tests."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.fault_matrix.hunt import hunt_fault
from moeracle.properties.faults import FAULTS, faults_of, find_fault
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.simulate import Simulation, simulation_of
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.contracts.contract import PRESETS

STAGES = {
    "h",
    "a",
    "y",
    "partial",
    "out",
    "",
    "ids",
    "weights",
    "inv",
    "scale",
    "codes",
    "expert_ids",
    "sorted_token_ids",
}
MOST_EXAMPLES = 25
# Seen only under words of the routing field, or sizes, that come last among the fixed cases.
ONLY_LATE = {"F159", "F160", "F162", "F163", "F164", "F197", "F198"}
MOST_FIXED = 46


@pytest.mark.parametrize("id", FAULTS)
def test_every_fault_is_seen_in_each_of_its_ops(id: str) -> None:
    fault = FAULTS[id]
    for op in fault.ops:
        kernel = fault.kernel(op)
        run, _ = hunt_fault(kernel, seed=0)
        assert run.seen, f"{id} in {op}: no tier sees {fault.title!r}"
        assert run.tier != "call", f"{id} in {op} raised instead of computing something wrong: {run.case}"
        most = MOST_FIXED if id in ONLY_LATE else MOST_EXAMPLES
        assert run.examples <= most, f"{id} in {op} needs {run.examples} examples"
        if op == "moe_w4a16":
            assert run.stage == fault.stage, f"{id} first shows at {run.stage}, registered as {fault.stage}"


def test_the_register_is_complete() -> None:
    numbers = {int(re.match(r"F(\d+)", id).group(1)) for id in FAULTS}  # type: ignore[union-attr]
    assert set(range(1, 51)) <= numbers
    assert len(FAULTS) >= 100
    assert list(FAULTS) == sorted(FAULTS, key=lambda id: (int(re.sub(r"\D", "", id)), id))


def test_every_entry_is_documented() -> None:
    titles = Counter(fault.title for fault in FAULTS.values())
    for id, fault in FAULTS.items():
        assert fault.id == id
        assert fault.source.startswith("https://"), id
        assert titles[fault.title] == 1, fault.title
        assert fault.stage in STAGES, f"{id}: {fault.stage}"
        assert fault.ops, id
        assert set(fault.ops) <= set(OPS), id
        assert all(hasattr(simulation_of(op), step) for op in fault.ops for step in fault.steps), id


def test_ids_that_do_not_exist_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'F29'") as error:
        find_fault("f29")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="fault: got 'G7'"):
        find_fault("G7")


def test_a_fault_that_does_not_apply_says_so() -> None:
    assert find_fault("F17").why_not("moe_w4a16") == "F17 does not apply to moe_w4a16; it applies to topk_softmax"
    with pytest.raises(ValueError, match="F17 does not apply to moe_w4a16; it applies to topk_softmax"):
        find_fault("F17").kernel("moe_w4a16")
    with pytest.raises(ValueError, match="did you mean 'moe_w4a16'"):
        find_fault("F17").why_not("moe_w4a61")


@pytest.mark.parametrize(
    ("id", "contract", "reason"),
    [
        ("F13", "gptq_awq,accumulator=dtype", "accumulates in the activation dtype"),
        ("F16", "gptq_awq", "adds over k in the activation dtype"),
        ("F42", "grouped,store_rounding=rtz", "rounds its stores toward zero"),
        ("F43", "wvsplitk", "not rounded before the dot"),
        ("F43", "grouped,weight_rounding=rtz", "rounds weights toward zero"),
        ("F63", "grouped", "scales before the dot"),
    ],
)
def test_a_contract_that_allows_it_makes_it_no_fault(id: str, contract: str, reason: str) -> None:
    why = find_fault(id).why_not("moe_w4a16", contract)
    assert why is not None
    assert reason in why
    with pytest.raises(ValueError, match=f"{id} is no fault under contract"):
        find_fault(id).kernel("moe_w4a16", contract)


@pytest.mark.parametrize("contract", [name for name in PRESETS if name not in ("int8_lm_head", "moe_wna16")])
def test_faults_are_seen_under_other_contracts_too(contract: str) -> None:
    for id in ("F02", "F06", "F14", "F22", "F27", "F30", "F38", "F41", "F42", "F47", "F50", "F82"):
        fault = FAULTS[id]
        op = "moe_w4a16" if "moe_w4a16" in fault.ops else fault.ops[0]
        if fault.why_not(op, contract) is None:
            assert hunt_fault(fault.kernel(op, contract), seed=0)[0].seen, f"{id} under {contract}"


def test_faults_of_an_op_are_those_that_can_be_planted_there() -> None:
    assert all(op in fault.ops for op in OPS for fault in faults_of(op))
    assert "F16" not in [fault.id for fault in faults_of("moe_w4a16", "gptq_awq")]
    assert all(faults_of(op) for op in OPS)


def test_a_fault_changes_nothing_but_its_own_simulation() -> None:
    problem = Case.parse("int4_linear/T3-N8-K64-G32/bf16/exllama-sym/-/normal/s1").build()
    right = Simulation().int4_linear(*problem.args.values())
    wrong = find_fault("F29").kernel("int4_linear").fn(*problem.args.values())
    assert not torch.equal(right, wrong)
    assert torch.equal(right, Simulation().int4_linear(*problem.args.values()))


def test_faults_can_be_planted_in_any_order_of_accumulation() -> None:
    for order in ("sequential", "hopper", "lanes"):
        kernel = find_fault("F44").kernel("moe_w4a16", order=order)
        verdict = run_trial(kernel, must_run(kernel)[0], explain=False)
        assert (verdict.status, verdict.stage) == ("illegal", "y")


# What some faults do, worked by hand: a fault that does something else than its title says would still be "seen".


def steps_of(id: str, step: str, *args: object) -> torch.Tensor:
    simulation = find_fault(id).plant(Simulation())
    return getattr(simulation, step)(*args)


def test_group_faults_by_hand() -> None:
    assert steps_of("F02", "scale_group", 8, 2, "w").tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
    assert steps_of("F03", "zero_group", 256, 32, "w").tolist() == [0] * 128 + [1] * 128
    assert steps_of("F20", "scale_group", 8, 2, "w").tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert steps_of("F45", "lm_group", 6, 3).tolist() == [1, 1, 2, 2, 2, 2]


def test_sign_faults_by_hand() -> None:
    codes, zero = torch.tensor([[0.0, 7.0, 8.0, 15.0]]), torch.full((1, 4), 8.0)
    assert steps_of("F55", "subtract", codes, zero).tolist() == [[248, 255, 0, 7]]
    assert steps_of("F56", "subtract", codes, zero).tolist() == [[0, 7, -8, -1]]
    assert steps_of("F57", "subtract", codes, zero).tolist() == [[8, 15, 0, 7]]
    assert steps_of("F58", "subtract", codes, zero).tolist() == [[-8, -2, -1, 6]]


def test_tie_and_nan_faults_by_hand() -> None:
    tied = torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    assert Simulation().choose(tied, 2).tolist() == [[0, 1]]
    assert steps_of("F18", "choose", tied, 2).tolist() == [[3, 2]]
    weights, ids = find_fault("F17").kernel("topk_softmax").fn(torch.full((1, 4), torch.nan), 2, False)
    assert ids.tolist() == [[0, 0]]
    assert weights.isnan().all()


def test_two_masks_leak_as_published() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat_interleave(8).reshape(16, 8)
    from moeracle.ref.weights.weight import Int4Weight

    w = Int4Weight.from_codes(codes, torch.ones(16, 1, dtype=torch.bfloat16), layout="exllama")
    got = steps_of("F21", "codes", w, None, "w").long() - 8
    u = torch.arange(16)
    expected = torch.where(u <= 8, u - 8, 2 * (u - 8))  # survives up to 8, above it decodes to 2(u-8)
    assert torch.equal(got[:, 2], expected)
    assert torch.equal(got[:, 0], u - 8)
