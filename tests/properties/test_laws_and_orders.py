"""No law accuses a legal kernel: every legal contract, over recipes in turn, in a random order of summation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import pytest

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.fault_matrix.legal import IN_EVERY_ORDER
from moeracle.properties.laws.experts import law_relabelling_experts
from moeracle.properties.simulate import LEGAL, SimulatedKernel, simulated_kernel, simulation_of
from moeracle.properties.simulate.orders import random_tree

ORDERS = count(1)
TURN = count()


def shuffled(op: str, contract: str, order: str) -> SimulatedKernel:
    """A legal kernel that adds in another random order at each call, where its contract lets any order be."""
    kernel = simulated_kernel(op, contract, order)
    free = kernel.contract.accumulator == "fp32" and not kernel.contract.ftz and kernel.contract.depth is None
    if not free:
        return kernel
    simulation = simulation_of(op, kernel.contract, order, block_m=128)

    def accumulate(sim: Any, base: Any, a: Any, w: Any, dtype: Any, *, tree: Any) -> Any:
        return tree(a, w, dtype)

    simulation.replace_step("accumulate", partial(accumulate, tree=random_tree(next(ORDERS))))
    return replace(kernel, fn=getattr(simulation, op))


@pytest.mark.parametrize(("contract", "order"), LEGAL)
def test_laws_leave_every_legal_contract_alone(contract: str, order: str) -> None:
    judged = 0
    for op in IN_EVERY_ORDER[next(TURN) % 2 :: 2]:
        kernel, fields = shuffled(op, contract, order), OPS[op]
        turn = next(TURN)
        data, routing = fields.data[turn % len(fields.data)], fields.routings[turn % len(fields.routings)]
        sizes = {"T": 5, "E": 4, "k": 2, "N": 8, "K": 64, "H": 64, "I": 32, "G": 32, "B": 16}
        dims: dict[str, Any] = {letter: sizes[letter] for letter in fields.dims if letter in sizes}
        case = Case.of(op, dtype=("bf16", "fp16")[turn % 2], data=data, routing=routing, seed=turn, **dims)
        assert kernel.why_not(case) is None
        for law in record_of(op).laws:
            verdict = law(kernel, case)
            assert verdict is None or verdict.ok, verdict.text()
            judged += 0 if verdict is None else verdict.judged
    assert judged or "dtype" in contract or contract == "moe_wna16"


def test_router_weights_before_silu_under_every_recipe() -> None:
    judged = 0
    for seed, data in enumerate(OPS["moe_w4a16"].data):
        kernel = shuffled("moe_w4a16", "grouped,router_weight=input,accumulator=fp32", "matmul")
        case = Case.of("moe_w4a16", T=5, E=4, k=2, H=64, I=32, G=32, data=data, seed=seed)
        for law in record_of("moe_w4a16").laws:
            verdict = law(kernel, case)
            assert verdict is None or verdict.ok, verdict.text()
            judged += 0 if verdict is None else verdict.judged
    assert judged > 1000


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
