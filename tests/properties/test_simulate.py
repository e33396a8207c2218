"""Simulated kernels are legal in every order and under every contract, and really differ from each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import moeracle.properties.simulate as simulate
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.fault_matrix.legal import IN_EVERY_ORDER
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.simulate import LEGAL, Simulation, simulated_kernel
from moeracle.properties.simulate.orders import ACCUMULATOR, ORDERS, tensor_core, truncate
from moeracle.properties.trial.trial import run_trial

BF16 = torch.bfloat16
HELPERS = {
    "contracts.accumulators",
    "contracts.contract",
    "contracts.ranks",
    "errors",
    "rounding",
    "weights.weight",
}  # types and rounding: nothing that computes an op


def alarms(kernel: simulate.SimulatedKernel, cases: list[Case]) -> list[str]:
    verdicts = [run_trial(kernel, case, explain=False) for case in cases]
    return [verdict.text() for verdict in verdicts if verdict.status == "illegal"]


@pytest.mark.parametrize(("contract", "order"), LEGAL, ids=["/".join(pair) for pair in LEGAL])
@pytest.mark.parametrize("op", IN_EVERY_ORDER)
def test_every_order_and_contract_is_legal(op: str, contract: str, order: str) -> None:
    kernel, at = simulated_kernel(op, contract, order), LEGAL.index((contract, order))
    cases = [case for case in must_run(kernel) if case.sizes["T"] < 100]
    step = 8 if op == "moe_w4a16" else 6  # so many neighbours in LEGAL share the cases: none is left out
    asked = cases[at % step :: step]
    assert len(asked) > 3
    assert alarms(kernel, asked) == []


@pytest.mark.parametrize("op", [op for op in OPS if op not in IN_EVERY_ORDER])
def test_other_ops_are_legal(op: str) -> None:
    kernel = simulated_kernel(op)
    assert alarms(kernel, must_run(kernel)) == []


def test_every_order_is_used_by_a_legal_kernel() -> None:
    assert {order for _, order in LEGAL} == set(ORDERS)
    assert len(LEGAL) >= 20
    assert set(ACCUMULATOR) <= set(ORDERS)


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "eights"])
def test_integers_add_up_exactly_in_every_order(order: str) -> None:
    torch.manual_seed(0)
    a, w = torch.randint(-9, 10, (5, 300)).float(), torch.randint(-8, 8, (7, 300)).float()
    assert torch.equal(ORDERS[order](a, w, BF16), (a.double() @ w.double().T).float())


def test_orders_differ_in_their_last_bits() -> None:
    torch.manual_seed(0)
    a, w = torch.randn(8, 512).bfloat16().float(), torch.randn(16, 512).bfloat16().float()
    sums = {name: order(a, w, BF16) for name, order in ORDERS.items() if name not in ("ftz", "matmul")}
    names = list(sums)
    same = [(p, q) for i, p in enumerate(names) for q in names[i + 1 :] if torch.equal(sums[p], sums[q])]
    assert same == []
    largest = (a.double() @ w.double().T).float()
    assert all((value - largest).abs().max() < 4 for value in sums.values())


def test_random_trees_repeat_and_atomics_do_not() -> None:
    torch.manual_seed(0)
    a, w = torch.randn(8, 512), torch.randn(16, 512)
    assert torch.equal(ORDERS["random1"](a, w, BF16), ORDERS["random1"](a, w, BF16))
    assert not torch.equal(ORDERS["eights"](a, w, BF16), ORDERS["eights"](a, w, BF16))


def test_tensor_core_models_by_hand() -> None:
    a = torch.ones(1, 16)
    kept, lost = torch.full((1, 16), 2.0**-25), torch.full((1, 16), 2.0**-26)
    kept[0, 0] = lost[0, 0] = 1.0
    hopper, ampere = tensor_core(16, 25), tensor_core(8, 24)
    # 1 + 15 * 2^-25, exactly, is 1 + 3.75 * 2^-23, then truncated to fp32; one bit lower nothing is left.
    assert hopper(a, kept, BF16).item() == 1 + 3 * 2.0**-23
    assert hopper(a, lost, BF16).item() == 1.0
    assert ampere(a, kept, BF16).item() == 1.0


def test_flushing_and_truncating_by_hand() -> None:
    tiny = torch.full((1, 2), 2.0**-130)
    assert ORDERS["ftz"](tiny, torch.ones(1, 2), BF16).item() == 0.0
    assert ORDERS["sequential"](tiny, torch.ones(1, 2), BF16).item() == 2.0**-129
    assert truncate(
        torch.tensor([1 + 2.0**-24 + 2.0**-25, -1 - 2.0**-24 - 2.0**-25], dtype=torch.float64)
    ).tolist() == [1, -1]


def test_lanes_add_in_the_order_of_the_shuffles() -> None:
    values = torch.zeros(256)
    values[15 * 8], values[7 * 8], values[11 * 8] = 2.0**24, 1.0, 1.0  # lane 15 meets lane 7 first: each 1 is lost
    ones = torch.ones(1, 256)
    assert ORDERS["lanes"](values[None], ones, BF16).item() == 2.0**24
    values[11 * 8], values[3 * 8] = 0.0, 1.0  # now lanes 7 and 3 are lost apart, 11 and 3 would meet first
    assert ORDERS["lanes"](values[None], ones, BF16).item() == 2.0**24
    values[7 * 8], values[11 * 8] = 0.0, 1.0  # lanes 11 and 3 meet before they meet lane 15
    assert ORDERS["lanes"](values[None], ones, BF16).item() == 2.0**24 + 2


def test_a_stage_is_computed_from_the_stage_before_it() -> None:
    problem = Case.parse("moe_w4a16/T5-E4-k2-H32-I32-G32/bf16/exllama-sym/uniform/normal/s1").build()
    simulation = Simulation("grouped")
    stages = simulation.moe_w4a16(*problem.args.values())
    for stage, before in (("a", "h"), ("y", "a"), ("out", "y")):
        assert torch.equal(simulation.stage(stage, problem.args, {before: stages[before]}), stages[stage])
    doubled = simulation.stage("out", problem.args, {"y": stages["y"] * 2})
    assert torch.equal(doubled, stages["out"] * 2)


def test_replacing_a_step_changes_only_that_simulation() -> None:
    problem = Case.parse("int4_linear/T3-N8-K32-G32/bf16/exllama-sym/-/normal/s1").build()
    doubled = Simulation().replace_step("scales", lambda sim, base, *args: base(*args) * 2)
    assert torch.equal(
        doubled.int4_linear(*problem.args.values()), Simulation().int4_linear(*problem.args.values()) * 2
    )


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'scales'"):
        Simulation().replace_step("scale", lambda sim, base: None)
    with pytest.raises(ValueError, match="did you mean 'sequential'"):
        Simulation(order="sequental")
    with pytest.raises(ValueError, match="did you mean 'moe_w4a16'"):
        simulated_kernel("moe_w4a61")
    with pytest.raises(ValueError, match="block_m: got 0"):
        Simulation(block_m=0)


def test_no_reference_op_is_used() -> None:
    paths = list(Path(simulate.__file__).parent.glob("*.py"))
    assert len(paths) > 5
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            if isinstance(node, ast.ImportFrom) and module.startswith("moeracle.ref"):
                names = {alias.name for alias in node.names}
                assert module.removeprefix("moeracle.ref.") in HELPERS or names == {"infer_block_size"}, path.name
